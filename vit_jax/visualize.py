"""Shows what a model sees: `python -m vit_jax.visualize CHECKPOINT IMAGE… --out=DIR`.

DIR gets a PNG file for each picture, and index.html, one page that holds them all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vit_jax.cli.arguments import (
    add_checkpoint,
    add_images,
    find_images,
    layer_numbers,
    names_on_stdin,
)
from vit_jax.cli.environment import start_devices, start_logging
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    exit_if_unreadable,
    stop_at_closed_pipe,
)
from vit_jax.common.names import printable
from vit_jax.interpret.report import write_report
from vit_jax.weights.api import load

_EXAMPLES = """
examples:
  python -m vit_jax.visualize checkpoints/quickstart docs/flowers --out=runs/report
  python -m vit_jax.visualize runs/photos PHOTO.jpg --out=runs/report --layers=1,6,12
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.visualize`; exits with status 1 if an image can't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.visualize",
        description="Writes a report on what a model sees: pictures, and one page of them all.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    start_logging()
    start_devices()
    try:
        report = write_report(
            load(args.checkpoint),
            find_images(args.images, names_on_stdin()),
            args.out,
            shown=args.shown,
            sample=args.sample,
            layers=args.layers,
            image_size=args.image_size,
        )
    except (ValueError, OSError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a smaller --sample, --shown or --image_size."))
    with stop_at_closed_pipe():
        print(printable(report.page))
    exit_if_unreadable(report.unreadable, report.images)


if __name__ == "__main__":
    main()
