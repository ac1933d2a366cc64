"""Classifies images, or writes their features: `python -m vit_jax.predict CHECKPOINT IMAGE…`."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

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
from vit_jax.common.bars import progress_bar
from vit_jax.common.files import csv_row
from vit_jax.common.names import printable, to_json
from vit_jax.inference.classifier import Classifier, Prediction, Readable, Unreadable
from vit_jax.inference.feature_files import check_features_path, write_features

_EXAMPLES = """
examples:
  python -m vit_jax.predict checkpoints/quickstart docs/flowers
  python -m vit_jax.predict runs/photos PHOTO.jpg --top=1 --json
  find PHOTOS -name '*.jpg' | python -m vit_jax.predict B/16 - --csv > answers.csv
  python -m vit_jax.predict B/16 PHOTOS --features=photos.npz --tokens --layers=6,12
"""

T = TypeVar("T")
Answers = Iterable[tuple[str, list[Prediction]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.predict`; exits with status 1 if an image can't be read."""
    args = _parse(argv)
    start_logging()
    start_devices()
    problems: list[str] = []
    try:
        if args.features is not None:
            check_features_path(args.features)
        images = find_images(args.images, names_on_stdin())
        classifier = Classifier(
            args.checkpoint, image_size=args.image_size, batch_size=args.batch_size
        )
        if args.features is not None:
            _write_features(args, classifier, images, problems)
            exit_if_unreadable(problems, len(images))
            return
        answers = _without_unreadable(classifier.stream(images, args.top or 3), problems)
        with stop_at_closed_pipe():
            if args.json:
                _print_json(answers)
            elif args.csv:
                _print_csv(answers)
            else:
                _print_table(answers, width=min(60, max(map(len, images))))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(
            describe_out_of_memory(error, "Take a smaller --batch_size, or a smaller --image_size.")
        )
    exit_if_unreadable(problems, len(images))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.predict",
        description="Prints the likeliest classes of images, one image a line; or writes features.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    add_images(parser)
    parser.add_argument("--top", type=int, help="classes for each image; default: 3")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once; default: 32")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument("--csv", action="store_true", help="one row for each image and class")
    output.add_argument(
        "--features",
        metavar="FILE",
        help="write what the head reads of each image to FILE.npz or FILE.parquet, and print no "
        "classes",
    )
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="with --features: also the tokens that the model pools, class token first, then the "
        "patches row by row",
    )
    parser.add_argument(
        "--layers",
        type=layer_numbers,
        default=[],
        metavar="N,N…",
        help="with --features: also the tokens after these encoder blocks, counted from 1; 0: "
        "before the first",
    )
    args = parser.parse_args(argv)
    if (args.top is not None and args.top < 1) or args.batch_size < 1:
        parser.error("--top and --batch_size must be above 0")
    if args.features is None and (args.tokens or args.layers):
        parser.error("--tokens and --layers go with --features=FILE")
    if args.features is not None and args.top is not None:
        parser.error("--features prints no classes: leave --top out")
    return args


def _write_features(
    args: argparse.Namespace, classifier: Classifier, images: Sequence[str], problems: list[str]
) -> None:
    found = classifier.stream_features(images, args.layers, tokens=args.tokens)
    shown = progress_bar(found, total=len(images), unit="image")
    shapes = write_features(args.features, _without_unreadable(shown, problems))
    if not shapes:
        return
    count = shapes["pooled"][0]
    columns = ", ".join(f"{name} {shape[1:]}" for name, shape in shapes.items())
    with stop_at_closed_pipe():
        print(f"Written to {printable(args.features)}: {count} images, each {columns}.")


def _without_unreadable(
    answers: Iterable[tuple[Readable, T | Unreadable]], problems: list[str]
) -> Iterator[tuple[str, T]]:
    """Yields the images that could be read, and adds what is wrong with others to `problems`."""
    for image, answer in answers:
        if isinstance(answer, Unreadable):
            problems.append(answer.reason)
        else:
            yield str(image), answer


def _print_table(answers: Answers, width: int) -> None:
    for image, predictions in answers:
        cells = [f"{printable(p.label)} {100 * p.probability:.1f} %" for p in predictions]
        print(f"{printable(image):{width}}  {'  '.join(cells)}", flush=True)


def _print_json(answers: Answers) -> None:
    for image, predictions in answers:
        line = {"image": image, "predictions": [p._asdict() for p in predictions]}
        print(to_json(line), flush=True)


def _print_csv(answers: Answers) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", *Prediction._fields])
    for image, predictions in answers:
        rows = ([image, rank, *p] for rank, p in enumerate(predictions, start=1))
        writer.writerows(map(csv_row, rows))


if __name__ == "__main__":
    main()
