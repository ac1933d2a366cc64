"""Data sets: a folder of images, a tfds data set, or a task of VTAB."""

from __future__ import annotations

import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from vit_jax.data.builders import prepare, vtab
from vit_jax.data.splits import absolute_parts, default_splits, parse_split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
_JFT = ("jft", "jft300m", "jft_300m", "jft-300m")
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
        parts = absolute_parts(split, self.splits)
        return _FolderSource([x for p in parts for x in self._files[p.splitname][p.from_ : p.to]])

    def empty_classes(self, split: str) -> list[str]:
        """Returns the names of the classes without an image where a split is a part of.

        That is all of train/ for `train[:85%]`. Raises ValueError for a split that there is not.
        """
        parts = absolute_parts(split, self.splits)
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
