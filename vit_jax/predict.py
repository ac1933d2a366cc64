"""Classifies images: `python -m vit_jax.predict CHECKPOINT IMAGE…`, or `Classifier` from Python."""

from __future__ import annotations

import argparse
import csv
import glob
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from vit_jax import data, interop, parallel, preprocess, step
from vit_jax.convert import size

Readable = str | os.PathLike | bytes | np.ndarray | Image.Image

_THREADS = 4  # that read and decode


class Prediction(NamedTuple):
    """One of the likeliest classes of an image.

    Attributes:
      label: the class's name, or "class 3" where the checkpoint has no names.
      probability: in [0, 1]; those of all classes sum to 1.
    """

    label: str
    probability: float


class Unreadable(NamedTuple):
    """Stands for the predictions of what is no image; `reason` names it and says why."""

    reason: str


class Classifier:
    """A checkpoint that classifies images, on all devices.

    Args:
      checkpoint: what `interop.restore` returns; it needs a head.
      image_size: pixels, a side or (h, w): of weights that don't tell theirs, or to which the
        position embeddings are resized (paper 3.2).
      batch_size: images at once, at most.

    Raises:
      ValueError: there is no head, or no image size.
    """

    def __init__(
        self,
        checkpoint: interop.Checkpoint,
        *,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 32,
    ):
        if not checkpoint.num_classes:
            raise ValueError(f"{checkpoint.path} has no head to classify with: fine-tune from it.")
        self.checkpoint = ready(checkpoint, image_size)
        self.class_names = checkpoint.class_names or tuple(
            f"class {i}" for i in range(checkpoint.num_classes)
        )
        self._batch_size = batch_size
        model = self.checkpoint.model()

        def probabilities(params, images):
            logits = model.apply({"params": params}, preprocess.to_float(images), train=False)
            return jax.nn.softmax(logits)

        body = parallel.BODIES[checkpoint.config.parallel]
        self._program = body(represent=probabilities)
        self._params = self._program.init(step.identity, self.checkpoint.params)

    @classmethod
    def restore(cls, source: str | os.PathLike, **options: Any) -> Classifier:
        """Opens weights from anywhere that `config.init_from` may name.

        Args:
          source: see `interop.restore`.
          **options: of the class: `image_size`, `batch_size`.

        Raises:
          ValueError, FileNotFoundError: as `interop.restore` and the class.
        """
        return cls(interop.restore(source), **options)

    def predict(self, images: Iterable[Readable], top: int = 5) -> list[list[Prediction]]:
        """Returns the `top` likeliest classes of each image, the likeliest first.

        Args:
          images: several of: paths, encoded bytes, Pillow images, uint8 RGB arrays (h, w, 3), of
            any size. An array (b, h, w, 3) is b images.
          top: how many; with fewer classes, all are returned.

        Raises:
          ValueError: something is no image or can't be read; it is named.
        """
        if isinstance(images, str | os.PathLike | bytes | Image.Image):
            raise ValueError("predict takes several images: put a single one into a list.")
        answers = []
        for _, answer in self.stream(images, top):
            if isinstance(answer, Unreadable):
                raise ValueError(answer.reason)
            answers.append(answer)
        return answers

    def stream(
        self, images: Iterable[Readable], top: int = 5
    ) -> Iterator[tuple[Readable, list[Prediction] | Unreadable]]:
        """Yields each image with its predictions, or with what keeps it from having any.

        Arguments are those of `predict`. A batch is read while the one before is computed.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            before = ((), ())
            for group in _groups(images, self._batch_size):
                views = pool.map(self._view, group)  # starts to read
                yield from self._answers(*before, top)
                before = group, views
            yield from self._answers(*before, top)

    def _view(self, image: Readable) -> np.ndarray | Unreadable:
        try:
            return view(read(image), self.checkpoint)
        except ValueError as error:
            return Unreadable(str(error))

    def _answers(
        self, images: Sequence[Readable], views: Iterable[np.ndarray | Unreadable], top: int
    ) -> Iterator[tuple[Readable, list[Prediction] | Unreadable]]:
        views = list(views)
        readable = [x for x in views if not isinstance(x, Unreadable)]
        rows = iter(self._probabilities(np.stack(readable)) if readable else ())
        for image, found in zip(images, views, strict=True):
            if isinstance(found, Unreadable):
                yield image, found
                continue
            row = next(rows)
            best = np.argsort(-row, kind="stable")[:top]
            yield image, [Prediction(self.class_names[i], float(row[i])) for i in best]

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, h, w, 3) -> float32 (b, c); compiles for powers of two images a device."""
        padded = jax.local_device_count()
        while padded < len(images):
            padded *= 2
        batch = np.zeros((padded, *images.shape[1:]), np.uint8)
        batch[: len(images)] = images
        placed = self._program.put_batch(batch)
        rows = self._program.gather(self._program.represent(self._params, placed))
        return rows[: len(images)]


def ready(
    checkpoint: interop.Checkpoint, image_size: int | Sequence[int] | None = None
) -> interop.Checkpoint:
    """Returns a checkpoint with its parameters in memory and its image size known.

    Args:
      checkpoint: what `interop.restore` returns.
      image_size: pixels, a side or (h, w), that the checkpoint is fitted to; None keeps its own.

    Raises:
      ValueError: the checkpoint doesn't tell its image size and none is given, or can't have it.
    """
    checkpoint = interop.adapt(checkpoint, image_size=image_size)
    if checkpoint.image_shape is None:
        raise ValueError(
            f"{checkpoint.path} doesn't tell the size of its images: give image_size, in pixels."
        )
    checkpoint.model().grid(checkpoint.image_shape)
    return checkpoint._replace(params=jax.tree.map(np.asarray, checkpoint.params))


def read(image: Readable) -> np.ndarray:
    """Returns an image as uint8 RGB (h, w, 3), upright.

    Raises:
      ValueError: it is not an image, or a file that can't be read, which is named by its path.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"An array must be uint8 (h, w, 3), not {image.dtype} {image.shape}: scale it to "
                f"0…255 and give it three channels."
            )
        return image
    if isinstance(image, Image.Image):
        return preprocess.from_pillow(image)
    if isinstance(image, bytes):
        return preprocess.decode(image)
    try:
        return preprocess.decode(pathlib.Path(image).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{image}: {getattr(error, 'strerror', error)}") from error


def view(
    image: np.ndarray, checkpoint: interop.Checkpoint, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the part of an image that a model sees: uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      checkpoint: its `config.data` says which part, see `data.evaluation_view`.
      shape: (h, w) of the result; None for the size of the model's images.
    """
    return data.evaluation_view(image, shape or checkpoint.image_shape, checkpoint.config.data)


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
            found = [str(p) for p in sorted(path.rglob("*"))
                     if p.suffix.lower() in data.IMAGE_SUFFIXES]  # fmt: skip
        elif path.exists() or not glob.has_magic(argument):
            found = [str(path)]
        else:
            found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not found:
            raise FileNotFoundError(
                f"There are no images in {'the list on stdin' if argument == '-' else argument}: "
                f"expected files named {', '.join(data.IMAGE_SUFFIXES)}."
            )
        images += found
    return images


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `predict` and `visualize` have in common: checkpoint, images, `--image_size`."""
    parser.add_argument("checkpoint", help="whatever config.init_from may name: path, URL or name")
    parser.add_argument(
        "images", nargs="+", metavar="image", help="files, folders, globs, or - for names on stdin"
    )
    parser.add_argument(
        "--image_size", type=size, metavar="SIDE|HxW", help="pixels; default: the checkpoint's"
    )


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
