"""A folder of images as a data set: a subfolder for each class, or for each split of classes."""

from __future__ import annotations

import bisect
import hashlib
import operator
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.common.files import folders_beside
from vit_jax.common.messages import closest, first_few
from vit_jax.common.names import printable
from vit_jax.data.dataset import Example, ExampleError, ReadError
from vit_jax.data.folder_layout import find_layout
from vit_jax.data.reading import read_file
from vit_jax.data.splits import absolute_parts

# What `position_of` computes with. The key can be any. With this one, of three files that are
# numbered from 0, one is in `train[85%:]`.
_KEY = b"1000"
_BYTES = 6
_RANGE = 256**_BYTES
_STEP = round(_RANGE * (5**0.5 - 1) / 2)  # the golden ratio: multiples are spread most evenly


def position_of(name: str) -> float:
    """Returns the position of a file in its folder's split, in [0, 1), from its name alone.

    The file is in `train[a%:b%]` if a/100 <= position < b/100, whatever other files there are. The
    name's suffix doesn't count, nor the form of its Unicode, nor the folder of its class.

    The position is a keyed hash of the name without its last number, plus this number times the
    golden ratio, modulo 1. So files that are numbered in sequence are spread evenly: of thousands,
    a part of the split holds its share within 5 files. Other names get positions that are uniform
    and independent.

    Args:
      name: the file's name, without its folder.
    """
    stem = unicodedata.normalize("NFC", os.path.splitext(name)[0])
    number = (re.findall("[0-9]+", stem) or [""])[-1]
    before, _, after = stem.rpartition(number) if number else (stem, "", "")
    text = os.fsencode(f"{before}\0{after}")
    hashed = hashlib.blake2b(text, key=_KEY, digest_size=_BYTES).digest()
    return (int.from_bytes(hashed) + int(number or 0) * _STEP) % _RANGE / _RANGE


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
            return Example(read_file(path), label, printable(path))
        except ExampleError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
                raise ReadError(
                    printable(path),
                    "No such file. It was there when the folder was listed: put it back, or start "
                    "again without it.",
                ) from error
            raise


class FolderDataset:
    """Images in `<class>/*`, which are one split, "train", or in `train|val|test/<class>/*`.

    A slice in per cent, such as `train[85%:]`, holds the files whose `position_of` is in it. So
    files that are added or removed move no other file from one slice to another. Files that are
    numbered in sequence are spread evenly over the slices. Of n other files of a class, a share s
    is n * s with the standard deviation of the binomial distribution, sqrt(n * s * (1 - s)). The
    order inside a split is that of the positions. A slice in numbers, such as `train[:800]`, is
    counted in this order, and changes with the files.

    Attributes:
      folder: the path of the folder.
      class_names: names of the class folders, of all splits together, in alphabetical order. If all
        are numbers, they are in the order of numbers: 0, 1, 2, … 10. See `names.class_of_folder`.
      splits: names of the splits that have images, with their numbers of images.
      left_out, passed_over: what is not used, see `folder_layout.Layout`.

    Raises:
      FileNotFoundError: there is no such folder, or it has no images.
      ValueError: it is not clear what the splits or classes are, see `find_layout`.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = root = pathlib.Path(os.path.expanduser(folder))
        if not root.is_dir():
            hint = closest(str(root), folders_beside(root))
            raise FileNotFoundError(
                f"There is no folder {str(folder)!r} to read images from{hint}."
            )
        layout = find_layout(root)
        self.class_names = layout.class_names
        self.left_out, self.passed_over = layout.left_out, layout.passed_over
        self._files = {split: self._order(files) for split, files in layout.files.items()}
        self.splits: Mapping[str, int] = {name: len(files) for name, files in self._files.items()}

    def _order(
        self, files: Mapping[str, Sequence[pathlib.Path]]
    ) -> list[tuple[float, pathlib.Path, int]]:
        """Returns position, path and label of a split's files, of {class: paths}, sorted."""
        found = [
            (position_of(path.name), path, label)
            for label, name in enumerate(self.class_names)
            for path in files.get(name, ())
        ]
        return sorted(found, key=lambda file: (file[0], str(file[1])))

    def count_images(self, split: str) -> dict[str, int]:
        """Returns {name of a class: number of its images in a split}, for every class."""
        counts = Counter(label for _, _, label in self._files[split])
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def describe(self) -> list[str]:
        """Returns a line for each split, with the images of its classes, and for the unused."""
        lines = []
        for split, images in self.splits.items():
            counts = [f"{name} {count}" for name, count in self.count_images(split).items()]
            lines.append(f"{split}: {images} images ({first_few(counts, most=10)})")
        return lines + self.describe_unused()

    def describe_unused(self) -> list[str]:
        """Returns a line for each kind of images that aren't used, and one for all other files."""
        lines = [f"not used: {text}" for text in self.left_out]
        return lines + ([f"no images: {self.passed_over}"] if self.passed_over else [])

    def source(self, split: str) -> FolderSource:
        """Returns the examples of a split such as "train[:85%]" or "train+val".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = self.parts(split)
        found = [x for p in parts for x in self._files[p.splitname][p.from_ : p.to]]
        return FolderSource([(path, label) for _, path, label in found])

    def parts(self, split: str) -> list[Any]:
        """Returns the parts of a split, see `absolute_parts`."""
        return absolute_parts(split, self.splits, self._first_from)

    def _first_from(self, split: str, position: float) -> int:
        """Returns the number of the first file of a split that has at least a position."""
        return bisect.bisect_left(self._files[split], position, key=operator.itemgetter(0))
