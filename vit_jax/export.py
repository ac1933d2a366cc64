"""Writes models that run without the package: `python -m vit_jax.export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.export

from vit_jax.cli.arguments import add_checkpoint
from vit_jax.inference.exporter import FORMATS, export, usage_example
from vit_jax.weights.api import load

_EXAMPLES = """
OUT.onnx is an ONNX model (pip install 'vit_jax[onnx]'); any other OUT is an artifact of
jax.export, with a JSON file beside it that describes it. Both take uint8 images (b, h, w, 3), for
any b, and return float32 logits (b, c), or representations (b, d) of a model without a head. For a
model without its head, or with the Polyak average, run `python -m vit_jax.convert` first.

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
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    jax.config.update("jax_platforms", "cpu")  # it can lower for all other platforms
    try:
        checkpoint = load(args.checkpoint)
        description = export(
            checkpoint, args.destination, format=args.format, image_size=args.image_size
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    path, beside, needs = pathlib.Path(args.destination), "", "onnxruntime"
    if "platforms" in description:
        beside, needs = f", with {path.with_suffix('.json')} beside it", "jax flatbuffers"
    megabytes = 1e-6 * path.stat().st_size
    print(f"{path}: {description['variant']}, {megabytes:.1f} MB{beside}.")
    print(f"It runs after `pip install {needs}`, without vit_jax:\n")
    print(usage_example(path, description))


if __name__ == "__main__":
    main()
