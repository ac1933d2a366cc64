"""Where examples come from: a folder of images, a tfds data set, or a task of VTAB.

`open_dataset` opens a data set by its name. `open_source` opens a split of it: a `Source`, which
reads encoded examples by their indices. A further kind of data set is a class with the attributes
of `Dataset` and a line in `open_dataset`.
"""

from __future__ import annotations

import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from vit_jax.common.files import folders_beside
from vit_jax.common.messages import closest
from vit_jax.config.keys import is_folder
from vit_jax.data.builders import prepare, vtab
from vit_jax.data.splits import absolute_parts, default_splits, parse_split

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
JFT = ("jft", "jft300m", "jft_300m", "jft-300m")  # names, in small letters, of JFT-300M
_FOLDER_SEED = 0  # of the order inside a folder, which decides what `train[:85%]` holds
IN_MEMORY = "in-memory-"  # what the names of data that are not on disk begin with
T = TypeVar("T")


# -------------------------------------------------------------- examples, sources and data sets


class Example(NamedTuple):
    """An example as it is stored.

    Attributes:
      image: the bytes of an encoded image, such as a JPEG file's; or a decoded image, uint8 RGB
        (h, w, 3).
      label: the class, counted from 0; negative if the split has no labels.
      id: a name for messages, such as the file's path.
    """

    image: bytes | np.ndarray
    label: int
    id: str


class ExampleError(ValueError):
    """An example can't be used.

    Attributes:
      id: the example's id.
      reason: what is wrong with it, without a full stop.
    """

    def __init__(self, id: str, reason: str):
        super().__init__(id, reason)
        self.id, self.reason = id, reason

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


class Source(Protocol):
    """A sequence of examples that are read by index, by several threads at once.

    Reading raises `ExampleError` if the example can't be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Dataset(Protocol):
    """A set of images, each of one class.

    Attributes:
      class_names: the names of the classes, by label.
      splits: names of the splits, with their numbers of examples.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, int]

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as "train[:85%]" or "train+validation"."""
        ...


# -------------------------------------------------------------------------- a folder of images


class FolderSource:
    """Examples that are files.

    Attributes:
      files: the path and the label of each.
    """

    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, label = self.files[index]
        try:
            return Example(path.read_bytes(), label, str(path))
        except OSError as error:
            raise ExampleError(str(path), f"can't be read: {error.strerror or error}") from error


class FolderDataset:
    """Images in `<class>/*`, which are one split, "train", or in `train|val|test/<class>/*`.

    The order inside a split is a fixed permutation. Every slice of it holds all classes in their
    proportions, so that `train[:85%]` and `train[85%:]` are a stratified partition.

    Attributes:
      folder: the path of the folder.
      class_names: names of the class folders in alphabetical order, of all splits together.
      splits: names of the splits, with their numbers of images.

    Raises:
      FileNotFoundError: there is no such folder, or it has no images.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            hint = closest(str(root), folders_beside(root))
            raise FileNotFoundError(
                f"There is no folder {str(folder)!r} to read images from{hint}."
            )
        split_folders = [root / name for name in SPLIT_FOLDERS if (root / name).is_dir()]
        classes = {d.name for s in split_folders or [root] for d in s.iterdir() if d.is_dir()}
        self.class_names = tuple(sorted(name for name in classes if not name.startswith(".")))
        self._files = {
            split.name if split_folders else "train": self._stratified(split)
            for split in split_folders or [root]
        }
        self.splits: Mapping[str, int] = {name: len(files) for name, files in self._files.items()}
        if not sum(self.splits.values()):
            loose = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir())
            if loose:
                raise FileNotFoundError(
                    f"{root} holds images itself ({loose}), but no folders of them: each class "
                    f"needs a folder there that has the class's name, <class>/*."
                )
            raise FileNotFoundError(
                f"There are no images in {root}: expected <class>/* or train|val|test/<class>/* "
                f"with files named {', '.join(IMAGE_SUFFIXES)}."
            )

    def _stratified(self, folder: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        """Returns the files and labels below a folder, with the classes mixed evenly."""
        return mix_classes(
            [
                sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
                for name in self.class_names
            ]
        )

    def source(self, split: str) -> FolderSource:
        """Returns the examples of a split such as "train[:85%]" or "train+val".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = absolute_parts(split, self.splits)
        return FolderSource([x for p in parts for x in self._files[p.splitname][p.from_ : p.to]])


def mix_classes(classes: Sequence[Sequence[T]]) -> list[tuple[T, int]]:
    """Returns the members of some classes with their labels, in a fixed order that mixes classes.

    The members of a class are shuffled and spread evenly over [0, 1]; this sorts all classes. Every
    slice of the result holds all classes in their proportions.

    Args:
      classes: for each label the members of its class, in an order that is always the same.
    """
    rng = np.random.Generator(np.random.Philox(_FOLDER_SEED))
    ranked = []
    for label, members in enumerate(classes):
        order = enumerate(rng.permutation(len(members)))
        ranked += [((i + 0.5) / len(members), label, int(number)) for i, number in order]
    return [(classes[label][number], label) for _, label, number in sorted(ranked)]


# ---------------------------------------------------------------------- tfds data sets, and VTAB


class TfdsSource:
    """Examples that are records of a tfds data set.

    Args:
      records: the split's records, with images still encoded.
      read: takes a record, returns the image's bytes and the label.
      name: name of the data set and split, for the examples' ids.
    """

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
        image, label = self._read(self._records[index])
        return Example(image, label, f"{self._name} #{index}")


class TfdsDataset:
    """A tfds data set of images with class labels. It is prepared first if it is not yet.

    Args:
      name: tfds's name, with or without a config and a version.
      data_dir: tfds's folder. None for its default, see `open_dataset`.
      task: a task of VTAB, which says how to make image and label. None reads both from tfds
        features.

    Raises:
      ValueError: the data set does not have images with one class label each.
      DataError, FileNotFoundError, ImportError, ConnectionError: as `prepare.open_builder`.
    """

    def __init__(self, name: str, data_dir: str | None = None, task: vtab.Task | None = None):
        self._builder = prepare.open_builder(name, data_dir)
        info = self._builder.info
        features = dict(info.features)
        image_key, label_key = info.supervised_keys or ("image", "label")
        image_bytes_of, label = (task.image, task.label) if task else (bytes, label_key)
        labels = _named_labels(label, features) if isinstance(label, str) else label
        if not isinstance(features.get(image_key), tfds.features.Image) or not labels.names:
            raise ValueError(
                f"The tfds data set {name} can't be used for classification: it has the features "
                f"{', '.join(features)}, and an image with one class label is needed."
            )
        self._read = lambda record: (image_bytes_of(record[image_key]), int(labels.of(record)))
        self.class_names = labels.names
        self.splits: Mapping[str, int] = {
            split: info.splits[split].num_examples for split in info.splits
        }

    def source(self, split: str) -> TfdsSource:
        """Returns the examples of a split such as "train[:85%]" or "train+validation".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        info = self._builder.info
        images = [k for k, v in info.features.items() if isinstance(v, tfds.features.Image)]
        parse_split(split)  # its error says more than tfds's
        records = self._builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in images}
        )
        return TfdsSource(records, self._read, f"{info.full_name} {split}")


def _named_labels(key: str, features: Mapping[str, Any]) -> vtab.Labels:
    """Returns the classes of a feature. They have no names if the feature has none."""
    names = getattr(features.get(key), "names", None) or ()
    return vtab.Labels(tuple(names), operator.itemgetter(key))


# ------------------------------------------------------------------------------------- opening


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Returns the data set of a name.

    Args:
      name: a folder of images, see `config.keys.is_folder`; or "vtab/" and a task of `vtab.TASKS`;
        or the name of a tfds data set, such as "tf_flowers", "NAME/CONFIG" or "NAME:VERSION".
      data_dir: where tfds keeps prepared data. None for ~/tensorflow_datasets, its default.

    Raises:
      FileNotFoundError: there is no such folder, it has no images, or files of a data set are lost.
      ValueError: there is no such data set, it has no images with labels, or it is not public.
      ImportError: preparing the data set needs TensorFlow.
      ConnectionError: the data set can't be downloaded.
    """
    if is_folder(name):
        return FolderDataset(name)
    if name.lower() in JFT:
        raise ValueError(
            f"data.name={name}: JFT-300M is not public. To follow the recipe with data of your "
            f"own, let data.name be a folder of images or a tfds data set, and keep the rest."
        )
    if name.startswith(IN_MEMORY):
        raise ValueError(
            f"data.name={name} stands for images that a program gave to vit_jax.fit, and that are "
            f"not on disk: name a folder of images or a data set."
        )
    if name.startswith("vtab/"):
        task = vtab.task(name.removeprefix("vtab/"))
        return TfdsDataset(task.dataset, data_dir, task)
    return TfdsDataset(name, data_dir)


def open_source(dataset: Dataset, part: str, split: str | None = None) -> tuple[str, Source]:
    """Returns a split to train or to test on, and its examples.

    Args:
      dataset: what `open_dataset` returns.
      part: "train" or "test".
      split: a split such as "train[:85%]". None for the one that `default_splits` chooses.

    Raises:
      ValueError: the split's syntax is wrong, there is no such split, or it is empty.
    """
    if split is None:
        train, test = default_splits(dataset.splits)
        split = {"train": train, "test": test}[part]
    source = dataset.source(split)
    if not len(source):
        sizes = ", ".join(f"{name} has {n} images" for name, n in dataset.splits.items())
        raise ValueError(f"The split {split} is empty: {sizes}. Choose data.train and data.test.")
    return split, source
