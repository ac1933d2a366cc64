"""Data sets that name classes of which they have no images."""

from __future__ import annotations

from collections.abc import Sequence

from vit_jax.data.dataset import Dataset, Example, ExampleError, Source, classes_of

# tfds gives them the 1,000 classes of ImageNet-1k. 200 have images.
_NAME_MORE_CLASSES = ("imagenet_a", "imagenet_r")


class RelabelledSource:
    """Examples of a source whose labels count only some of its classes.

    Args:
      source: the examples.
      labels: those of the classes that are counted, sorted.
    """

    def __init__(self, source: Source, labels: Sequence[int]):
        self._source = source
        self._new = {label: new for new, label in enumerate(labels)}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        (label,) = classes_of(example.label)
        return example._replace(label=self._new[label])


def without_empty_classes(dataset: Dataset, source: Source) -> tuple[tuple[str, ...], Source]:
    """Returns the names of the classes that a data set has images of, and its examples.

    Of tfds's `imagenet_a` and `imagenet_r` all records of the split are read to find the classes.
    Other data sets are returned as they are: a class may have no images in a split, and be one of
    the answers that are possible.

    Args:
      dataset: the data set that is opened.
      source: examples of one of its splits.
    """
    if dataset.name.split("/")[0] not in _NAME_MORE_CLASSES:
        return tuple(dataset.class_names), source
    found: set[int] = set()
    for index in range(len(source)):
        try:
            found.update(classes_of(source[index].label))
        except ExampleError:  # the evaluation reads it again, and stops or skips it
            continue
    labels = sorted(found)
    return tuple(dataset.class_names[x] for x in labels), RelabelledSource(source, labels)
