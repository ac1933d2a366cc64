"""Arguments that several commands take, and what their texts mean."""

from __future__ import annotations

import argparse
import codecs
import glob
import logging
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

from vit_jax.common.files import local_path
from vit_jax.common.names import printable
from vit_jax.data.image_files import IMAGE_SUFFIXES, count_unused, is_system_file, list_images

logger = logging.getLogger(__name__)

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


def names_on_stdin() -> Iterator[str]:
    """Yields the names on stdin, a line each; or, if there are NULs, as of `find -print0`, by them.

    Names are bytes: they are decoded as those that Python lists. A list in UTF-16, as PowerShell
    writes, begins with a byte-order mark. Empty names are left out.
    """
    data = sys.stdin.buffer.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    names = text.split("\0") if "\0" in text else [x.rstrip("\r") for x in text.split("\n")]
    yield from filter(None, names)


def find_images(arguments: Iterable[str], stdin: Iterable[str] = ()) -> list[str]:
    """Returns the paths of the files that command-line arguments name, in the arguments' order.

    What a folder holds besides images is logged.

    Args:
      arguments: files; folders, which stand for all images in them, at any depth, see
        `data.image_files.list_images`; globs; or "-".
      stdin: the names that "-" stands for, such as `names_on_stdin` yields.

    Raises:
      FileNotFoundError: a folder, a glob or the list has no images.
      ValueError: an argument can't be a path of this machine, see `local_path`.
    """
    images = []
    for argument in arguments:
        is_list, there = argument == "-", ""
        is_literal = is_list or (argument.startswith("~") and os.path.exists(argument))
        path = argument if is_literal else str(local_path(argument))
        if is_list:
            found = list(stdin)
        elif os.path.isdir(path):
            listed = list_images(pathlib.Path(path))
            found, there = [str(image) for image in listed.images], count_unused(listed.unused)
            if found and there:
                logger.info("%s: %d images; no images: %s", printable(path), len(found), there)
        elif os.path.exists(path) or not glob.has_magic(argument):
            found = [str(pathlib.Path(path))]
        else:
            matches = sorted(glob.glob(path, recursive=True))
            names = [x for x in matches if not is_system_file(os.path.basename(x))]
            found = [str(pathlib.Path(x)) for x in names if os.path.isfile(x)]
        if not found:
            where = "the list on stdin" if is_list else printable(argument)
            raise FileNotFoundError(
                f"There are no images in {where}: expected files named "
                f"{', '.join(IMAGE_SUFFIXES)}.{f' It holds {there}.' if there else ''}"
            )
        images += found
    return images
