"""A tfds data set or a folder of images, as shuffled, sharded, resumable batches of uint8 images.

A data set is opened by name (`open_dataset`), a split of it gives a `Source` of encoded examples
by number, and `train_batches` and `eval_batches` turn a source into dictionaries of NumPy arrays:
`image` uint8 (b, h, w, 3), `label` int32 (b,), `mask` bool (b,): False for an example that only
fills up the last batch of an evaluation. Scaling to [-1, 1] is left to the device.

An image that can't be read or decoded stops the run, or is skipped with
`config.data.on_error="skip"`: in training the next one of the source takes its place, in evaluation
its mask is False. That depends on the files alone, so a run still continues bit for bit.

`python -m vit_jax.data check DIR` decodes all images of a folder and lists those that can't be,
`python -m vit_jax.data prepare NAME` downloads and prepares a tfds data set ahead of a run,
`python -m vit_jax.data convert DIR` turns TFRecord-prepared data into array_record files. None
needs TensorFlow, but for the stock tfds builders that do.
"""

from __future__ import annotations

import argparse
import logging
import operator
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tqdm import tqdm

from vit_jax import preprocess
from vit_jax.datasets import prepare, vtab
from vit_jax.randaugment import rand_augment

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
Batch = dict[str, np.ndarray]
_JFT = ("jft", "jft300m", "jft_300m", "jft-300m")
_LISTED = 20  # bad images, or classes without any, that an error names
_FOLDER_SEED = 0  # of the order inside a folder, which decides what `train[:85%]` holds


class Example(NamedTuple):
    """One encoded example: the file's bytes, its class, and a name for error messages."""

    image: bytes
    label: int
    id: str


class ExampleError(ValueError):
    """An example can't be used.

    Attributes:
      id: the example's, such as its file.
      reason: what is wrong with it.
    """

    def __init__(self, id: str, reason: str):
        super().__init__(id, reason)
        self.id, self.reason = id, reason

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


class Source(Protocol):
    """A sequence of `Example`s with random access; one that can't be read is an `ExampleError`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Skipped:
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


class Dataset(Protocol):
    """What `open_dataset` returns: names of the classes, sizes of the splits, and the splits."""

    class_names: tuple[str, ...]
    splits: Mapping[str, int]

    def source(self, split: str) -> Source: ...


class _FolderSource:
    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        try:
            return Example(path.read_bytes(), label, str(path))
        except OSError as error:
            raise ExampleError(str(path), f"can't be read: {error.strerror or error}") from error


class FolderDataset:
    """Images in `<class>/*` (one split, "train") or `train|val|test/<class>/*`.

    The order inside a split is a fixed permutation in which every slice holds all classes in
    their proportions, so that `train[:85%]` and `train[85%:]` are a stratified partition.

    Attributes:
      folder: where they are.

    Raises:
      FileNotFoundError: there is no such folder, or there are no images in it.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r} to read images from.")
        split_folders = [root / name for name in SPLIT_FOLDERS if (root / name).is_dir()]
        classes = {d.name for s in split_folders or [root] for d in s.iterdir() if d.is_dir()}
        self.class_names = tuple(sorted(name for name in classes if not name.startswith(".")))
        self._files = {
            split.name if split_folders else "train": self._stratified(split)
            for split in split_folders or [root]
        }
        self.splits = {split: len(files) for split, files in self._files.items()}
        if not sum(self.splits.values()):
            raise FileNotFoundError(
                f"There are no images in {root}: expected <class>/* or train|val|test/<class>/* "
                f"with files named {', '.join(IMAGE_SUFFIXES)}."
            )

    def _stratified(self, folder: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        rng = np.random.Generator(np.random.Philox(_FOLDER_SEED))
        ranked = []
        for label, name in enumerate(self.class_names):
            files = [p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
            files.sort()
            shuffled = [files[i] for i in rng.permutation(len(files))]
            ranked += [((i + 0.5) / len(files), label, path) for i, path in enumerate(shuffled)]
        return [(path, label) for _, label, path in sorted(ranked)]

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as `train[:85%]` or `train+val`."""
        parts = _absolute(split, self.splits)
        return _FolderSource([x for p in parts for x in self._files[p.splitname][p.from_ : p.to]])

    def empty_classes(self, split: str) -> list[str]:
        """Returns the names of the classes without an image where a split is a part of.

        That is all of train/ for `train[:85%]`. Raises ValueError for a split that there is not.
        """
        parts = _absolute(split, self.splits)
        found = {label for part in parts for _, label in self._files[part.splitname]}
        return [name for label, name in enumerate(self.class_names) if label not in found]


class _TfdsSource:
    def __init__(
        self,
        records: Sequence[vtab.Record],
        read: Callable[[vtab.Record], tuple[bytes, int]],
        name: str,
    ):
        self._records, self._read, self._name = records, read, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return Example(*self._read(self._records[index]), f"{self._name} #{index}")


class TfdsDataset:
    """A tfds data set of images and class labels, prepared first where it is not yet.

    Args:
      name: tfds's, with a config and version or without.
      data_dir: see `open_dataset`.
      task: what the images and labels are where they aren't just two of the features.

    Raises:
      ValueError: it is not a set of images with one class label each.
      Exception: what `prepare.open_builder` raises.
    """

    def __init__(self, name: str, data_dir: str | None = None, task: vtab.Task | None = None):
        self._builder = prepare.open_builder(name, data_dir)
        info = self._builder.info
        features = dict(info.features)
        image, label = info.supervised_keys or ("image", "label")
        recode, label = (task.image, task.label) if task else (bytes, label)
        if isinstance(label, str):
            names = getattr(features.get(label), "names", None)
            label = vtab.Labels(names, operator.itemgetter(label))
        if not isinstance(features.get(image), tfds.features.Image) or not label.names:
            raise ValueError(
                f"The tfds data set {name} can't be used for classification: it has the features "
                f"{', '.join(features)}, and an image with one class label is needed."
            )
        self._read = lambda record: (recode(record[image]), int(label.of(record)))
        self.class_names = tuple(label.names)
        self.splits = {split: info.splits[split].num_examples for split in info.splits}

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as `train[:85%]` or `train+validation`."""
        info = self._builder.info
        images = [k for k, v in info.features.items() if isinstance(v, tfds.features.Image)]
        parse_split(split)
        records = self._builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in images}
        )
        return _TfdsSource(records, self._read, f"{info.full_name} {split}")


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Opens a folder of images, a tfds data set or a task of VTAB.

    Args:
      name: a folder (any existing one, or what starts with "/", "." or "~"), else the name of a
        tfds data set, such as `tf_flowers` or `name/config`, or `vtab/` and a task of
        `vtab.TASKS`, whose splits are in its row.
      data_dir: where tfds keeps prepared data; None for its default, ~/tensorflow_datasets.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: no such data set, not one of images and labels, or not a public one.
    """
    if name.startswith(("/", ".", "~")) or pathlib.Path(name).is_dir():
        return FolderDataset(name)
    if name.lower() in _JFT:
        raise ValueError(
            f"data.name={name}: JFT-300M is not public. The recipe is, for data of your own: let "
            f"data.name be a folder of images or a tfds data set, and keep the rest."
        )
    if name.startswith("vtab/"):
        task = vtab.task(name.removeprefix("vtab/"))
        return TfdsDataset(task.dataset, data_dir, task)
    return TfdsDataset(name, data_dir)


def parse_split(split: str) -> tfds.core.ReadInstruction:
    """Parses tfds's split syntax: "train", "train[:85%]", "train[:800]+validation".

    Raises:
      ValueError: the syntax is wrong; the message gives examples.
    """
    try:
        return tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{split!r} is not a split: write one like 'train', 'train[:85%]', "
            f"'train[800:1000]' or 'train+validation'."
        ) from error


def default_splits(splits: Iterable[str]) -> tuple[str, str]:
    """Returns the (train, test) splits to use where the configuration names none.

    The data set's own test split where it has one, else its validation split, else the last 15 %
    of train.
    """
    held_out = [name for name in ("test", "validation", "val") if name in splits]
    return ("train", held_out[0]) if held_out else ("train[:85%]", "train[85%:]")


def hold_out(split: str, share: float, splits: Mapping[str, int]) -> tuple[str, str]:
    """Divides a split in two: all but the last `share` of every part of it, and these.

    Args:
      split: such as "train[:90%]" or "train+validation".
      share: of the examples of each part, in (0, 1); rounded to whole examples, at least one.
      splits: the numbers of examples of the data set's splits.

    Raises:
      ValueError: a part has fewer than two examples.
    """
    kept, held = [], []
    for part in _absolute(split, splits):
        start, end = part.from_ or 0, splits[part.splitname] if part.to is None else part.to
        if end - start < 2:
            raise ValueError(f"{split}: {part.splitname} is too small to be divided.")
        cut = end - min(max(1, round(share * (end - start))), end - start - 1)
        kept.append(f"{part.splitname}[{start}:{cut}]")
        held.append(f"{part.splitname}[{cut}:{end}]")
    return "+".join(kept), "+".join(held)


def split_size(split: str, splits: Mapping[str, int]) -> int:
    """Returns the number of examples in a split such as "train[:85%]".

    Args:
      split: in tfds's syntax.
      splits: the numbers of examples of the data set's splits.

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    parts = _absolute(split, splits)
    return sum((splits[p.splitname] if p.to is None else p.to) - (p.from_ or 0) for p in parts)


def _absolute(split: str, splits: Mapping[str, int]) -> list[Any]:
    """Returns the parts of a split, with `splitname`, `from_` and `to` in examples."""
    infos = [tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0)
             for name, n in splits.items()]
    return parse_split(split).to_absolute(tfds.core.splits.SplitDict(infos))


def image_shape(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) in pixels for a `config.data.image_size`: a side, or both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def train_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    skipped: Skipped | None = None,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches; `go_to` changes its position.

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
            image = preprocess.inception_crop(image, size, rng, area=(options.crop_area, 1.0))
        else:
            image = preprocess.resize_and_random_crop(image, size, rng, options.crop_fraction)
        image = preprocess.random_flip(image, rng) if options.flip else image
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
    source: Source, step: int, *, batch_size: int, seed: int, skipped: Skipped | None = None
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


def go_to(batches: grain.DatasetIterator, step: int) -> None:
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
    skipped: Skipped | None = None,
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


def evaluation_view(image: np.ndarray, size: tuple[int, int], options: ConfigDict) -> np.ndarray:
    """Returns what a model sees of an image in evaluation: uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      size: the result's (h, w).
      options: `config.data`: its `eval_crop` and `crop_fraction` say which part.
    """
    if options.eval_crop == "whole":
        return preprocess.resize(image, size)
    return preprocess.central_crop(image, size, options.crop_fraction)


def _read_options(options: ConfigDict) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=options.prefetch)


def open_source(dataset: Dataset, part: str, split: str | None = None) -> tuple[str, Source]:
    """Returns a split to train or test on, and its examples.

    Args:
      dataset: what `open_dataset` returns.
      part: "train" or "test".
      split: such as "train[:85%]"; None for the one of `default_splits`.

    Raises:
      ValueError: the split is wrong or empty.
    """
    if split is None:
        split = default_splits(dataset.splits)[("train", "test").index(part)]
    source = dataset.source(split)
    if not len(source):
        sizes = ", ".join(f"{name} has {n} images" for name, n in dataset.splits.items())
        raise ValueError(f"The split {split} is empty: {sizes}. Choose data.train and data.test.")
    return split, source


def require_trainable(dataset: Dataset, split: str, *, batch_size: int, labels: bool) -> None:
    """Checks that a split has the images and classes that training needs; reads no image.

    Args:
      dataset: what `open_dataset` returns.
      split: to train on, such as "train[:85%]".
      batch_size: examples a step, over all processes.
      labels: False where the classes don't matter.

    Raises:
      ValueError: the split has fewer images than a batch, the data set has fewer than two classes,
        or a class has no images to train on (which is known of folders only); says which.
    """
    images = split_size(split, dataset.splits)
    if images < batch_size:
        raise ValueError(
            f"The split {split} has {images} images, fewer than batch_size={batch_size}: take a "
            f"smaller batch, or a larger split as data.train."
        )
    if not labels:
        return
    if len(dataset.class_names) < 2:
        raise ValueError(
            f"There is only one class, {', '.join(dataset.class_names)}, so there is nothing to "
            f"tell apart: a folder of images needs a subfolder for each of two or more classes."
        )
    if isinstance(dataset, FolderDataset) and (empty := dataset.empty_classes(split)):
        raise ValueError(
            f"{dataset.folder} has no images to train on ({split}) for {len(empty)} of its "
            f"{len(dataset.class_names)} classes: {_few(empty, ', ')}. Add images to their "
            f"folders, or remove these folders."
        )


def require_decodable(
    dataset: Dataset, splits: Iterable[str], options: ConfigDict, *, progress: bool = True
) -> None:
    """Decodes every image of some splits of a folder, so that a run doesn't stop at one later.

    Does nothing for tfds data, nor with `options.check=False` or `options.on_error="skip"`.

    Args:
      dataset: what `open_dataset` returns.
      splits: such as ("train", "test").
      options: `config.data`.
      progress: shows a progress bar on stderr.

    Raises:
      ValueError: images can't be read or decoded; lists them, and says what can be done.
    """
    checked = options.check and options.on_error == "stop"
    if not checked or not isinstance(dataset, FolderDataset):
        return
    source = dataset.source("+".join(splits))
    problems = check(source, num_classes=len(dataset.class_names), progress=progress)
    if problems:
        listed = _few([f"- {problem}" for problem in problems], "\n")
        raise ValueError(
            f"{len(problems)} of {len(source)} images can't be used:\n{listed}\n"
            f"Remove or repair them (`python -m vit_jax.data check {dataset.folder}` lists all), "
            f"or skip them with --config.data.on_error=skip. With --config.data.check=false, a run "
            f"starts without looking, and stops at the first."
        )


def check(
    source: Source, *, num_classes: int, threads: int | None = None, progress: bool = True
) -> list[ExampleError]:
    """Decodes every example, and returns what is wrong with each that can't be used, in order.

    Args:
      source: the examples.
      num_classes: labels must be below it.
      threads: that read and decode; None for one each CPU.
      progress: shows a progress bar on stderr.
    """

    def problem(number: int) -> tuple[ExampleError] | tuple[()]:
        try:
            _, example = _decode(source, number)
            _check_label(example, num_classes)
        except ExampleError as error:
            return (error,)
        return ()

    threads = threads or os.cpu_count() or 1
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    found = grain.MapDataset.range(len(source)).map(problem).to_iter_dataset(reading)
    bar = tqdm(
        found, total=len(source), desc="checking", unit=" images", disable=not progress,
        dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    return [error for errors in bar for error in errors]


class _Reader:
    """Reads and decodes the examples of a source, and does with bad ones what `on_error` says."""

    def __init__(self, source: Source, options: ConfigDict, skipped: Skipped | None):
        self._source, self._skip = source, options.on_error == "skip"
        self._skipped = Skipped() if skipped is None else skipped
        self._bad: dict[int, ExampleError] = {}  # by number: they aren't decoded again

    def read(self, number: int) -> tuple[np.ndarray, Example] | None:
        """Returns the image, uint8 RGB (h, w, 3), and its example; None for what is skipped."""
        if number in self._bad:
            return None
        try:
            return _decode(self._source, number)
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


def _decode(source: Source, number: int) -> tuple[np.ndarray, Example]:
    example = source[number]
    try:
        return preprocess.decode(example.image), example
    except ValueError as error:
        raise ExampleError(example.id, str(error).rstrip(".")) from error


def _id(source: Source, number: int) -> str:
    try:
        return source[number].id
    except ExampleError as error:
        return error.id


def _check_label(example: Example, num_classes: int) -> None:
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
            _check_label(example, num_classes)
            batch["image"][i], batch["label"][i], batch["mask"][i] = image, example.label, True
    return batch


def _few(items: Sequence[str], separator: str) -> str:
    """Joins the first items, and says how many more there are."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join([*items[:_LISTED], *more])


def _report(folder: str) -> bool:
    """Prints what is wrong with a folder's images and classes; returns whether anything is."""
    dataset = FolderDataset(folder)
    everything = "+".join(dataset.splits)
    source = dataset.source(everything)
    problems = check(source, num_classes=len(dataset.class_names))
    empty = dataset.empty_classes("train" if "train" in dataset.splits else everything)
    for problem in problems:
        print(problem)
    for name in empty:
        print(f"class {name}: has no images to train on")
    print(
        f"{dataset.folder}: {len(source)} images in {len(dataset.class_names)} classes; "
        f"{len(problems)} images can't be used, {len(empty)} classes are empty"
    )
    return bool(problems or empty)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.data`."""
    parser = argparse.ArgumentParser(prog="python -m vit_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check", help="list the images of a folder that can't be decoded; status 1 if there are any"
    )
    checking.add_argument("directory", help="<class>/* or train|val|test/<class>/*")
    preparing = commands.add_parser("prepare", help="download and prepare a tfds data set")
    preparing.add_argument("name", help="tfds name, such as tf_flowers")
    preparing.add_argument("--data_dir", help="default: tfds's own, ~/tensorflow_datasets")
    converting = commands.add_parser("convert", help="TFRecord-prepared data to array_record files")
    converting.add_argument("directory", help="the folder that holds dataset_info.json")
    args = parser.parse_args(argv)
    try:
        if args.command == "check":
            sys.exit(1 if _report(args.directory) else 0)
        elif args.command == "prepare":
            prepare.prepare(args.name, args.data_dir)
        else:
            print(prepare.convert(args.directory))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
