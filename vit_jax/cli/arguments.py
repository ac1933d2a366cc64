"""arguments"""

from __future__ import annotations

import argparse
import glob
import math
import os
import pathlib
from collections.abc import Iterable

from flax.traverse_util import flatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.data import sources


def image_size(text: str) -> tuple[int, int]:
    """Returns (h, w) of "SIDE" or "HxW"; raises ValueError for anything else."""
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def describe(checkpoint: Checkpoint, *, parameters: bool) -> str:
    """Returns a line on what a checkpoint holds, after a line for each parameter if asked for."""
    flat = flatten_dict(checkpoint.params, sep="/")
    width = max(map(len, flat))
    lines = [f"{name:{width}}  {tuple(x.shape)}" for name, x in flat.items()]
    total = sum(math.prod(x.shape) for x in flat.values())
    if shape := checkpoint.image_shape:
        images = f"{shape[0]} x {shape[1]} pixels"
    else:  # patches in one of several grids, or a ResNet
        images = f"{'an unknown' if 'Transformer' in checkpoint.params else 'any'} image size"
    classes = f"{checkpoint.num_classes} classes" if checkpoint.num_classes else "no head"
    summary = f"{checkpoint.config.model.variant}, {images}, {classes}: {total:,} parameters"
    return "\n".join([*lines, summary] if parameters else [summary])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `predict` and `visualize` have in common: checkpoint, images, `--image_size`."""
    parser.add_argument("checkpoint", help="whatever config.init_from may name: path, URL or name")
    parser.add_argument(
        "images", nargs="+", metavar="image", help="files, folders, globs, or - for names on stdin"
    )
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="pixels; default: the checkpoint's",
    )


def find_images(arguments: Iterable[str], listed: Iterable[str] = ()) -> list[str]:
    """Returns the files that command-line arguments name, each argument's in order.

    Args:
      arguments: files; folders, of which all images below are meant; globs; or "-".
      listed: what "-" stands for: lines of a file name each.

    Raises:
      FileNotFoundError: there are no images in a folder, for a glob, or in the list.
    """
    images = []
    for argument in arguments:
        path = pathlib.Path(argument).expanduser()
        if argument == "-":
            found = [name for line in listed if (name := line.rstrip("\r\n"))]
        elif path.is_dir():
            found = [
                str(p)
                for p in sorted(path.rglob("*"))
                if p.suffix.lower() in sources.IMAGE_SUFFIXES
            ]
        elif path.exists() or not glob.has_magic(argument):
            found = [str(path)]
        else:
            found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not found:
            raise FileNotFoundError(
                f"There are no images in {'the list on stdin' if argument == '-' else argument}: "
                f"expected files named {', '.join(sources.IMAGE_SUFFIXES)}."
            )
        images += found
    return images


def layer_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
