"""What every data set is made of: examples, in sources, one a split.

A further kind of data set is a class with the attributes of `Dataset`, and a line in
`sources.open_dataset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

Label = int | tuple[int, ...]  # one class; or all classes of an image, sorted


class Example(NamedTuple):
    """An example as it is stored.

    Attributes:
      image: the bytes of an encoded image, such as a JPEG file's; or a decoded image, uint8 RGB
        (h, w, 3).
      label: the class, counted from 0; negative if the split has no labels. Where images have
        several labels, or none, see `is_multi_label`, the classes of all of them, as a tuple.
      id: a name for messages, such as the file's path.
    """

    image: bytes | np.ndarray
    label: Label
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


class ReadError(OSError):
    """An example or a folder can't be read, and nothing shows that it is damaged.

    Args:
      id: the example's id, or the folder's path.
      reason: one sentence or several.
      permanent: True if every further attempt would fail, too.

    Attributes:
      id, reason, permanent: as above.
    """

    def __init__(self, id: str, reason: str, *, permanent: bool = False):
        super().__init__(f"{id} can't be read: {reason}")
        self.id, self.reason, self.permanent = id, reason, permanent

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadError, (self.id, self.reason), vars(self)


class Source(Protocol):
    """A sequence of examples that are read by index, by several threads at once.

    Reading raises `ExampleError` if the example is damaged, and `ReadError` if it can't be read for
    another reason, which may be transient. A source whose labels are tuples has an attribute
    `multi_label`, which is True.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def is_multi_label(source: Source) -> bool:
    """Returns True if the images of a source may have several labels, or none."""
    return getattr(source, "multi_label", False)


def classes_of(label: Label) -> tuple[int, ...]:
    """Returns the classes of an example's label."""
    return label if isinstance(label, tuple) else (label,)


class Dataset(Protocol):
    """A set of images with labels.

    Attributes:
      name: stands for these images, and for no others: a run that is resumed compares it.
      class_names: the names of the classes, by label.
      splits: names of the splits, with their numbers of examples.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, int]

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as "train[:85%]" or "train+validation"."""
        ...
