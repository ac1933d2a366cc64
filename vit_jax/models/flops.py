"""FLOPs of a forward pass, counted in the traced model, and of training, as in paper table 6."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex

from vit_jax.models import variants
from vit_jax.models.attributes import without
from vit_jax.models.params import image_struct, parameter_shapes

JFT_IMAGES = 303_000_000  # images of JFT-300M, paper 4.1
# Paper table 6: exaFLOPs of pre-training on JFT-300M, by (variant, epochs).
TABLE_6 = {
    ("B/32", 7): 55,
    ("B/16", 7): 224,
    ("L/32", 7): 196,
    ("L/16", 7): 783,
    ("L/16", 14): 1567,
    ("H/14", 14): 4262,
    ("R50x1", 7): 50,
    ("R50x2", 7): 199,
    ("R101x1", 7): 96,
    ("R152x1", 7): 141,
    ("R152x2", 7): 563,
    ("R152x2", 14): 1126,
    ("R200x3", 14): 3306,
    ("R50+B/32", 7): 106,
    ("R50+B/16", 7): 274,
    ("R50+L/32", 7): 246,
    ("R50+L/16", 7): 859,
    ("R50+L/16", 14): 1668,
}

_LORA = ("lora_rank", "lora_alpha")  # attributes
_ELEMENTWISE = ("add", "sub", "mul", "div", "square", "integer_pow")


class PretrainingCost(NamedTuple):
    """The cost of one pre-training of paper table 6.

    Attributes:
      variant: a key of `models.VARIANTS`.
      epochs: passes over JFT-300M.
      paper: exaFLOPs that the paper gives.
      counted: exaFLOPs that `forward_flops` and `training_exaflops` give.
    """

    variant: str
    epochs: int
    paper: int
    counted: float


def forward_flops(
    variant: str,
    image_size: int | Sequence[int] = 224,
    *,
    num_classes: int = 0,
    elementwise: bool = False,
    padding: bool = False,
    **overrides: Any,
) -> float:
    """Returns the floating-point operations of one image's forward pass.

    It counts the multiplications and the additions, 2 for each pair, of all matmuls and
    convolutions of the traced model. That is twice the MACs that most counters give. A training
    step is three forward passes, which reproduces the paper's table 6.

    Args:
      variant: a key of `models.VARIANTS`.
      image_size: pixels, one side or (h, w).
      num_classes: size of the head; 0 for none.
      elementwise: True counts all other additions, subtractions, multiplications and divisions
        too (norms, softmax, GELU, standardised kernels). timm's published GMACs hold such a share:
        2.7 % for R26+S/32, where it is largest.
      padding: True counts what convolutions multiply by padding, too, as timm does. The paper
        doesn't, nor does XLA.
      **overrides: attributes, as for `models.build`. Those of kind "device" change nothing, nor
        does LoRA: its updates are added to the kernels once a batch, not once an image.

    Raises:
      ValueError: there is no such variant, or it can't take images of this size.
    """
    overrides = {k: x for k, x in without(overrides, "device").items() if k not in _LORA}
    model = variants.build(variant, num_classes=num_classes, **overrides)
    model = variants.plain(model)
    params = parameter_shapes(model, image_size)
    traced = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(
        params, image_struct(image_size)
    )
    return float(count_flops(traced.jaxpr, elementwise=elementwise, padding=padding))


def training_exaflops(flops: float, images: float) -> float:
    """Returns the exaFLOPs (1e18) of training on a number of images: three forward passes each.

    Args:
      flops: operations of one image's forward pass, as `forward_flops` counts them.
      images: number of images seen; an image that is seen in 7 epochs counts 7 times.
    """
    return 3 * flops * images / 1e18


def table_6() -> list[PretrainingCost]:
    """Returns the rows of paper table 6, each with the exaFLOPs that this module counts."""
    flops = {variant: forward_flops(variant) for variant in dict.fromkeys(v for v, _ in TABLE_6)}
    return [
        PretrainingCost(
            variant, epochs, paper, training_exaflops(flops[variant], epochs * JFT_IMAGES)
        )
        for (variant, epochs), paper in TABLE_6.items()
    ]


def count_flops(jaxpr: jex.core.Jaxpr, *, elementwise: bool = False, padding: bool = False) -> int:
    """Returns the floating-point operations of a traced function, see `forward_flops`.

    Args:
      jaxpr: as `jax.make_jaxpr` makes it. Functions that it calls and loops are counted as often
        as they run.
      elementwise, padding: see `forward_flops`.
    """
    total = 0
    count = functools.partial(count_flops, elementwise=elementwise, padding=padding)
    equations: Sequence[Any] = jaxpr.eqns
    for equation in equations:
        name = equation.primitive.name
        shapes = [x.aval.shape for x in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * out * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += 2 * _convolution_pairs(equation, padding)
        elif name in _ELEMENTWISE:
            total += out * elementwise
        elif name == "reduce_sum":
            total += math.prod(shapes[0]) * elementwise
        else:
            called = sum(map(count, _called(equation.params)))
            total += called * equation.params.get("length", 1)  # the length of a loop
    return total


def _convolution_pairs(equation: Any, padding: bool) -> int:
    """Returns how many numbers of the input and the kernel a convolution multiplies."""
    inputs, kernel, outputs = (x.aval.shape for x in (*equation.invars[:2], equation.outvars[0]))
    lhs, rhs, out = equation.params["dimension_numbers"]
    strides, pads = equation.params["window_strides"], equation.params["padding"]
    dilations = zip(equation.params["lhs_dilation"], equation.params["rhs_dilation"], strict=True)
    pairs = outputs[out[0]] * outputs[out[1]] * kernel[rhs[1]]
    for axis, (lhs_dilation, rhs_dilation) in enumerate(dilations, start=2):
        sizes = inputs[lhs[axis]], kernel[rhs[axis]], outputs[out[axis]]
        pairs *= (
            sizes[1] * sizes[2]
            if padding
            else valid_pairs(
                *sizes,
                stride=strides[axis - 2],
                padding=pads[axis - 2][0],
                lhs_dilation=lhs_dilation,
                rhs_dilation=rhs_dilation,
            )
        )
    return pairs


@functools.cache
def valid_pairs(
    inputs: int,
    kernel: int,
    outputs: int,
    *,
    stride: int,
    padding: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Returns how many pairs of an output and a kernel's place meet an input, along one axis."""
    places = (
        o * stride + k * rhs_dilation - padding for o in range(outputs) for k in range(kernel)
    )
    last = (inputs - 1) * lhs_dilation
    return sum(0 <= place <= last and place % lhs_dilation == 0 for place in places)


def _called(params: dict[str, Any]) -> list[jex.core.Jaxpr]:
    """Returns the functions that an equation calls, such as jitted ones."""
    values = [
        v
        for value in params.values()
        for v in (value if isinstance(value, tuple | list) else [value])
    ]
    kinds = (jex.core.ClosedJaxpr, jex.core.Jaxpr)  # from jax 0.12 on, one class
    found: list[Any] = [v for v in values if isinstance(v, kinds)]
    return [getattr(v, "jaxpr", v) for v in found]
