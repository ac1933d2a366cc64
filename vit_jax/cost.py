"""cost"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from vit_jax import models
from vit_jax.models.flops import JFT_IMAGES, TABLE_6, forward_flops, training_exaflops
from vit_jax.models.params import parameter_shapes


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
