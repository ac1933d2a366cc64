"""Classifies images: `python -m vit_jax.predict CHECKPOINT IMAGE…`."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from vit_jax.cli.arguments import add_checkpoint, add_images, find_images
from vit_jax.inference.classifier import Classifier, Prediction, Readable, Unreadable

Answers = Iterable[tuple[str, list[Prediction]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.predict`; exits with status 1 if an image can't be read."""
    args = _parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    problems: list[str] = []
    try:
        images = find_images(args.images, sys.stdin)
        classifier = Classifier(
            args.checkpoint, image_size=args.image_size, batch_size=args.batch_size
        )
        answers = _without_unreadable(classifier.stream(images, args.top), problems)
        if args.json:
            _print_json(answers)
        elif args.csv:
            _print_csv(answers)
        else:
            _print_table(answers, width=min(60, max(map(len, images))))
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if problems:
        sys.exit("\n".join(["These images could not be read:", *problems]))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.predict",
        description="Prints the likeliest classes of images, one image a line.",
    )
    add_checkpoint(parser)
    add_images(parser)
    parser.add_argument("--top", type=int, default=3, help="classes for each image; default: 3")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once; default: 32")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument("--csv", action="store_true", help="one row for each image and class")
    args = parser.parse_args(argv)
    if args.top < 1 or args.batch_size < 1:
        parser.error("--top and --batch_size must be above 0")
    return args


def _without_unreadable(
    answers: Iterable[tuple[Readable, list[Prediction] | Unreadable]], problems: list[str]
) -> Iterator[tuple[str, list[Prediction]]]:
    """Yields the images that could be read, and adds what is wrong with others to `problems`."""
    for image, answer in answers:
        if isinstance(answer, Unreadable):
            problems.append(answer.reason)
        else:
            yield str(image), answer


def _print_table(answers: Answers, width: int) -> None:
    for image, predictions in answers:
        cells = [f"{p.label} {100 * p.probability:.1f} %" for p in predictions]
        print(f"{image:{width}}  {'  '.join(cells)}", flush=True)


def _print_json(answers: Answers) -> None:
    for image, predictions in answers:
        line = {"image": image, "predictions": [p._asdict() for p in predictions]}
        print(json.dumps(line), flush=True)


def _print_csv(answers: Answers) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", *Prediction._fields])
    for image, predictions in answers:
        writer.writerows([image, rank, *p] for rank, p in enumerate(predictions, start=1))


if __name__ == "__main__":
    main()
