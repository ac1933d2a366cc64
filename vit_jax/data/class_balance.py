"""What is done about classes that have fewer images than others: weights in the loss, sampling."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import grain
import numpy as np
from ml_collections import ConfigDict

from vit_jax.common.class_tables import read_class_table
from vit_jax.common.files import local_path
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.data.arrays import ArraySource
from vit_jax.data.dataset import ExampleError, Label, Source, classes_of, is_multi_label
from vit_jax.data.folders import FolderSource
from vit_jax.data.read_ahead import read_all

logger = logging.getLogger(__name__)

SAMPLING = ("uniform", "balanced")  # what `config.data.sampling` takes


def class_weights(
    options: ConfigDict, source: Source, class_names: Sequence[str]
) -> tuple[float, ...] | None:
    """Returns the weight of each class in the loss, by label, and logs them; None for no weights.

    The mean of the weights over the examples is 1. "balanced" gives n / (c * m) to a class with m
    of n examples, if c classes have any, as scikit-learn's `class_weight` does. The weight of a
    class without examples is never used, and is 0.

    Args:
      options: `config.data`.
      source: the examples to train on. Their labels are read, see `labels_of`.
      class_names: by label.

    Raises:
      ValueError: the file of the weights can't be used, or all examples have the weight 0, or see
        `labels_of`.
      FileNotFoundError: there is no such file.
    """
    how = options.class_weights
    if how == "none":
        return None
    labels = [x for x in labels_of(source, options) if x is not None]
    if wrong := [x for x in labels if not 0 <= x < len(class_names)]:
        raise ValueError(
            f"data.class_weights: an image to train on has the label {wrong[0]}, but there are "
            f"{len(class_names)} classes, counted from 0. A split without labels can't be trained "
            f"on: name another one as data.train."
        )
    counts = np.bincount(labels, minlength=len(class_names))
    if how == "balanced":
        weights = np.where(counts, 1 / np.maximum(counts, 1), 0)
    else:
        path = local_path(how)
        weights = np.array(
            read_class_table(
                path, class_names, key="data.class_weights", column="weight", convert=_weight
            )
        )
        if not weights @ counts:
            raise ValueError(
                f"{printable(path)} gives the weight 0 to every class that has images to train on: "
                f"give at least one of them a weight above 0."
            )
    weights *= counts.sum() / (weights @ counts)
    named = [f"{printable(n)} {w:.3g}" for n, w in zip(class_names, weights, strict=True)]
    logger.info("weights of the classes in the loss: %s", first_few(named, 10))
    return tuple(map(float, weights))


def _weight(text: str) -> float:
    """Returns the weight that a cell of a CSV file holds."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{text!r} is no weight: give a number of 0 or more, such as 0.5")
    return weight


def balanced_order(
    source: Source, options: ConfigDict, seed: int, slots: grain.MapDataset
) -> grain.MapDataset:
    """Returns the indices of examples in an endless order in which all classes are equally often.

    In an epoch, the numbers of two classes differ by 1 at most, if there are at least as many
    examples as classes. A class goes through all of its examples in random order before it begins
    again.

    Args:
      source: the examples. Their labels are read, see `labels_of`.
      options: `config.data`.
      seed: of the order within each class.
      slots: the numbers 0 … n - 1 of n examples, shuffled and repeated without an end. They say
        where in an epoch the classes are.

    Raises:
      ValueError: see `labels_of`.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels_of(source, options)):
        if label is not None:
            members.setdefault(label, []).append(index)
    orders = [
        grain.MapDataset.source(members[label]).seed((seed + i) % 2**32).shuffle().repeat()
        for i, label in enumerate(sorted(members))
    ]

    def index_at(position: int, slot: int) -> int:
        epoch = position // len(source)
        turn, which = divmod(epoch * len(source) + slot, len(orders))
        return orders[which][turn]

    return slots.map_with_index(index_at)


def labels_of(source: Source, options: ConfigDict) -> list[int | None]:
    """Returns the label of each example, None for those that are skipped because they are damaged.

    No image of a folder or of arrays is read. Of other sources all records are, but no image is
    decoded.

    Args:
      source: the examples.
      options: `config.data`; reads `on_error`.

    Raises:
      ValueError: images may have several labels; or an example is damaged, and isn't to be skipped.
      ReadError: an example can't be read at the moment.
    """
    if is_multi_label(source):
        raise ValueError(
            "data.class_weights and data.sampling='balanced' are for data with one label an image, "
            "and these images can have several, or none: set data.class_weights='none' and "
            "data.sampling='uniform'."
        )
    if isinstance(source, FolderSource):
        return [_one(label) for _, label in source.files]
    if isinstance(source, ArraySource):
        return [_one(label) for _, label in source.examples]

    def read(index: int) -> tuple[int | None]:
        try:
            return (_one(source[index].label),)
        except ExampleError:
            if options.on_error != "skip":
                raise
            return (None,)

    logger.info("reading the labels of %d examples", len(source))
    return [x for (x,) in read_all(grain.MapDataset.range(len(source)).map(read))]


def _one(label: Label) -> int:
    """Returns the class of an example that has one."""
    (one,) = classes_of(label)
    return int(one)
