"""A data set in memory: images as arrays, as Pillow images or as files, and their labels."""

from __future__ import annotations

import hashlib
import numbers
import os
import pathlib
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vit_jax.common.messages import first_few
from vit_jax.common.names import check_distinct, class_name
from vit_jax.config.keys import short_repr
from vit_jax.data import pixels
from vit_jax.data.dataset import Example
from vit_jax.data.reading import read_file
from vit_jax.data.sources import IN_MEMORY
from vit_jax.data.splits import absolute_parts, mix_classes

_Stored = np.ndarray | bytes | pathlib.Path  # uint8 RGB (h, w, 3), or an encoded image, or its file
_Member = tuple[tuple[_Stored, str], int]  # an image, its id, and the label
_PREFIX = {"train": "", "test": "test "}  # of what a message names, by the split
T = TypeVar("T")


class ArraySource:
    """Examples that are in memory, or are files.

    Attributes:
      examples: the image, id and label of each.
    """

    def __init__(self, examples: Sequence[_Member]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        (image, id), label = self.examples[index]
        if not isinstance(image, pathlib.Path):
            return Example(image, label, id)
        return Example(read_file(image), label, id)


class ArrayDataset:
    """Images and their labels, as the split "train", and perhaps others as the split "test".

    Arrays of uint8 are not copied. Other numbers and Pillow images are converted once. Files are
    read when their example is read. The order inside a split is fixed. It mixes the classes, see
    `splits.mix_classes`.

    Args:
      images: a NumPy array (n, h, w, 3), (n, h, w, 1) or (n, h, w); or a sequence of n arrays
        (h, w, 3), (h, w, 1) or (h, w), Pillow images, paths or encoded bytes, of any sizes.
        Integers are in 0…255. Floats are all in 0…1, or all in 0…255.
      labels: n whole numbers, 0 or more, or n texts. The classes are the distinct labels, sorted.
        A text is taken as the name of a folder would be, see `names.class_name`.
      test: images and labels of the same kinds, where each label is one of `labels`. Or the share
        of every class, above 0 and below 1, that is held out as the split "test": rounded to whole
        images, but at least one, and one stays at least. None for no split "test".

    Attributes:
      class_names: the labels of the classes, as texts, in their order.
      splits: names of the splits, with their numbers of images.
      name: stands for these data in a configuration. It ends with a hash of arrays, encoded images
        and labels. Of files it hashes the paths alone.

    Raises:
      ValueError: an image or a label can't be used; names the first one.
    """

    def __init__(self, images: Any, labels: Any, test: tuple[Any, Any] | float | None = None):
        data, share = {"train": (images, labels)}, None
        if isinstance(test, numbers.Real) and 0 < test < 1:
            share = float(test)
        elif isinstance(test, tuple | list) and len(test) == 2:
            data["test"] = (test[0], test[1])
        elif test is not None:
            raise ValueError(
                f"test={reprlib.repr(test)} must be a share of the images, above 0 and below 1, or "
                f"(images, labels): the accuracy is measured on them."
            )
        found = {part: _read_pair(*pair, _PREFIX[part]) for part, pair in data.items()}
        known = {label: None for label in found["train"][1]}
        others = dict.fromkeys(x for _, labels in found.values() for x in labels if x not in known)
        if others:
            raise ValueError(
                f"Of the test labels, {first_few(map(repr, others))} are none of the labels to "
                f"train on, so no image shows what they are. Both need the same kind of labels."
            )
        classes = sorted(known)
        white = _white([image for images, _ in found.values() for image in images])
        self.class_names = tuple(map(str, classes))
        self._examples: dict[str, list[_Member]] = {}
        for part, (items, values) in found.items():
            members: list[list[tuple[_Stored, str]]] = [[] for _ in classes]
            number = {label: i for i, label in enumerate(classes)}
            for i, (item, value) in enumerate(zip(items, values, strict=True)):
                id = f"{_PREFIX[part]}images[{i}]"
                members[number[value]].append(_stored(item, id, white))
            self._examples[part] = mix_classes(members)
        if share is not None:
            self._examples = _hold_out(self._examples["train"], share, self.class_names)
        self.splits: Mapping[str, int] = {name: len(x) for name, x in self._examples.items()}
        self.name = IN_MEMORY + self._hash()

    def source(self, split: str) -> ArraySource:
        """Returns the examples of a split such as "train[:85%]" or "train+test".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = absolute_parts(split, self.splits)
        return ArraySource([x for p in parts for x in self._examples[p.splitname][p.from_ : p.to]])

    def encoded(self, split: str) -> ArraySource:
        """Returns the examples of a split that have to be decoded: the files and the bytes."""
        examples = self.source(split).examples
        return ArraySource([x for x in examples if not isinstance(x[0][0], np.ndarray)])

    def _hash(self) -> str:
        found = hashlib.sha256(repr(self.class_names).encode())
        for part, examples in self._examples.items():
            for (image, _), label in examples:
                if isinstance(image, np.ndarray):
                    found.update(f"{part} {label} {image.shape}".encode())
                    found.update(np.ascontiguousarray(image).data)
                else:
                    found.update(f"{part} {label} {image!r}".encode())
        return found.hexdigest()[:16]


def _hold_out(
    examples: Sequence[_Member], share: float, class_names: Sequence[str]
) -> dict[str, list[_Member]]:
    """Returns examples without the last ones of every class, "train", and these, "test"."""
    left = Counter(label for _, label in examples)
    if single := [name for label, name in enumerate(class_names) if left[label] == 1]:
        raise ValueError(
            f"Of these classes there is only one image, which can't be both trained on and held "
            f"out for the test: {first_few(single)}. Give more images of them, or leave them out, "
            f"or give test=(images, labels)."
        )
    held_out = {label: min(max(1, round(share * n)), n - 1) for label, n in left.items()}
    parts: dict[str, list[_Member]] = {"train": [], "test": []}
    for example in examples:
        label = example[1]
        parts["train" if left[label] > held_out[label] else "test"].append(example)
        left[label] -= 1
    return parts


# ---------------------------------------------------------------------------- what a user gives


def _read_pair(images: Any, labels: Any, prefix: str) -> tuple[list[Any], list[Any]]:
    """Returns n images, in which numbers are NumPy arrays, and their n labels."""
    items, values = _read_images(images, f"{prefix}images"), _read_labels(labels, f"{prefix}labels")
    if len(items) != len(values):
        raise ValueError(
            f"There are {len(items)} {prefix}images and {len(values)} {prefix}labels: each image "
            f"needs one label."
        )
    return items, values


def _read_images(images: Any, name: str) -> list[Any]:
    if hasattr(images, "__array__"):  # also a tensor or a column of another library
        array = np.asarray(images)
        images = array.tolist() if array.dtype.kind in "OU" else array
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        raise ValueError(
            f"{name}={short_repr(images)} is a single one: give a sequence of several. To train on "
            f"a folder, take vit_jax.train with config.data.name."
        )
    items = _members(images, name)
    if not items:
        raise ValueError(f"{name} is empty: there is nothing to train on or to test on.")
    return [
        x if isinstance(x, str | os.PathLike | bytes | Image.Image) else np.asarray(x)
        for x in items
    ]


def _read_labels(labels: Any, name: str) -> list[Any]:
    if labels is None:
        raise ValueError(f"{name} is None: each image needs a label, a whole number or a text.")
    values = _members(labels.tolist() if hasattr(labels, "tolist") else labels, name)
    values = [x.item() if isinstance(x, np.generic) else x for x in values]
    kind: Any = str if values and isinstance(values[0], str) else int
    for i, x in enumerate(values):
        if not isinstance(x, kind) or isinstance(x, bool) or (kind is int and x < 0):
            raise ValueError(
                f"{name}[{i}] is {short_repr(x)}: labels must be all whole numbers, 0 or more, or "
                f"all texts. Of one-hot labels take labels.argmax(1)."
            )
    if kind is int:
        return values
    check_distinct(values, name)
    return [class_name(x) for x in values]


def _members(values: Any, name: str) -> list[Any]:
    """Returns the members of a sequence."""
    try:
        if isinstance(values, str | bytes | Mapping | Set):
            raise TypeError
        return list(values)
    except TypeError:
        raise ValueError(
            f"{name}={reprlib.repr(values)} is no sequence: give an array or a list, with a member "
            f"for each image."
        ) from None


def _white(images: list[Any]) -> float:
    """Returns the value that white has in the arrays of floats among some images: 1 or 255.

    Up to 2, values are taken for slips above 1, which `from_array` then refuses.
    """
    floats = (x for x in images if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.size)
    return 1.0 if all(x.max() <= 2 for x in floats) else 255.0


def _stored(image: Any, id: str, white: float) -> tuple[_Stored, str]:
    """Returns an image as it is stored, and its id for messages."""
    if isinstance(image, bytes):
        return image, id
    if isinstance(image, str | os.PathLike):
        path = pathlib.Path(os.path.expanduser(image))
        return path, str(path)
    if isinstance(image, Image.Image):
        try:
            return pixels.from_pillow(image), id
        except (OSError, ValueError) as error:  # OSError: its file is damaged
            raise ValueError(f"{id} can't be used: {error}") from error
    try:
        return pixels.from_array(image, white), id
    except ValueError as error:
        raise ValueError(f"{id} {error}") from error
