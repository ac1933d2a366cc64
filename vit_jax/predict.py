"""predict"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from vit_jax.cli.arguments import add_arguments, find_images
from vit_jax.inference.classifier import Classifier, Prediction, Unreadable

Answers = Iterable[tuple[str, list[Prediction]]]


def _write_table(answers: Answers, width: int) -> None:
    for image, predictions in answers:
        cells = [f"{p.label} {100 * p.probability:.1f} %" for p in predictions]
        print(f"{image:{width}}  {'  '.join(cells)}", flush=True)


def _write_json(answers: Answers, width: int) -> None:
    for image, predictions in answers:
        line = {"image": image, "predictions": [p._asdict() for p in predictions]}
        print(json.dumps(line), flush=True)


def _write_csv(answers: Answers, width: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", *Prediction._fields])
    for image, predictions in answers:
        writer.writerows([image, rank, *p] for rank, p in enumerate(predictions, start=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.predict`; exits with status 1 where an image couldn't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.predict",
        description="Prints the likeliest classes of images, one image a line.",
    )
    add_arguments(parser)
    parser.add_argument("--top", type=int, default=3, help="classes for each image; default: 3")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once; default: 32")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a line")
    how.add_argument("--csv", action="store_true", help="one row for each image and class")
    args = parser.parse_args(argv)
    if args.top < 1 or args.batch_size < 1:
        parser.error("--top and --batch_size must be above 0")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    unreadable = []

    def readable(answers) -> Answers:
        for image, answer in answers:
            if isinstance(answer, Unreadable):
                unreadable.append(answer.reason)
            else:
                yield image, answer

    write: Callable = _write_json if args.json else _write_csv if args.csv else _write_table
    try:
        images = find_images(args.images, sys.stdin)
        classifier = Classifier.restore(
            args.checkpoint, image_size=args.image_size, batch_size=args.batch_size
        )
        write(readable(classifier.stream(images, args.top)), min(60, max(map(len, images))))
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if unreadable:
        sys.exit("\n".join(["These images could not be read:", *unreadable]))


if __name__ == "__main__":
    main()
