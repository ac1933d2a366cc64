"""convert"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

import jax

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.cli.arguments import describe, image_size
from vit_jax.models.positions import RESIZES
from vit_jax.weights.api import FORMATS, adapt, load, save
from vit_jax.weights.safetensors import PICKLED

_EXAMPLES = """
formats: npz, the published JAX layout; timm, a state dict (.safetensors, .pth); hf, a Hugging Face
folder; orbax, a folder that runs start from.

  python -m vit_jax.convert imagenet21k/ViT-B_16 b16 --num_classes=0
  python -m vit_jax.convert runs/flowers flowers.npz
  python -m vit_jax.convert hf://google/vit-base-patch16-224 b16.safetensors
  python -m vit_jax.convert model.safetensors --dry_run
"""


def convert(
    source: str,
    destination: str | None,
    *,
    variant: str | None = None,
    format: str | None = None,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    resize: str = "linear",
    average: bool = False,
) -> Checkpoint:
    """Opens weights from anywhere, fits them, and writes them in another format.

    Args:
      source, variant, image_size, num_classes, resize: see `vit_jax.interop.load`.
      destination: a path where nothing is yet; None writes nothing.
      average: takes a run's Polyak average.
      format: one of `interop.FORMATS`; None goes by the suffix of `destination`: .npz, timm's
        .safetensors, .pth, .pt and .bin, and "orbax" for a folder.

    Returns:
      What was written.

    Raises:
      ValueError, FileNotFoundError: as `interop.load` and `interop.save`.
      FileExistsError: there is something at `destination`; it is left as it is.
    """
    checkpoint = load(source, variant=variant)
    if average:
        checkpoint = checkpoint.averaged()
    checkpoint = adapt(checkpoint, image_size=image_size, num_classes=num_classes, resize=resize)
    if destination is not None:
        save(checkpoint, destination, format=format or _format(destination))
    return checkpoint


def _format(destination: str) -> str:
    suffix = pathlib.Path(destination).suffix
    if suffix == ".npz":
        return "npz"
    return "timm" if suffix in (".safetensors", *PICKLED) else "orbax"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.convert",
        description="Converts weights of ViTs, hybrids and BiT ResNets between formats.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="whatever config.init_from may name: path, URL or name")
    parser.add_argument("destination", nargs="?", help="a path where nothing is yet")
    parser.add_argument("--variant", help="the model it must be, such as B/16; default: as it is")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix")
    parser.add_argument("--num_classes", type=int, help="a new head of zeros; 0: no head")
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="resizes position embeddings for it",
    )
    parser.add_argument(
        "--resize", choices=RESIZES, default=RESIZES[0], help="how they are resized"
    )
    parser.add_argument("--average", action="store_true", help="take the run's Polyak average")
    parser.add_argument("--dry_run", action="store_true", help="list the parameters, write nothing")
    options = vars(parser.parse_args(argv))
    dry_run = options.pop("dry_run")
    if dry_run:
        options["destination"] = None
    elif options["destination"] is None:
        parser.error("a destination is needed, or --dry_run")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("vit_jax").setLevel(logging.INFO)
    jax.config.update("jax_platforms", "cpu")  # arrays are moved, not computed with
    try:
        checkpoint = convert(**options)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(describe(checkpoint, parameters=dry_run))


if __name__ == "__main__":
    main()
