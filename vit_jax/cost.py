"""What a model costs: parameters and floating-point operations, counted from the model itself.

`python -m vit_jax.cost VARIANT…` prints them, `python -m vit_jax.cost --table=6` the pre-training
compute of the paper's table 6 beside ours.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend as jex
import jax.numpy as jnp

from vit_jax import data, models

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


def parameter_shapes(model: nn.Module, image_size: int | Sequence[int]) -> Any:
    """Returns the tree of a model's parameters as `jax.ShapeDtypeStruct`s; computes nothing.

    Args:
      model: a module of `models.build`.
      image_size: pixels: one side, or (h, w).

    Raises:
      ValueError: the model can't take images of this size.
    """
    return jax.eval_shape(model.init, jax.random.key(0), _image(image_size))["params"]


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
    traced = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(params, _image(image_size))
    return float(_flops(traced.jaxpr, elementwise))


def _image(image_size: int | Sequence[int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *data.image_shape(image_size), 3), jnp.float32)


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
    values = [v for value in params.values()
              for v in (value if isinstance(value, tuple | list) else [value])]
    kinds = (jex.core.ClosedJaxpr, jex.core.Jaxpr)  # from jax 0.12 on, one class
    return [getattr(v, "jaxpr", v) for v in values if isinstance(v, kinds)]


def training_exaflops(flops: float, images: float) -> float:
    """Returns the exaFLOPs (1e18) of training on that many images: three forward passes each.

    Args:
      flops: of one image's forward pass, as `forward_flops` counts them.
      images: all that are seen, an image of 7 epochs 7 times.
    """
    return 3 * flops * images / 1e18


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.cost`."""
    parser = argparse.ArgumentParser(prog="python -m vit_jax.cost", description=__doc__)
    parser.add_argument("variants", nargs="*", help="of vit_jax.models.VARIANTS; default: all")
    parser.add_argument("--table", choices=["6"], help="print the paper's table beside our numbers")
    parser.add_argument("--image_size", type=int, default=224, help="pixels; default: 224")
    parser.add_argument("--num_classes", type=int, default=0, help="of the head; default: none")
    args = parser.parse_args(argv)
    try:
        lines = _table_6() if args.table else _costs(args)
    except ValueError as error:
        parser.error(str(error))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _table_6() -> list[tuple[str, ...]]:
    lines = [("model", "epochs", "paper, exaFLOPs", "ours", "difference")]
    variants = dict.fromkeys(variant for variant, _ in TABLE_6)
    flops = {variant: forward_flops(variant) for variant in variants}
    for (variant, epochs), paper in TABLE_6.items():
        ours = training_exaflops(flops[variant], epochs * JFT_IMAGES)
        lines.append((variant, str(epochs), str(paper), f"{ours:.0f}", f"{ours / paper - 1:+.1%}"))
    return lines


def _costs(args: argparse.Namespace) -> list[tuple[str, ...]]:
    lines = [("model", "parameters", "forward GFLOPs an image")]
    for name in args.variants or models.VARIANTS:
        variant = models.canonical(name)
        model = models.build(variant, num_classes=args.num_classes)
        shapes = jax.tree.leaves(parameter_shapes(model, args.image_size))
        flops = forward_flops(variant, args.image_size, num_classes=args.num_classes)
        lines.append((variant, f"{sum(x.size for x in shapes):,}", f"{flops / 1e9:.2f}"))
    return lines


if __name__ == "__main__":
    main()
