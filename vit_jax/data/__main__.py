"""Before a run: checks images in folders and tables, packs images, prepares tfds data sets.

None of it needs TensorFlow, but for `prepare` with those data sets whose own code does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vit_jax.cli.environment import start_logging
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    stop_at_closed_pipe,
)
from vit_jax.common.files import local_path
from vit_jax.common.names import printable
from vit_jax.config.keys import is_folder
from vit_jax.data import checks
from vit_jax.data.builders import prepare
from vit_jax.data.packed_records import PackOptions
from vit_jax.data.packing import pack
from vit_jax.data.pipeline import ON_ERROR

_EXAMPLES = """
examples:
  python -m vit_jax.data check PHOTOS
  python -m vit_jax.data pack PHOTOS packed --side=256
  python -m vit_jax.data prepare tf_flowers
  python -m vit_jax.data convert ~/tensorflow_datasets/imagenet2012/5.1.0
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.data`; `argv` are its arguments, or None for the command line's."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.data",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check",
        help="list the images of a folder that can't be decoded, and the classes without images "
        "(status 1 if there are any); count the images of each class and split, name those that "
        "are the same in two splits, and say what is not used",
    )
    layouts = "<class>/* or train|val|test/<class>/*; or Parquet or Arrow files; or one such file"
    checking.add_argument("directory", help=layouts)
    _add_pack(commands.add_parser("pack", help="write small JPEGs to files that are quick to read"))
    preparing = commands.add_parser("prepare", help="download and prepare a tfds data set")
    preparing.add_argument("name", help="tfds name, such as tf_flowers")
    preparing.add_argument("--data_dir", help="default: tfds's own, ~/tensorflow_datasets")
    converting = commands.add_parser("convert", help="TFRecord-prepared data to array_record files")
    converting.add_argument("directory", help="the folder that holds dataset_info.json")
    args = parser.parse_args(argv)
    start_logging()
    try:
        if args.command == "check" and not is_folder(str(local_path(args.directory))):
            sys.exit(
                f"There is no folder {printable(args.directory)} to check. A data set of tfds is "
                f"not checked: `python -m vit_jax.data prepare {args.directory}` prepares it."
            )
        elif args.command == "check":
            problems, summary = checks.check_folder(args.directory)
            with stop_at_closed_pipe():
                print(*problems, *summary, sep="\n")
            sys.exit(1 if problems else 0)
        elif args.command == "pack":
            options = PackOptions(args.side, args.quality, args.background, args.on_error)
            folder = pack(args.source, args.out, options, args.data_dir)
        elif args.command == "prepare":
            folder = prepare.prepare(args.name, args.data_dir).data_path
        else:
            folder = prepare.convert(args.directory)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a machine with more memory."))
    with stop_at_closed_pipe():
        print(folder)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `pack`."""
    default = PackOptions()
    parser.description = (
        "Write the images of a data set as small JPEGs into array_record files, shuffled, which a "
        "run reads like any data set: --config.data.name=OUT. The same command goes on after an "
        "interruption."
    )
    parser.add_argument("source", help="what data.name can be: a folder, a file, a data set")
    parser.add_argument("out", help="a folder, new or empty")
    parser.add_argument(
        "--side",
        type=int,
        default=default.side,
        help=f"pixels of the shorter side, at most (default: {default.side})",
    )
    parser.add_argument(
        "--quality", type=int, default=default.quality, help=f"of JPEG (default: {default.quality})"
    )
    parser.add_argument(
        "--background",
        type=colour,
        default=default.background,
        metavar="R,G,B",
        help="what transparent pixels are laid over (default: white)",
    )
    parser.add_argument(
        "--on_error",
        choices=ON_ERROR,
        default=default.on_error,
        help=f"at an image that can't be used (default: {default.on_error})",
    )
    parser.add_argument("--data_dir", help="tfds's folder, if SOURCE is a data set of tfds")


def colour(text: str) -> tuple[int, ...]:  # argparse names it where it fails
    """Returns the numbers of "R,G,B"."""
    return tuple(int(x) for x in text.split(","))


if __name__ == "__main__":
    main()
