"""Shows what a model sees: `python -m vit_jax.visualize CHECKPOINT IMAGE… --out=DIR`.

DIR gets a PNG file for each picture, and index.html, one page that holds them all.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from vit_jax.cli.arguments import (
    add_checkpoint,
    add_images,
    find_images,
    layer_numbers,
)
from vit_jax.interpret.report import write_report
from vit_jax.weights.api import load


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.visualize`."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.visualize",
        description="Writes a report on what a model sees: pictures, and one page of them all.",
    )
    add_checkpoint(parser)
    add_images(parser)
    parser.add_argument("--out", required=True, help="the report's folder")
    parser.add_argument(
        "--layers",
        type=layer_numbers,
        metavar="1,2,…",
        help="whose heads are shown; default: the first, middle and last",
    )
    parser.add_argument("--shown", type=int, default=24, help="images with pictures; default: 24")
    parser.add_argument(
        "--sample", type=int, default=128, help="images to average over; default: 128"
    )
    args = parser.parse_args(argv)
    if args.shown < 1 or args.sample < 1:
        parser.error("--shown and --sample must be above 0")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    try:
        page = write_report(
            load(args.checkpoint),
            find_images(args.images, sys.stdin),
            args.out,
            shown=args.shown,
            sample=args.sample,
            layers=args.layers,
            image_size=args.image_size,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(page)


if __name__ == "__main__":
    main()
