"""A trained model at work: the likeliest classes of images, or their features."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import printable
from vit_jax.data import transforms
from vit_jax.data.decoding import decode_whole
from vit_jax.inference.images import Readable, use_image
from vit_jax.models.features import Features, token_features
from vit_jax.models.patches import to_float
from vit_jax.training import parallel
from vit_jax.training.objective import PROBABILITIES
from vit_jax.weights.api import adapt, load
from vit_jax.weights.class_names import check_head, with_class_names

logger = logging.getLogger(__name__)

_THREADS = 4  # that read and decode images


class Prediction(NamedTuple):
    """One of the likeliest classes of an image.

    Attributes:
      label: the class's name, or "class 3" if the checkpoint has no names.
      probability: a number in [0, 1]; those of all classes sum to 1, or, of a model trained with
        `optim.loss="sigmoid"`, each class has a probability of its own.
    """

    label: str
    probability: float


class Unreadable(NamedTuple):
    """Takes the place of an image's predictions if it can't be read.

    Attributes:
      reason: a sentence that names the image and says why.
    """

    reason: str


class Classifier:
    """Predicts the classes of images, or extracts their features, on all devices.

    Args:
      source: a `Checkpoint`, or what `weights.api.load` opens: a run's workdir, a file or folder
        of weights, an address, a name in `checkpoints/published.csv`, or a variant.
      image_size: pixels, a side or (h, w), which the position embeddings are resized for (paper
        3.2). None for the checkpoint's own; a checkpoint that doesn't say its own needs it.
      batch_size: number of images that are computed at once, at most.

    Attributes:
      checkpoint: the weights, at this image size.
      class_names: names of the classes, in the order of the logits; "class 0", "class 1", … if the
        checkpoint has none. 1,000 logits without names have those of ImageNet-1k, see
        `weights.class_names.with_class_names`.

    Raises:
      ValueError: the source can't be read, or there is no model for images of this size.
      FileNotFoundError: there is no such source.

    Example:
      >>> classifier = vit_jax.Classifier("checkpoints/quickstart")
      >>> [best.label for best, *_ in classifier.predict(["docs/flowers/tulip.png"])]
      ['tulip']
      >>> features = classifier.features(["docs/flowers/tulip.png"], layers=[4])
      >>> features.pooled.shape, features.tokens[4].shape
      ((1, 96), (1, 37, 96))
    """

    def __init__(
        self,
        source: str | os.PathLike | Checkpoint,
        *,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 32,
    ):
        checkpoint = source if isinstance(source, Checkpoint) else load(source)
        self.checkpoint = prepare(checkpoint, image_size)
        self.class_names = self.checkpoint.class_names or tuple(
            f"class {i}" for i in range(checkpoint.num_classes)
        )
        if self.checkpoint.num_classes and self.checkpoint.loss == "sigmoid":
            logger.info(
                "Probabilities are of each class by itself, by a sigmoid, and don't sum to 1: %s "
                "was trained with optim.loss='sigmoid'.",
                printable(self.checkpoint.path),
            )
        self._check_head = functools.cache(functools.partial(check_head, self.checkpoint))
        self._batch_size = batch_size
        self._model = self.checkpoint.model()
        self._probabilities = self._on_all_devices(self._compute_probabilities)
        self._features = functools.cache(
            lambda *chosen: self._on_all_devices(functools.partial(self._compute_features, *chosen))
        )
        self._params = self._probabilities.place(self.checkpoint.params)

    def predict(self, images: Iterable[Readable], top: int = 5) -> list[list[Prediction]]:
        """Returns the `top` likeliest classes of each image, the likeliest first.

        Args:
          images: several paths, encoded bytes, Pillow images or arrays, of any size. Arrays are RGB
            (h, w, 3), or grey (h, w, 1) or (h, w); integers in 0…255, or floats in 0…1. An array
            (b, h, w, 3) or (b, h, w) is b images.
          top: how many classes; all, if there are fewer.

        Raises:
          ValueError: the checkpoint has no head, or something can't be read as an image; it is
            named.
        """
        _check_several(images)
        return [_readable(answer) for _, answer in self.stream(images, top)]

    def stream(
        self, images: Iterable[Readable], top: int = 5
    ) -> Iterator[tuple[Readable, list[Prediction] | Unreadable]]:
        """Returns an iterator over each image with its predictions, or why it can't be read.

        A batch is read while the one before is computed.

        Args:
          images, top: as for `predict`; `images` may be endless.

        Raises:
          ValueError: the checkpoint has no head.
        """
        if not self.checkpoint.num_classes:
            path = self.checkpoint.path
            raise ValueError(f"{path} has no head to classify with: fine-tune from it.")
        self._check_head()
        return (
            (image, row if isinstance(row, Unreadable) else self._likeliest(row, top))
            for image, row in self._stream(images, self._probabilities)
        )

    def features(
        self, images: Iterable[Readable], layers: Sequence[int] = (), *, tokens: bool = False
    ) -> Features:
        """Returns what the model has found in images before its head.

        Args:
          images: n of them, of the kinds that `predict` takes.
          layers: numbers of the encoder blocks whose tokens are returned, counted from 1; 0 stands
            for the input of the first block.
          tokens: True if the tokens that the model pools are returned, too.

        Returns:
          `pooled`: float32 (n, d), what a head would read. `tokens`: {layer: float32 (n, tokens,
          d)}, before the last LayerNorm. `final_tokens`: of the same shape, what the encoder
          returns, after it; None without `tokens`. The class token comes first if there is one,
          then the patches row by row.

        Raises:
          ValueError: something can't be read as an image; it is named. Or the model has no such
            layer; a ResNet has no tokens.
        """
        _check_several(images)
        rows = [_readable(x) for _, x in self.stream_features(images, layers, tokens=tokens)]
        if not rows:
            shapes = self._shapes_of_features(tuple(layers), tokens)
            return jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), shapes)
        return jax.tree.map(lambda *x: np.stack(x), *rows)

    def stream_features(
        self, images: Iterable[Readable], layers: Sequence[int] = (), *, tokens: bool = False
    ) -> Iterator[tuple[Readable, Features | Unreadable]]:
        """Returns an iterator over each image with its features, or why it can't be read.

        Arguments, which may be endless, and errors about layers are those of `features`, and so are
        the features, without their first axis.
        """
        layers = tuple(layers)
        self._shapes_of_features(layers, tokens)  # raises at once
        return self._stream(images, self._features(layers, tokens))

    def _shapes_of_features(self, layers: tuple[int, ...], tokens: bool) -> Any:
        view = jax.ShapeDtypeStruct((1, *require_image_shape(self.checkpoint), 3), jnp.uint8)
        compute = functools.partial(self._compute_features, layers, tokens)
        return jax.eval_shape(compute, self._params, view)

    def _compute_probabilities(self, params: Any, images: jax.Array) -> jax.Array:
        logits: Any = self._model.apply({"params": params}, to_float(images), train=False)
        return PROBABILITIES[self.checkpoint.loss](logits)

    def _compute_features(
        self, layers: tuple[int, ...], tokens: bool, params: Any, images: jax.Array
    ) -> Features:
        return token_features(self._model, params, to_float(images), layers, final_tokens=tokens)

    def _on_all_devices(self, compute: Callable[[Any, jax.Array], Any]) -> parallel.Parallel:
        """Returns the program of a function (params, images) -> arrays (b, …)."""
        strategy = parallel.STRATEGIES[self.checkpoint.config.parallel]  # fsdp was for its devices
        return strategy(extract_features=compute)

    def _run(self, program: parallel.Parallel, views: np.ndarray) -> Any:
        """Returns what a program computes of uint8 images (b, h, w, 3), on the host.

        It is compiled for a power of two images on each device.
        """
        padded = jax.local_device_count()
        while padded < len(views):
            padded *= 2
        batch = np.zeros((padded, *views.shape[1:]), np.uint8)
        batch[: len(views)] = views
        rows = program.extract_features(self._params, program.put_batch(batch))
        return jax.tree.map(lambda x: x[: len(views)], program.gather(rows))

    def _stream(
        self, images: Iterable[Readable], program: parallel.Parallel
    ) -> Iterator[tuple[Readable, Any]]:
        """Yields each image with its entry of what a program computes, or with `Unreadable`."""
        for batch, views in self._read(images):
            readable = [view for view in views if not isinstance(view, Unreadable)]
            computed = self._run(program, np.stack(readable)) if readable else None
            rows = (jax.tree.map(itemgetter(i), computed) for i in range(len(readable)))
            for image, view in zip(batch, views, strict=True):
                yield image, view if isinstance(view, Unreadable) else next(rows)

    def _likeliest(self, row: np.ndarray, top: int) -> list[Prediction]:
        best = np.argsort(-row, kind="stable")[:top]
        return [Prediction(self.class_names[i], float(row[i])) for i in best]

    def _read(
        self, images: Iterable[Readable]
    ) -> Iterator[tuple[list[Readable], list[np.ndarray | Unreadable]]]:
        """Yields batches of images with what the model sees of each; reads one batch ahead."""
        with ThreadPoolExecutor(_THREADS) as pool:
            previous = None
            for batch in _batches(images, self._batch_size):
                views = pool.map(self._view, batch)  # starts to read
                if previous is not None:
                    yield previous[0], list(previous[1])
                previous = batch, views
            if previous is not None:
                yield previous[0], list(previous[1])

    def _view(self, image: Readable) -> np.ndarray | Unreadable:
        try:
            return view_image(image, self.checkpoint)
        except ValueError as error:
            return Unreadable(str(error))


def prepare(checkpoint: Checkpoint, image_size: int | Sequence[int] | None = None) -> Checkpoint:
    """Returns a checkpoint with a known image size and with its parameters in memory.

    The log tells how images are cropped and resized, if weights of another code base say it.

    Args:
      checkpoint: what `weights.api.load` returns.
      image_size: pixels, a side or (h, w), which the position embeddings are resized for (paper
        3.2). None keeps the checkpoint's own.

    Returns:
      The checkpoint; its parameters are float32 NumPy arrays, and 1,000 logits have names, see
      `weights.class_names.with_class_names`.

    Raises:
      ValueError: `image_size` is None and the checkpoint doesn't say its own, or the model can't
        take images of this size.
    """
    checkpoint = adapt(checkpoint, image_size=image_size)
    checkpoint.model().grid(require_image_shape(checkpoint))  # raises if patches don't fit
    checkpoint = with_class_names(checkpoint)
    view = transforms.view_of(checkpoint.config.data)
    is_new = not all(isinstance(x, np.ndarray) for x in jax.tree.leaves(checkpoint.params))
    if is_new and checkpoint.step == 0 and view != transforms.View():  # else it was logged before
        logger.info("Images are seen as %s says: %s.", printable(checkpoint.path), view)
    return checkpoint._replace(params=jax.tree.map(np.asarray, checkpoint.params))


def require_image_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns (h, w) in pixels of the images that a checkpoint is for.

    Raises:
      ValueError: the checkpoint doesn't say it.
    """
    if checkpoint.image_shape is None:
        raise ValueError(
            f"{checkpoint.path} doesn't say the size of its images: give image_size, in pixels."
        )
    return checkpoint.image_shape


def read_image(image: Readable) -> np.ndarray:
    """Returns an image as a uint8 RGB array (height, width, 3), upright.

    Args and errors are those of `images.use_image`.
    """
    return use_image(image, decode_whole)


def view_image(
    image: Readable, checkpoint: Checkpoint, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the part of an image that a model sees, resized: uint8 (h, w, 3).

    It is what evaluation cuts out, see `data.transforms.evaluation_view`.

    Args:
      image: as for `read_image`. A JPEG file that is already decoded is not decoded at a reduced
        scale, as `config.data.decode` may ask for.
      checkpoint: says which part, by `config.data`, and how it is resized.
      shape: (h, w) of the result. None for the size of the model's images.

    Raises:
      ValueError, OSError, MemoryError: as `read_image`.
    """
    options = checkpoint.config.data
    shape = shape or require_image_shape(checkpoint)
    background = transforms.view_of(options).background
    return use_image(image, lambda x: transforms.evaluation_view(x, shape, options), background)


def _check_several(images: Any) -> None:
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        raise ValueError("This takes several images: put a single one into a list.")


def _readable(result: Any) -> Any:
    if isinstance(result, Unreadable):
        raise ValueError(result.reason)
    return result


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
