"""From a source to batches: the order of training, decoding and cropping, and bad images.

An image that is damaged stops the run, or is skipped with `config.data.on_error="skip"`: in
training the next image of the source takes its place, in evaluation its mask is False. Which image
that is depends on the files alone, so that a run that is resumed still sees the same batches, bit
for bit. What can't be read for another reason, which may be transient, always stops the
run, see `data.reading`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import grain
import numpy as np
from ml_collections import ConfigDict

from vit_jax.config.keys import eval_image_shape, image_shape
from vit_jax.data import augmentation, transforms
from vit_jax.data.batch import Batch, empty_batch
from vit_jax.data.class_balance import balanced_order
from vit_jax.data.dataset import (
    Example,
    ExampleError,
    ReadError,
    Source,
    classes_of,
    is_multi_label,
)
from vit_jax.data.decoding import decode_whole
from vit_jax.data.read_ahead import read_ahead
from vit_jax.data.reading import retry
from vit_jax.data.skipped import SkippedImages

T = TypeVar("T")
ON_ERROR = ("stop", "skip")  # what `config.data.on_error` takes


class Shard(NamedTuple):
    """The part of the examples that one process reads: every `processes`th of the global order."""

    process: int = 0  # the number of this process
    processes: int = 1  # how many there are


SINGLE_PROCESS = Shard()  # all examples


# ------------------------------------------------------------------------------------- training


def train_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    shard: Shard = SINGLE_PROCESS,
    skipped: SkippedImages | None = None,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches, of `batch.layout`; `seek` moves it.

    All processes follow one global order, which is shuffled again every epoch. Process p takes the
    examples p, p + processes, … of it, so that the batches of two processes interleave to that of
    one. An example's random numbers depend on the seed and on its position in the order alone.

    Args:
      source: the examples.
      options: `config.data`.
      num_classes: every label must be below it.
      batch_size: number of examples in a batch of this process.
      seed: seed of the order and of the augmentation.
      shard: which part of the order this process takes.
      skipped: gets the images that are skipped, as they are read ahead. None doesn't collect them.

    Raises (when a batch is taken):
      ValueError: an image can't be read or decoded, or a label is out of range, and the message
        names the image; or none of all images can be used.
      ReadError, MemoryError: an image can't be read or decoded at the moment.
    """
    size = image_shape(options.image_size)
    reader = _Reader(source, options, skipped)

    def augment(position: int, index: int) -> tuple[np.ndarray, Example]:
        def view(image: bytes | np.ndarray) -> tuple[np.ndarray, np.random.Generator]:
            # Of an image that is skipped or read again, no number is drawn.
            rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
            return transforms.training_view(image, size, rng, options), rng

        (image, rng), example = reader.read_usable(index, view)
        return augmentation.augment(image, rng, options), example

    empty = _empty(source, batch_size, size, num_classes)

    def collate(examples: list[tuple[np.ndarray, Example]]) -> Batch:
        return _collate(examples, num_classes, empty())

    examples = _order(source, options, seed).map_with_index(augment)
    examples = examples[shard.process :: shard.processes]
    batches = examples.batch(batch_size, drop_remainder=True, batch_fn=collate)
    return iter(read_ahead(batches, options, reader.skipped))


def seek(batches: grain.DatasetIterator, step: int) -> None:
    """Moves an iterator of `train_batches` to where it is after `step` batches; reading starts.

    The place in the global order does not depend on the number of processes, so that a run can be
    resumed with more or fewer of them.
    """
    batches.set_state({"next_index": step})
    batches.start_prefetch()


def batch_ids(
    source: Source,
    options: ConfigDict,
    step: int,
    *,
    batch_size: int,
    seed: int,
    skipped: SkippedImages | None = None,
) -> list[str]:
    """Returns the ids of the examples in one batch of `train_batches`, of all processes together.

    Args:
      source: the examples.
      options: `config.data`.
      step: the number of the batch, counted from 1.
      batch_size: number of examples in a batch of all processes together.
      seed: seed of the order.
      skipped: the images that this process skipped. None if it skips none. Where another process
        skipped an image, the id is that image's, not that of the one that took its place.
    """
    order = _order(source, options, seed)
    ids = []
    for position in range((step - 1) * batch_size, step * batch_size):
        index = order[position]
        while (id := example_id(source, index)) in (skipped or ()):
            index = (index + 1) % len(source)
        ids.append(id)
    return ids


def _order(source: Source, options: ConfigDict, seed: int) -> grain.MapDataset:
    """Returns the indices of the examples in the order of training, without an end."""
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    if options.sampling == "balanced":
        order = balanced_order(source, options, seed, slots=order)
    return order


# ----------------------------------------------------------------------------------- evaluation


def eval_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    shard: Shard = SINGLE_PROCESS,
    skipped: SkippedImages | None = None,
) -> Iterable[Batch]:
    """Returns an iterable of batches in which every example is once, over all processes.

    Every process gets the same number of batches of the same size. The last ones are filled up
    with black images whose mask is False. So is the place of a skipped image. Arguments and errors
    are those of `train_batches`.
    """
    size = eval_image_shape(options)
    reader = _Reader(source, options, skipped)
    empty = _empty(source, batch_size, size, num_classes)

    def view(image: bytes | np.ndarray) -> np.ndarray:
        return transforms.evaluation_view(image, size, options)

    def collate(indices: list[int]) -> Batch:
        examples = [reader.read(i, view) if i < len(source) else None for i in indices]
        if not any(examples):
            reader.read_usable(0, view)  # raises an error if no image of the source can be used
        return _collate(examples, num_classes, empty())

    steps = -(-len(source) // (batch_size * shard.processes))
    indices = grain.MapDataset.range(steps * batch_size * shard.processes)
    indices = indices[shard.process :: shard.processes]
    batches = indices.batch(batch_size, batch_fn=list).map(collate)
    return read_ahead(batches, options, reader.skipped)


# ------------------------------------------------------------------------------ reading examples


def decode_example(source: Source, index: int) -> tuple[np.ndarray, Example]:
    """Returns an example's image, uint8 RGB (height, width, 3), and the example.

    Raises:
      ExampleError: the example is damaged, or its image can't be decoded.
      ReadError, MemoryError: it can't be read or decoded at the moment, even after a few attempts.
    """
    return view_example(source, index, decode_whole)


def view_example(
    source: Source, index: int, view: Callable[[bytes | np.ndarray], T]
) -> tuple[T, Example]:
    """Returns what `view` returns for an example's image, and the example; see `decode_example`.

    Args:
      source, index: where the example is.
      view: takes the image, encoded or uint8 RGB (height, width, 3). It may be called again after
        an error that may be transient.
    """
    example = source[index]
    image = example.image
    if isinstance(image, np.ndarray):
        return view(image), example
    try:
        return retry(lambda: view(image), example.id), example
    except ValueError as error:
        raise ExampleError(example.id, str(error).rstrip(".")) from error


def check_label(example: Example, num_classes: int) -> None:
    """Raises ExampleError if a label of an example is not in 0 … `num_classes` - 1."""
    if wrong := [x for x in classes_of(example.label) if not 0 <= x < num_classes]:
        raise ExampleError(
            example.id,
            f"has the label {wrong[0]}, but there are {num_classes} classes counted from 0: "
            f"a split without labels can't be trained or evaluated on",
        )


def example_id(source: Source, index: int) -> str:
    """Returns the id of an example, even if the example can't be read."""
    try:
        return source[index].id
    except (ExampleError, ReadError) as error:
        return error.id


class _Reader:
    """Reads the examples of a source, and stops at bad ones or skips them, as `on_error` says."""

    def __init__(self, source: Source, options: ConfigDict, skipped: SkippedImages | None):
        self._source, self._skip = source, options.on_error == "skip"
        self.skipped = SkippedImages() if skipped is None else skipped
        self._bad: dict[int, ExampleError] = {}  # by index: these are not decoded again

    def read(self, index: int, view: Callable[[bytes | np.ndarray], T]) -> tuple[T, Example] | None:
        """Returns what `view_example` returns. None if the example is skipped."""
        if index in self._bad:
            self.skipped.add(self._bad[index])
            return None
        try:
            return view_example(self._source, index, view)
        except ExampleError as error:
            if not self._skip:
                raise ValueError(
                    f"{error}. Remove or repair it, or skip such images with "
                    f"--config.data.on_error=skip."
                ) from error
            self._bad[index] = error
            self.skipped.add(error)
            return None

    def read_usable(self, index: int, view: Callable[[bytes | np.ndarray], T]) -> tuple[T, Example]:
        """Returns the first example that is not skipped, from this index on, as `read` does."""
        count = len(self._source)
        for i in range(count):
            if (found := self.read((index + i) % count, view)) is not None:
                return found
        raise ValueError(f"None of {count} images can be used, such as {self._bad[index]}.")


def _empty(
    source: Source, batch_size: int, size: tuple[int, int], num_classes: int
) -> Callable[[], Batch]:
    """Returns the function that makes a batch for examples of a source, without examples."""
    label_shape = (num_classes,) if is_multi_label(source) else ()
    return functools.partial(empty_batch, batch_size, size, label_shape=label_shape)


def _collate(
    examples: Sequence[tuple[np.ndarray, Example] | None], num_classes: int, batch: Batch
) -> Batch:
    """Puts the examples into a batch without any, each in its place, and returns it.

    Where one is None, the mask stays False.
    """
    for i, found in enumerate(examples):
        if found is not None:
            image, example = found
            check_label(example, num_classes)
            batch["image"][i], batch["mask"][i] = image, True
            if isinstance(example.label, tuple):
                batch["label"][i, [*example.label]] = True
            else:
                batch["label"][i] = example.label
    return batch
