"""Arguments that several commands take, and what their texts mean."""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
from collections.abc import Iterable

from vit_jax.data.folders import IMAGE_SUFFIXES

SOURCE = "a run's workdir, a file or folder of weights, a URL, or a name such as B/16"  # for --help


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `checkpoint`, and `--image_size`, which is None if it is not given."""
    parser.add_argument("checkpoint", help=SOURCE)
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="pixels; default: the checkpoint's",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds `images`, one or more, which `find_images` reads."""
    parser.add_argument(
        "images", nargs="+", metavar="image", help="files, folders, globs, or - for names on stdin"
    )


def image_size(text: str) -> tuple[int, int]:
    """Returns (h, w) for "SIDE" or "HxW".

    Raises:
      ValueError: the text is neither.
    """
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0], sides[-1]


def layer_numbers(text: str) -> list[int]:
    """Returns the numbers in "1,6,12".

    Raises:
      ValueError: something in it is not a number.
    """
    return [int(number) for number in text.split(",")]


def find_images(arguments: Iterable[str], stdin: Iterable[str] = ()) -> list[str]:
    """Returns the paths of the files that command-line arguments name, in the arguments' order.

    Args:
      arguments: files; folders, which stand for all images in them, at any depth; globs; or "-".
      stdin: the lines that "-" stands for, each a file's name.

    Raises:
      FileNotFoundError: a folder, a glob or the list has no images.
    """
    images = []
    for argument in arguments:
        path = pathlib.Path(argument).expanduser()
        if argument == "-":
            found = [name for line in stdin if (name := line.rstrip("\r\n"))]
        elif path.is_dir():
            files = sorted(path.rglob("*"))
            found = [str(x) for x in files if x.suffix.lower() in IMAGE_SUFFIXES]
        elif path.exists() or not glob.has_magic(argument):
            found = [str(path)]
        else:
            found = sorted(x for x in glob.glob(str(path), recursive=True) if os.path.isfile(x))
        if not found:
            raise FileNotFoundError(
                f"There are no images in {'the list on stdin' if argument == '-' else argument}: "
                f"expected files named {', '.join(IMAGE_SUFFIXES)}."
            )
        images += found
    return images
