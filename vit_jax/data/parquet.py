"""Images in Parquet and Arrow files, as Hugging Face's `datasets` and its hub store them."""

from __future__ import annotations

import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.common.files import local_path
from vit_jax.common.names import class_name, printable
from vit_jax.data.dataset import Example, Label, classes_of
from vit_jax.data.folder_layout import sort_classes
from vit_jax.data.folders import describe_counts
from vit_jax.data.parquet_files import (
    LABEL_NAMES,
    File,
    RowGroups,
    find_splits,
    open_file,
    read_labels,
)
from vit_jax.data.splits import absolute_parts, mix_classes


class ParquetSource:
    """Examples that are rows of Parquet or Arrow files.

    Of a Parquet file, a row group is read and decoded whole, and row groups of 1 GiB together stay
    in memory. So data that are larger, in large row groups, are read slowly in random order.

    Attributes:
      labels: of each row.
      multi_label: see `dataset.is_multi_label`.
    """

    def __init__(
        self, groups: RowGroups, rows: Sequence[int], labels: Sequence[Label], multi_label: bool
    ):
        self._groups, self._rows, self.labels = groups, rows, labels
        self.multi_label = multi_label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        image, id = self._groups.read_image(self._rows[index])
        return Example(image, self.labels[index], id)

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the indices in a random order that is quick to read, see `RowGroups.shuffled`."""
        return self._groups.shuffled(self._rows, rng)


class ParquetDataset:
    """The images of a Parquet or Arrow file, or of those of a folder and of its subfolders.

    A row is an image: a column holds its encoded bytes, alone or in a struct {bytes, path}, and
    another its label: a number or text, or a list of them. The names of the classes are those that
    `datasets` has written into the schema. Else they are the labels, as names of folders would be.

    A file's split is the one that a word of its name says, such as train-00000-of-00002.parquet, or
    a folder that it is in. If none says one, all are the split "train". A slice of a split, such as
    `train[85%:]`, has all classes in their proportions, see `splits.mix_classes`.

    Attributes:
      folder: the path of the file or folder.
      class_names: by label.
      splits: names of the splits, with their numbers of images.
      name: the path of the file or folder.
      content: stands for the names of the files and all labels, wherever the files are.
      multi_label: True if an image has several labels, or none. Then all labels are tuples.

    Raises:
      FileNotFoundError: there is no such file, or no split with labels.
      ImportError: pyarrow is not installed.
      ReadError: a file can't be read at the moment, see `reading.retry`.
      ValueError: a file is damaged, or it is not clear which column has the images or labels.
    """

    def __init__(self, path: str | pathlib.Path):
        self.folder = root = local_path(path)
        self.name = str(root)
        paths, self._unused = find_splits(root)
        files: list[File] = []
        found: list[Any] = []
        counts: dict[str, int] = {}
        for split, of_split in paths.items():
            opened = [open_file(x) for x in of_split]
            labels = [x for file in opened for x in read_labels(file)]
            if any(x is not None for x in labels):
                files += opened
                found += labels
                counts[split] = len(labels)
            else:
                self._unused.append(f"{len(labels)} images in {split}, a split without labels")
        if not found:
            raise FileNotFoundError(
                f"There are no images with labels in {printable(root)}: the labels must be in a "
                f"column called {', '.join(LABEL_NAMES)}, or in one of classes, as `datasets` "
                f"writes it."
            )
        names = {file.columns.class_names for file in files}
        if len(names) > 1:
            raise ValueError(
                f"{printable(files[0].path)} and other Parquet files beside it have different "
                f"classes: put those of another data set into a folder of its own."
            )
        self.class_names, self._labels = _number(found, names.pop())
        self.multi_label = any(isinstance(x, tuple) for x in self._labels)
        self.splits: Mapping[str, int] = counts
        self._groups = RowGroups(files)
        self._order, start = {}, 0
        for split, count in self.splits.items():
            self._order[split] = self._mix(range(start, start + count))
            start += count
        content = repr(([x.path.name for x in files], self.class_names, self._labels))
        self.content = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _mix(self, rows: Sequence[int]) -> list[int]:
        """Returns the rows of a split in the order that slices are counted in."""
        classes: dict[Label, list[int]] = {}
        for row in rows:
            classes.setdefault(self._labels[row], []).append(row)
        return [
            row for row, _ in mix_classes([classes[x] for x in sorted(classes, key=classes_of)])
        ]

    def count_images(self, split: str) -> dict[str, int]:
        """Returns {name of a class: number of its images in a split}, for every class."""
        counts = Counter(x for row in self._order[split] for x in classes_of(self._labels[row]))
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def describe(self) -> list[str]:
        """Returns a line for each split, for what is not used, and if images are read slowly."""
        return describe_counts(self) + self.describe_unused() + self._groups.describe()

    def describe_unused(self) -> list[str]:
        """Returns a line for each kind of images that aren't used."""
        return [f"not used: {text}" for text in self._unused]

    def source(self, split: str) -> ParquetSource:
        """Returns the examples of a split such as "train[:85%]" or "train+test".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = absolute_parts(split, self.splits)
        # In the order of the file, so that an evaluation reads each row group once.
        rows = [row for p in parts for row in sorted(self._order[p.splitname][p.from_ : p.to])]
        labels = [self._labels[row] for row in rows]
        return ParquetSource(self._groups, rows, labels, self.multi_label)


def _number(
    labels: Sequence[Any], class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[Label]]:
    """Returns the names of the classes, and the labels as numbers, or as tuples of them.

    Args:
      labels: as they are stored: each is one or a list of them, or None, which becomes -1.
      class_names: the classes, if labels are their numbers.
    """
    several = any(isinstance(x, list) and len(x) != 1 for x in labels)
    found = [x if isinstance(x, list) else [] if x is None else [x] for x in labels]
    if class_names is None:
        texts = [[class_name(str(x).strip()) for x in values] for values in found]
        class_names = sort_classes({x for values in texts for x in values})
        number = {name: i for i, name in enumerate(class_names)}
        found = [[number[x] for x in values] for values in texts]
    if several:
        return class_names, [tuple(sorted(set(values))) for values in found]
    return class_names, [values[0] if values else -1 for values in found]
