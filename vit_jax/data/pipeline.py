"""Batches"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

import grain
import numpy as np
from ml_collections import ConfigDict

from vit_jax.config.keys import image_shape
from vit_jax.data import transforms
from vit_jax.data.randaugment import rand_augment
from vit_jax.data.sources import Example, ExampleError, Source
from vit_jax.data.transforms import evaluation_view

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


class SkippedImages:
    """The ids of the images that a process skipped; its threads share one. Each is logged once."""

    def __init__(self):
        self._ids: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, error: ExampleError) -> None:
        """Notes what could not be used."""
        with self._lock:
            known = error.id in self._ids
            self._ids.add(error.id)
        if not known:
            logger.warning("skipped %s", error)


def train_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    skipped: SkippedImages | None = None,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches; `seek` changes its position.

    All processes go through one global order, reshuffled every epoch; process p takes examples
    p, p + processes, … of it, so the batches of two processes interleave to that of one. Each
    example's random numbers depend on (seed, position in the order) alone.

    Args:
      source: the examples.
      options: `config.data`: sizes, crops, threads, and what to do about bad images.
      num_classes: labels must be below it.
      batch_size: examples a batch of this process.
      seed: of order and augmentation.
      process, processes: which of how many processes this is.
      skipped: gets the images that `options.on_error="skip"` skips, as they are read ahead.

    Raises (when iterated):
      ValueError: an image can't be read or decoded, or none can, or a label is out of range; it
        is named.
    """
    size = image_shape(options.image_size)
    reader = _Reader(source, options, skipped)

    def augmented(position: int, number: int) -> tuple[np.ndarray, Example]:
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
        image, example = reader.usable(number)
        if options.crop == "inception":
            image = transforms.inception_crop(image, size, rng, area=(options.crop_area, 1.0))
        else:
            image = transforms.resize_and_random_crop(image, size, rng, options.crop_fraction)
        image = transforms.random_flip(image, rng) if options.flip else image
        image = rand_augment(
            image, rng, operations=options.randaugment, magnitude=options.randaugment_magnitude
        )
        return image, example

    def batch(examples: list[tuple[np.ndarray, Example]]) -> Batch:
        return _collate(examples, num_classes, batch_size, size)

    examples = _order(len(source), seed).map_with_index(augmented)[process::processes]
    batches = examples.batch(batch_size, drop_remainder=True, batch_fn=batch)
    return iter(batches.to_iter_dataset(_read_options(options)))


def _order(count: int, seed: int) -> grain.MapDataset:
    """Returns the numbers of the examples in the order of training, without an end."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def batch_ids(
    source: Source, step: int, *, batch_size: int, seed: int, skipped: SkippedImages | None = None
) -> list[str]:
    """Returns the ids of the examples of one batch of `train_batches`, of all processes together.

    Args:
      source: the examples.
      step: of the batch, counted from 1.
      batch_size: examples a step, over all processes.
      seed: of the order.
      skipped: what `train_batches` was given; what took the place of an image that another process
        skipped isn't known.
    """
    order = _order(len(source), seed)
    ids = []
    for position in range((step - 1) * batch_size, step * batch_size):
        number = order[position]
        while (id := _id(source, number)) in (skipped or ()):
            number = (number + 1) % len(source)
        ids.append(id)
    return ids


def seek(batches: grain.DatasetIterator, step: int) -> None:
    """Moves a `train_batches` iterator to where it is after `step` batches, and starts to read.

    All processes are at the same number, however many they are, so that a run can go on with
    more or fewer of them.
    """
    batches.set_state({"next_index": step})
    batches.start_prefetch()


def eval_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    skipped: SkippedImages | None = None,
) -> Iterable[Batch]:
    """Returns an iterable of batches that hold every example exactly once over all processes.

    Every process gets the same number of batches of the same size: what is missing in the last
    ones is filled up with black images whose mask is False, and so is what is skipped. Arguments
    and errors are those of `train_batches`.
    """
    size = image_shape(options.image_size)
    reader = _Reader(source, options, skipped)

    def view(number: int) -> tuple[np.ndarray, Example] | None:
        if number >= len(source) or (found := reader.read(number)) is None:
            return None
        image, example = found
        return evaluation_view(image, size, options), example

    def batch(numbers: list[int]) -> Batch:
        examples = [view(number) for number in numbers]
        if not any(examples):
            reader.usable(0)  # an error if there is none in the whole source
        return _collate(examples, num_classes, batch_size, size)

    steps = -(-len(source) // (batch_size * processes))
    numbers = grain.MapDataset.range(steps * batch_size * processes)
    batches = numbers[process::processes].batch(batch_size, batch_fn=list).map(batch)
    return batches.to_iter_dataset(_read_options(options))


def _read_options(options: ConfigDict) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=options.prefetch)


class _Reader:
    """Reads and decodes the examples of a source, and does with bad ones what `on_error` says."""

    def __init__(self, source: Source, options: ConfigDict, skipped: SkippedImages | None):
        self._source, self._skip = source, options.on_error == "skip"
        self._skipped = SkippedImages() if skipped is None else skipped
        self._bad: dict[int, ExampleError] = {}  # by number: they aren't decoded again

    def read(self, number: int) -> tuple[np.ndarray, Example] | None:
        """Returns the image, uint8 RGB (h, w, 3), and its example; None for what is skipped."""
        if number in self._bad:
            return None
        try:
            return decode_example(self._source, number)
        except ExampleError as error:
            if not self._skip:
                raise ValueError(
                    f"{error}. Remove or repair it, or skip such images with "
                    f"--config.data.on_error=skip."
                ) from error
            self._bad[number] = error
            self._skipped.add(error)
            return None

    def usable(self, number: int) -> tuple[np.ndarray, Example]:
        """Returns what `read` does, of the first from this number on that isn't skipped."""
        count = len(self._source)
        for i in range(count):
            if (found := self.read((number + i) % count)) is not None:
                return found
        raise ValueError(f"None of {count} images can be used, such as {self._bad[number]}.")


def decode_example(source: Source, number: int) -> tuple[np.ndarray, Example]:
    example = source[number]
    try:
        return transforms.decode(example.image), example
    except ValueError as error:
        raise ExampleError(example.id, str(error).rstrip(".")) from error


def _id(source: Source, number: int) -> str:
    try:
        return source[number].id
    except ExampleError as error:
        return error.id


def check_label(example: Example, num_classes: int) -> None:
    if not 0 <= example.label < num_classes:
        raise ExampleError(
            example.id,
            f"has the label {example.label}, but there are {num_classes} classes counted from 0: "
            f"a split without labels can't be trained or evaluated on",
        )


def _collate(
    examples: Sequence[tuple[np.ndarray, Example] | None],
    num_classes: int,
    batch_size: int,
    size: tuple[int, int],
) -> Batch:
    """Returns a batch of what there is, in its place; the mask is False elsewhere."""
    batch = {
        "image": np.zeros((batch_size, *size, 3), np.uint8),
        "label": np.zeros(batch_size, np.int32),
        "mask": np.zeros(batch_size, bool),
    }
    for i, found in enumerate(examples):
        if found is not None:
            image, example = found
            check_label(example, num_classes)
            batch["image"][i], batch["label"][i], batch["mask"][i] = image, example.label, True
    return batch
