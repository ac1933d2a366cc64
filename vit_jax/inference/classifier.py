"""classifier"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.data import transforms
from vit_jax.models.patches import to_float
from vit_jax.training import parallel
from vit_jax.training.step import identity
from vit_jax.weights.api import adapt, load

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
        checkpoint: Checkpoint,
        *,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 32,
    ):
        if not checkpoint.num_classes:
            raise ValueError(f"{checkpoint.path} has no head to classify with: fine-tune from it.")
        self.checkpoint = prepare(checkpoint, image_size)
        self.class_names = checkpoint.class_names or tuple(
            f"class {i}" for i in range(checkpoint.num_classes)
        )
        self._batch_size = batch_size
        model = self.checkpoint.model()

        def probabilities(params, images):
            logits = model.apply({"params": params}, to_float(images), train=False)
            return jax.nn.softmax(logits)

        body = parallel.STRATEGIES[checkpoint.config.parallel]
        self._program = body(represent=probabilities)
        self._params = self._program.init(identity, self.checkpoint.params)

    @classmethod
    def restore(cls, source: str | os.PathLike, **options: Any) -> Classifier:
        """Opens weights from anywhere that `config.init_from` may name.

        Args:
          source: see `interop.restore`.
          **options: of the class: `image_size`, `batch_size`.

        Raises:
          ValueError, FileNotFoundError: as `interop.restore` and the class.
        """
        return cls(load(source), **options)

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
            return view_image(read_image(image), self.checkpoint)
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


def prepare(checkpoint: Checkpoint, image_size: int | Sequence[int] | None = None) -> Checkpoint:
    """Returns a checkpoint with its parameters in memory and its image size known.

    Args:
      checkpoint: what `interop.restore` returns.
      image_size: pixels, a side or (h, w), that the checkpoint is fitted to; None keeps its own.

    Raises:
      ValueError: the checkpoint doesn't tell its image size and none is given, or can't have it.
    """
    checkpoint = adapt(checkpoint, image_size=image_size)
    if checkpoint.image_shape is None:
        raise ValueError(
            f"{checkpoint.path} doesn't tell the size of its images: give image_size, in pixels."
        )
    checkpoint.model().grid(checkpoint.image_shape)
    return checkpoint._replace(params=jax.tree.map(np.asarray, checkpoint.params))


def read_image(image: Readable) -> np.ndarray:
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
        return transforms.from_pillow(image)
    if isinstance(image, bytes):
        return transforms.decode(image)
    try:
        return transforms.decode(pathlib.Path(image).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{image}: {getattr(error, 'strerror', error)}") from error


def view_image(
    image: np.ndarray, checkpoint: Checkpoint, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the part of an image that a model sees: uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      checkpoint: its `config.data` says which part, see `data.evaluation_view`.
      shape: (h, w) of the result; None for the size of the model's images.
    """
    return transforms.evaluation_view(
        image, shape or checkpoint.image_shape, checkpoint.config.data
    )


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
