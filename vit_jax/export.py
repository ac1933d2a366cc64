"""export"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.export

from vit_jax.cli.arguments import image_size
from vit_jax.inference.exporter import FORMATS, export, snippet
from vit_jax.weights.api import load

_EXAMPLES = """
OUT.onnx is an ONNX model (pip install 'vit_jax[onnx]'); any other OUT is an artifact of
jax.export, with what is to be known of it in a JSON file beside it. Both take uint8 images
(b, h, w, 3), for any b, and give float32 logits (b, c), or representations (b, d) where there is
no head. `python -m vit_jax.convert` takes heads off and averages.

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
    parser.add_argument("checkpoint", help="whatever config.init_from may name: path, URL or name")
    parser.add_argument("destination", metavar="OUT", help="a path where nothing is yet")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix")
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="pixels; default: the checkpoint's",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    jax.config.update("jax_platforms", "cpu")  # that is enough to lower for all others
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
    print(snippet(path, description))


if __name__ == "__main__":
    main()
