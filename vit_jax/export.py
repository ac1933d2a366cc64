"""Writes models that run without the package: `python -m vit_jax.export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

import jax
import jax.export

from vit_jax.cli.arguments import add_checkpoint
from vit_jax.cli.environment import start_logging
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    stop_at_closed_pipe,
)
from vit_jax.common.files import local_path
from vit_jax.common.names import printable
from vit_jax.inference.exporter import FORMATS, export
from vit_jax.weights.api import load

_EXAMPLES = """
OUT.onnx is an ONNX model (by the extra "onnx" of the package); any other OUT is an artifact of
jax.export, with a JSON file beside it that describes it. Both take uint8 images (b, h, w, 3), for
any b, and return float32 logits (b, c), or representations (b, d) of a model without a head. A
program beside OUT, which is printed, too, classifies photos. For a model without its head, or with
the Polyak average, run `python -m vit_jax.convert` first.

examples:
  python -m vit_jax.export runs/flowers flowers.stablehlo
  python -m vit_jax.export B/16 b16.onnx --image_size=384
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.export",
        description="Writes a model and its parameters into a file that runs without vit_jax.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("destination", metavar="OUT", help="a path where nothing is yet")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix")
    args = parser.parse_args(argv)
    start_logging()
    jax.config.update("jax_platforms", "cpu")  # it can lower for all other platforms
    try:
        checkpoint = load(args.checkpoint)
        description = export(
            checkpoint, args.destination, format=args.format, image_size=args.image_size
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(
            describe_out_of_memory(
                error, "Take a smaller --image_size, or a machine with more memory."
            )
        )
    path = local_path(args.destination)
    code = path.with_suffix(".py")
    beside = f" and {printable(path.with_suffix('.json'))}" if "platforms" in description else ""
    with stop_at_closed_pipe():
        print(f"{printable(path)}: {description['variant']}, {1e-6 * path.stat().st_size:.1f} MB.")
        print(f"Beside it: {printable(code)}{beside}. This classifies a photo, without vit_jax:\n")
        print(f"python {shlex.quote(printable(code))} PHOTO.jpg\n")
        print(code.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
