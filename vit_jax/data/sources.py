"""Data sets are opened here by their names: folders, Parquet files, tfds data sets, VTAB's tasks.

`open_dataset` opens a data set by its name. `open_source` opens a split of it: a `Source`, which
reads encoded examples by their indices.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from vit_jax.common.files import local_path
from vit_jax.common.names import printable
from vit_jax.config.keys import is_folder
from vit_jax.data.builders import prepare, vtab
from vit_jax.data.builders.record_files import INFO, PACK_FILE, system_errors
from vit_jax.data.dataset import Dataset, Example, ExampleError, Label, Source
from vit_jax.data.folders import FolderDataset
from vit_jax.data.parquet import ParquetDataset
from vit_jax.data.parquet_files import SUFFIXES, find_files
from vit_jax.data.reading import retry
from vit_jax.data.splits import default_splits, parse_split

logger = logging.getLogger(__name__)

JFT = ("jft", "jft300m", "jft_300m", "jft-300m")  # names, in small letters, of JFT-300M
IN_MEMORY = "in-memory-"  # what the names of data that are not on disk begin with


# ---------------------------------------------------------------------- tfds data sets, and VTAB


class TfdsSource:
    """Examples that are records of a tfds data set.

    Args:
      open_records: takes nothing, returns the split's records, with images still encoded. It is
        called again after a failure, since a reader that has failed once fails for ever.
      read: takes a record, returns the image's bytes and the label.
      name: name of the data set and split, for the examples' ids.
      files: the path of each file that the records are in, and the numbers of these records there.
      multi_label: see `dataset.is_multi_label`.
    """

    def __init__(
        self,
        open_records: Callable[[], Sequence[vtab.Record]],
        read: Callable[[vtab.Record], tuple[bytes, Label]],
        name: str,
        files: Sequence[tuple[str, range]],
        multi_label: bool = False,
    ):
        self._open_records, self._read, self._name, self._files = open_records, read, name, files
        self.multi_label = multi_label
        self._records = open_records()

    def __reduce__(self) -> tuple[type[TfdsSource], tuple[Any, ...]]:
        # Of the records, only how to open them: a copy in another process has its own reader.
        arguments = (self._open_records, self._read, self._name, self._files, self.multi_label)
        return TfdsSource, arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        id = f"{self._name} #{index}"

        def read() -> tuple[bytes, Label]:
            try:
                with system_errors():
                    return self._read(self._records[index])
            except (OSError, MemoryError):
                self._records = self._open_records()
                raise
            except Exception as error:  # tfds and its parts raise errors of many kinds
                cause = " ".join(str(error).split()).rstrip(".")
                raise ExampleError(id, f"{self._place(index)} is damaged: {cause}") from error

        image, label = retry(read, id)
        return Example(image, label, id)

    def _place(self, index: int) -> str:
        """Returns which record of which file an example is."""
        for path, numbers in self._files:
            if index < len(numbers):
                return f"record {numbers[index]} of {path}"
            index -= len(numbers)
        raise IndexError(index)


class TfdsDataset:
    """A tfds data set of images with class labels. It is prepared first if it is not yet.

    The labels are a feature of the kind `ClassLabel`, or `Sequence(ClassLabel)`, of which an image
    may have several.

    Args:
      name: tfds's name, with or without a config and a version; or the path of a version's folder.
      data_dir: tfds's folder. None for its default, see `open_dataset`.
      task: a task of VTAB, which says how to make image and label. None reads both from tfds
        features.

    Raises:
      ValueError: the data set does not have images with class labels.
      DataError, FileNotFoundError, ImportError, ConnectionError: as `prepare.open_builder`.
    """

    def __init__(self, name: str, data_dir: str | None = None, task: vtab.Task | None = None):
        self._builder = prepare.open_builder(name, data_dir)
        info = self._builder.info
        self.name = info.full_name  # with the config and the version
        features = dict(info.features)
        usual = "labels" if "labels" in features and "label" not in features else "label"
        image_key, label_key = info.supervised_keys or ("image", usual)
        image_bytes_of, label = (task.image, task.label) if task else (bytes, label_key)
        labels = _named_labels(label, features) if isinstance(label, str) else label
        self._multi_label = isinstance(label, str) and _is_sequence(features.get(label))
        if not isinstance(features.get(image_key), tfds.features.Image) or not labels.names:
            raise ValueError(
                f"The tfds data set {name} can't be used for classification: it has the features "
                f"{', '.join(features)}, and an image with a class label, or with a sequence of "
                f"them, is needed."
            )
        to_label: Callable[[Any], Label] = _to_tuple if self._multi_label else int
        self._read = lambda record: (image_bytes_of(record[image_key]), to_label(labels.of(record)))
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
        open_records = functools.partial(_open_records, self._builder, split, images)
        files = [
            (file.filename, range(file.skip, file.skip + file.take))
            for file in info.splits[split].file_instructions
        ]
        name = f"{self.name} {split}"
        return TfdsSource(open_records, self._read, name, files, self._multi_label)


def _open_records(
    builder: tfds.core.DatasetBuilder, split: str, images: Sequence[str]
) -> Sequence[vtab.Record]:
    """Returns the records of a split, with the features named `images` still encoded."""
    return builder.as_data_source(
        split, decoders={key: tfds.decode.SkipDecoding() for key in images}
    )


def _named_labels(key: str, features: Mapping[str, Any]) -> vtab.Labels:
    """Returns the classes of a feature. They have no names if the feature has none."""
    feature: Any = features.get(key)
    names = getattr(feature.feature if _is_sequence(feature) else feature, "names", None) or ()
    return vtab.Labels(tuple(names), operator.itemgetter(key))


def _is_sequence(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Sequence)


def _to_tuple(labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({int(x) for x in labels}))


# ------------------------------------------------------------------------------------- opening


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Returns the data set of a name. Of a folder it logs what is used, and what is not and why.

    Args:
      name: a path, see `config.keys.is_folder`: a folder of images, or of Parquet or Arrow files,
        or one such file, or a folder that tfds or `packing.pack` wrote; or "vtab/" and a task of
        `vtab.TASKS`; or the name of a tfds data set, such as "tf_flowers", "NAME/CONFIG" or
        "NAME:VERSION".
      data_dir: where tfds keeps prepared data. None for ~/tensorflow_datasets, its default.

    Raises:
      FileNotFoundError: there is no such folder, it has no images, or files of a data set are lost.
      ValueError: there is no such data set, it has no images with labels, or it is not public.
      ImportError: preparing the data set needs TensorFlow.
      ConnectionError: the data set can't be downloaded.
    """
    if is_folder(name) and (local_path(name) / INFO).is_file():
        return TfdsDataset(name)
    if is_folder(name):
        found = open_folder(name)
        for line in found.describe():
            logger.info("%s: %s", printable(name), line)
        return found
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


def open_folder(path: str) -> FolderDataset | ParquetDataset:
    """Returns the images of a folder, or, if there are none, of its Parquet and Arrow files.

    Args:
      path: a folder, or one such file.

    Raises:
      As `FolderDataset` and `ParquetDataset`.
    """
    root = local_path(path)
    if root.suffix.lower() in SUFFIXES and not root.is_dir():
        return ParquetDataset(root)
    try:
        return FolderDataset(path)
    except FileNotFoundError:
        if (root / INFO).is_file():
            raise ValueError(
                f"{printable(root)} holds a prepared data set, no images in folders. A run reads "
                f"it, and `python -m vit_jax.data check` doesn't."
            ) from None
        if (root / PACK_FILE).is_file():
            raise FileNotFoundError(
                f"{printable(root)} isn't packed to its end: start the same command, "
                f"`python -m vit_jax.data pack`, again."
            ) from None
        if not find_files(root):
            raise
        return ParquetDataset(root)


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
        message = f"The split {split} is empty: {sizes}. Choose data.train and data.test."
        if isinstance(dataset, FolderDataset):
            message += (
                f" A part in per cent of a folder's images is chosen by their names, and of few "
                f"images it may get none. Give {dataset.folder} folders of its own for both, "
                f"train/CLASS and test/CLASS, or take a larger part."
            )
        raise ValueError(message)
    return split, source
