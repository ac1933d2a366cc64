"""FLOPs"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend as jex

from vit_jax import models
from vit_jax.models.params import image_struct, parameter_shapes

# Paper table 6: pre-training on JFT-300M, exaFLOPs by (variant, epochs).
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
JFT_IMAGES = 303e6


def forward_flops(
    variant: str,
    image_size: int | Sequence[int] = 224,
    *,
    num_classes: int = 0,
    elementwise: bool = False,
    **overrides: Any,
) -> float:
    """Returns the floating-point operations of one image's forward pass.

    Counted are the multiplications and additions, 2 for each pair, of all matrix products and
    convolutions of the traced model, padding included: twice the MACs of the usual counters. A
    training step is three forward passes (this reproduces the paper's table 6).

    Args:
      variant: a row of `models.VARIANTS`.
      image_size: pixels: one side, or (h, w).
      num_classes: size of the head; 0 for none.
      elementwise: counts all other additions, subtractions, multiplications and divisions, too
        (norms, softmax, GELU, standardised kernels). timm's published GMACs hold such a share:
        2.7 % for R26+S/32, where it is largest.
      **overrides: as for `models.build`; the implementation changes nothing.

    Raises:
      ValueError: there is no such variant, or it can't take images of this size.
    """
    overrides.pop("implementation", None)
    model = models.plain(models.build(variant, num_classes=num_classes, **overrides))
    params = parameter_shapes(model, image_size)
    traced = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(
        params, image_struct(image_size)
    )
    return float(_flops(traced.jaxpr, elementwise))


_ELEMENTWISE = ("add", "sub", "mul", "div", "square", "integer_pow")


def _flops(jaxpr: jex.core.Jaxpr, elementwise: bool) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        shapes = [x.aval.shape for x in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * out * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            out_channels = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out * math.prod(shapes[1]) // shapes[1][out_channels]
        elif name in _ELEMENTWISE:
            total += out * elementwise
        elif name == "reduce_sum":
            total += math.prod(shapes[0]) * elementwise
        else:  # functions that are called, such as jitted ones
            inner = sum(_flops(called, elementwise) for called in _called(equation.params))
            total += inner * equation.params.get("length", 1)
    return total


def _called(params: dict[str, Any]) -> list[jex.core.Jaxpr]:
    values = [
        v
        for value in params.values()
        for v in (value if isinstance(value, tuple | list) else [value])
    ]
    kinds = (jex.core.ClosedJaxpr, jex.core.Jaxpr)  # from jax 0.12 on, one class
    return [getattr(v, "jaxpr", v) for v in values if isinstance(v, kinds)]


def training_exaflops(flops: float, images: float) -> float:
    """Returns the exaFLOPs (1e18) of training on that many images: three forward passes each.

    Args:
      flops: of one image's forward pass, as `forward_flops` counts them.
      images: all that are seen, an image of 7 epochs 7 times.
    """
    return 3 * flops * images / 1e18
