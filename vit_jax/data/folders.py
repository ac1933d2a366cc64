"""A folder of images as a data set: a subfolder for each class, or for each split of classes."""

from __future__ import annotations

import bisect
import hashlib
import operator
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vit_jax.common.files import folders_beside, local_path
from vit_jax.common.messages import closest, first_few
from vit_jax.common.names import from_system, printable
from vit_jax.data.dataset import Dataset, Example, ExampleError, Label, ReadError, classes_of
from vit_jax.data.folder_layout import find_layout
from vit_jax.data.labels_file import find_labels
from vit_jax.data.reading import read_file
from vit_jax.data.splits import absolute_parts

# What `position_of` computes with. The key was chosen among the numbers up to 30,000. With it, of
# files that have only numbers as names, from 0 or from 1, one of the first three is in
# `train[85%:]`, and of the first n, for every n up to 1,000, n * 15 % within 2 files.
_KEY = b"12706"
_BLOCK = 32
_BYTES = 6
_RANGE = 256**_BYTES
_STEP = round(_RANGE * (5**0.5 - 1) / 2)  # the golden ratio: multiples are spread most evenly


def position_of(name: str) -> float:
    """Returns the position of a file in its folder's split, in [0, 1), from its name alone.

    The file is in `train[a%:b%]` if a/100 <= position < b/100, whatever other files there are. The
    name's suffix doesn't count, nor the form of its Unicode, nor the folder of its class.

    The position is a number times the golden ratio, plus a keyed hash, modulo 1. The number is the
    last one in the name. The hash is that of the rest of the name and of the block of 32 numbers
    which the number is in. So files that are numbered in sequence are spread evenly. Of n of them,
    the number in `train[85%:]` has the standard deviation 0.7 if n = 20, 1.1 if n = 100, 3.2 if
    n = 1,000, and 13 if n = 20,000, where independent positions give 1.6, 3.6, 11 and 50. Numbers
    in steps of 32 and more get independent positions. Those in smaller steps lie between: only for
    8, 13 and 21 the deviation is 1.3 to 1.4 times that of independent positions, else at most 1.15
    times. Other names get positions that are uniform and independent.

    Args:
      name: the file's name, without its folder.
    """
    stem = from_system(os.path.splitext(name)[0])
    found = re.fullmatch("(?s)(.*?)(?:([0-9]+)([^0-9]*))?", stem)
    before, digits, after = found.groups("") if found else (stem, "", "")
    number = int(digits or 0)
    text = f"{before}\0{after}\0{number // _BLOCK}".encode("utf-8", "surrogateescape")
    hashed = hashlib.blake2b(text, key=_KEY, digest_size=_BYTES).digest()
    return (int.from_bytes(hashed) + number * _STEP) % _RANGE / _RANGE


class FolderSource:
    """Examples that are files.

    Attributes:
      files: the path and the label of each.
      multi_label: see `dataset.is_multi_label`.
    """

    def __init__(self, files: Sequence[tuple[pathlib.Path, Label]], multi_label: bool = False):
        self.files, self.multi_label = files, multi_label

    def __reduce__(self) -> tuple[Any, ...]:
        # Texts are pickled in a tenth of the time of paths, of which there may be a million.
        files = [(str(path), label) for path, label in self.files]
        return _folder_source, (files, self.multi_label)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, label = self.files[index]
        try:
            return Example(read_file(path), label, printable(path))
        except ExampleError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
                raise ReadError(
                    printable(path),
                    "No such file. It was there when the folder was listed: put it back, or start "
                    "again without it.",
                ) from error
            raise


def _folder_source(files: Sequence[tuple[str, Label]], multi_label: bool) -> FolderSource:
    """Returns a pickled source again."""
    return FolderSource([(pathlib.Path(path), label) for path, label in files], multi_label)


class FolderDataset:
    """Images in `<class>/*`, which are one split, "train", or in `train|val|test/<class>/*`.

    Or images whose labels a file labels.csv gives, see `labels_file.find_labels`.

    A slice in per cent, such as `train[85%:]`, holds the files whose `position_of` is in it. So
    files that are added or removed move no other file from one slice to another. Files that are
    numbered in sequence are spread evenly over the slices. Of n other files of a class, a share s
    is n * s with the standard deviation of the binomial distribution, sqrt(n * s * (1 - s)). The
    order inside a split is that of the positions, of equal ones that of the labels, and then that
    of the paths in the folder. A slice in numbers, such as `train[:800]`, is counted in this order,
    and changes with the files.

    Attributes:
      folder: the path of the folder.
      class_names: names of the class folders, of all splits together, in alphabetical order. If all
        are numbers, they are in the order of numbers: 0, 1, 2, … 10. See `names.class_of_folder`.
        Or the labels in labels.csv, in the same order.
      splits: names of the splits that have images, with their numbers of images.
      name: the path of the folder.
      unused_images, other_files: what is not used, see `folder_layout.Layout`.
      multi_label: True if labels.csv gives an image several labels, or none, in some split. Then
        all labels are tuples.
      has_labels_file: True if the labels are those of a labels.csv.

    Raises:
      FileNotFoundError: there is no such folder, or it has no images.
      ReadError: a folder can't be read at the moment, see `reading.retry`.
      ValueError: it is not clear what the splits or classes are, see `find_layout` and
        `find_labels`; or `folder` can't be a path of this machine.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = root = local_path(folder)
        self.name = str(root)
        if not root.is_dir():
            hint = closest(str(root), folders_beside(root))
            raise FileNotFoundError(
                f"There is no folder {str(folder)!r} to read images from{hint}."
            )
        layout = find_labels(root) or find_layout(root)
        self.class_names = layout.class_names
        self.unused_images, self.other_files = layout.unused_images, layout.other_files
        self.has_labels_file = layout.has_labels_file
        labels = [x for files in layout.files.values() for _, x in files]
        self.multi_label = any(isinstance(x, tuple) for x in labels)
        self._files = {split: _order(files) for split, files in layout.files.items()}
        self.splits: Mapping[str, int] = {name: len(files) for name, files in self._files.items()}

    def count_images(self, split: str) -> dict[str, int]:
        """Returns {name of a class: number of its images in a split}, for every class."""
        counts = Counter(x for _, _, label in self._files[split] for x in classes_of(label))
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def describe(self) -> list[str]:
        """Returns a line for each split, with the images of its classes, and for the unused."""
        return describe_counts(self) + self.describe_labels() + self.describe_unused()

    def describe_labels(self) -> list[str]:
        """Returns a line on the labels if a labels.csv gives them."""
        how_many = "one or several an image, or none" if self.multi_label else "one class an image"
        return [f"labels: {how_many}, as labels.csv says"] * self.has_labels_file

    def describe_unused(self) -> list[str]:
        """Returns a line for each kind of images that aren't used, and one for all other files."""
        lines = [f"not used: {text}" for text in self.unused_images]
        return lines + ([f"no images: {self.other_files}"] if self.other_files else [])

    def source(self, split: str) -> FolderSource:
        """Returns the examples of a split such as "train[:85%]" or "train+val".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = self.parts(split)
        found = [x for p in parts for x in self._files[p.splitname][p.from_ : p.to]]
        return FolderSource([(path, label) for _, path, label in found], self.multi_label)

    def parts(self, split: str) -> list[Any]:
        """Returns the parts of a split, see `absolute_parts`."""
        return absolute_parts(split, self.splits, self._first_from)

    def _first_from(self, split: str, position: float) -> int:
        """Returns the number of the first file of a split that has at least a position."""
        return bisect.bisect_left(self._files[split], position, key=operator.itemgetter(0))


class CountedDataset(Dataset, Protocol):
    """A data set that knows the labels of all its images."""

    def count_images(self, split: str) -> dict[str, int]:
        """Returns {name of a class: number of its images in a split}, for every class."""
        ...


def describe_counts(dataset: CountedDataset) -> list[str]:
    """Returns a line for each split, with the images of its classes."""
    lines = []
    for split, images in dataset.splits.items():
        counts = [f"{name} {count}" for name, count in dataset.count_images(split).items()]
        lines.append(f"{split}: {images} images ({first_few(counts, most=10)})")
    return lines


def _order(files: Sequence[tuple[pathlib.Path, Label]]) -> list[tuple[float, pathlib.Path, Label]]:
    """Returns position, path and label of a split's files, sorted."""
    found = [(position_of(path.name), path, label) for path, label in files]
    return sorted(found, key=lambda x: (x[0], classes_of(x[2]), from_system(str(x[1]))))


def parts_of(dataset: Dataset, split: str) -> list[Any]:
    """Returns the parts of a split, see `absolute_parts`; those of a folder in its own way.

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    if isinstance(dataset, FolderDataset):
        return dataset.parts(split)
    return absolute_parts(split, dataset.splits)
