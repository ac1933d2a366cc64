"""Prints the parameters and FLOPs of models, or the exaFLOPs of paper table 6 beside ours.

examples:
  python -m vit_jax.cost
  python -m vit_jax.cost B/16 L/16 --image_size=384 --num_classes=1000
  python -m vit_jax.cost --table=6
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from vit_jax import models
from vit_jax.cli.errors import stop_at_closed_pipe
from vit_jax.models.flops import forward_flops, table_6
from vit_jax.models.params import count_parameters, parameter_shapes

# Rows of table 6 that differ by more than 1 %.
_NOTES = """
R50+L/16: the paper's 859 for 7 epochs isn't half of its 1668 for 14 epochs. Ours agrees with 1668.
B/32: the paper's 55 has two digits only; its R50+B/32, with the same blocks, agrees."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.cost`.

    Args:
      argv: the arguments; None for those of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variants", nargs="*", help="of vit_jax.models.VARIANTS; default: all")
    parser.add_argument("--table", choices=["6"], help="print the paper's table beside our numbers")
    parser.add_argument("--image_size", type=int, default=224, help="pixels; default: 224")
    parser.add_argument("--num_classes", type=int, default=0, help="of the head; default: no head")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # only shapes are computed
    try:
        lines = _table_6() if args.table else _costs(args)
    except ValueError as error:
        parser.error(str(error))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    with stop_at_closed_pipe():
        if not args.table:
            classes = f"with a head of {args.num_classes:,} classes"
            head = classes if args.num_classes else "without a head"
            print(f"Models {head}, images of {args.image_size}x{args.image_size}:")
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())
        if args.table:
            print(_NOTES)


def _table_6() -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("model", "epochs", "paper, exaFLOPs", "ours", "difference")]
    for row in table_6():
        difference = row.counted / row.paper - 1
        numbers = str(row.epochs), str(row.paper), f"{row.counted:.0f}", f"{difference:+.1%}"
        lines.append((row.variant, *numbers))
    return lines


def _costs(args: argparse.Namespace) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = [("model", "parameters", "forward GFLOPs an image")]
    for name in args.variants or models.VARIANTS:
        variant = models.canonical(name)
        model = models.build(variant, num_classes=args.num_classes)
        parameters = count_parameters(parameter_shapes(model, args.image_size))
        flops = forward_flops(variant, args.image_size, num_classes=args.num_classes)
        lines.append((variant, f"{parameters:,}", f"{flops / 1e9:.2f}"))
    return lines


if __name__ == "__main__":
    main()
