"""Splits of a data set, in the syntax of tfds: parsed, chosen, divided, counted; their order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds

_SEED = 0  # of the order inside a split
T = TypeVar("T")


def parse_split(split: str) -> tfds.core.ReadInstruction:
    """Returns a split as tfds reads it.

    Args:
      split: a text such as "train", "train[:85%]" or "train[:800]+validation".

    Raises:
      ValueError: the syntax is wrong; the message gives examples.
    """
    try:
        return tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{split!r} is not a split: write one like 'train', 'train[:85%]', "
            f"'train[800:1000]' or 'train+validation'."
        ) from error


def absolute_parts(
    split: str,
    splits: Mapping[str, int],
    first_from: Callable[[str, float], int] | None = None,
) -> list[Any]:
    """Returns the parts of a split, which a "+" separates, with percentages as numbers of examples.

    Args:
      split: a text such as "train[:85%]+validation".
      splits: names of the data set's splits, with their numbers of examples.
      first_from: (name, share) -> the number of the first example after this share of the split of
        this name. None rounds the share of the number of examples, as tfds does.

    Returns:
      For each part an object with `splitname`, and `from_` and `to`: the numbers of its first
      example and of the one after its last, or None at an end of the named split.

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    return [_absolute(part, splits, first_from) for part in _parts(split, splits)]


def _absolute(
    part: tfds.core.ReadInstruction,
    splits: Mapping[str, int],
    first_from: Callable[[str, float], int] | None = None,
) -> Any:
    """Returns one part of `absolute_parts`."""
    name = part.split_name
    if first_from and part.unit == "%" and name in splits:  # of another name, tfds says what it is
        start, end = (first_from(name, x / 100) for x in _percentages(part))
        part = tfds.core.ReadInstruction(name, start, end)
    infos = [tfds.core.SplitInfo(name=x, shard_lengths=[n], num_bytes=0) for x, n in splits.items()]
    [found] = part.to_absolute(tfds.core.splits.SplitDict(infos))
    return found


def is_sliced(split: str) -> bool:
    """Returns True if some part of a split has borders, as "train[:85%]" has."""
    return any((part.from_, part.to) != (None, None) for part in _parts(split, ()))


def _parts(split: str, names: Iterable[str]) -> list[tfds.core.ReadInstruction]:
    """Returns the parts of a split as tfds reads them; "all" stands for the splits of `names`."""
    parse_split(split)
    found: list[tfds.core.ReadInstruction] = []
    for text in re.split(r"\s*\+\s*", split):
        all_splits = [tfds.core.ReadInstruction(name) for name in names]
        found += all_splits if text == "all" else [parse_split(text)]
    return found


def _percentages(part: tfds.core.ReadInstruction) -> tuple[float, float]:
    """Returns the borders, 0 to 100, of a part that is whole or in per cent."""
    start, end = (x if x is None or x >= 0 else 100 + x for x in (part.from_, part.to))
    return start or 0, 100 if end is None else end


def borders(part: Any, splits: Mapping[str, int]) -> tuple[int, int]:
    """Returns the numbers of the first example of a part, and of the one after its last.

    Args:
      part: one of `absolute_parts`.
      splits: names of the data set's splits, with their numbers of examples.
    """
    return part.from_ or 0, splits[part.splitname] if part.to is None else part.to


def count_shared(parts: Sequence[Any], others: Sequence[Any], splits: Mapping[str, int]) -> int:
    """Returns the number of examples that two splits share, from their `absolute_parts`.

    Args:
      parts: of the one, without overlaps.
      others: of the other, without overlaps.
      splits: names of the data set's splits, with their numbers of examples.
    """
    found = 0
    for a, b in itertools.product(parts, others):
        if a.splitname == b.splitname:
            (start, end), (other_start, other_end) = borders(a, splits), borders(b, splits)
            found += max(0, min(end, other_end) - max(start, other_start))
    return found


def split_size(split: str, splits: Mapping[str, int]) -> int:
    """Returns the number of examples in a split. Arguments and errors: see `absolute_parts`.

    Of a folder, take `len(dataset.source(split))`: its parts in per cent aren't exact.
    """
    parts = (borders(part, splits) for part in absolute_parts(split, splits))
    return sum(end - start for start, end in parts)


def own_test_split(splits: Iterable[str]) -> str | None:
    """Returns the name of a data set's test split, or else of its validation split, or None."""
    names = set(splits)
    return next((name for name in ("test", "validation", "valid", "val") if name in names), None)


def default_splits(splits: Iterable[str]) -> tuple[str, str]:
    """Returns the (train, test) splits of a data set for a configuration that names none.

    The test split is `own_test_split`. If there is none, it is `train[85%:]`, and the rest is the
    training split: of a folder about 15 % of the images, see `folders.position_of`, else exactly
    the last 15 %.
    """
    own = own_test_split(splits)
    return ("train[:85%]", "train[85%:]") if own is None else ("train", own)


def hold_out(
    split: str, share: float, splits: Mapping[str, int], *, by_position: bool = False
) -> tuple[str, str]:
    """Returns a split without its last examples, and these as a split of their own.

    Args:
      split: a text such as "train[:90%]" or "train+validation". Each part of it is divided.
      share: the part of the examples to hold out, in (0, 1). It is rounded to whole examples; one
        is held out at least, and one stays at least.
      splits: names of the data set's splits, with their numbers of examples.
      by_position: True for a folder, whose files are divided by their names, see
        `folders.position_of`. Then a part that is whole or in per cent is divided in per cent, and
        nothing is rounded.

    Raises:
      ValueError: a part has fewer than two examples; or as `absolute_parts`.
    """
    kept, held = [], []
    for part in _parts(split, splits):
        if by_position and (part.unit == "%" or (part.from_, part.to) == (None, None)):
            start, end = _percentages(part)
            cut, unit = round(end - share * (end - start), 4), "%"
        else:
            (start, end), unit = borders(_absolute(part, splits), splits), ""
            if end - start < 2:
                raise ValueError(f"{split}: {part.split_name} is too small to be divided.")
            cut = end - min(max(1, round(share * (end - start))), end - start - 1)
        kept.append(f"{part.split_name}[{start:.9g}{unit}:{cut:.9g}{unit}]")
        held.append(f"{part.split_name}[{cut:.9g}{unit}:{end:.9g}{unit}]")
    return "+".join(kept), "+".join(held)


def mix_classes(classes: Sequence[Sequence[T]]) -> list[tuple[T, int]]:
    """Returns the members of some classes with their labels, in a fixed order that mixes classes.

    The members of a class are shuffled and spread evenly over [0, 1]; this sorts all classes. Every
    slice of the result holds all classes in their proportions.

    Args:
      classes: for each label the members of its class, in an order that is always the same.
    """
    rng = np.random.Generator(np.random.Philox(_SEED))
    ranked = []
    for label, members in enumerate(classes):
        order = enumerate(rng.permutation(len(members)))
        ranked += [((i + 0.5) / len(members), label, int(number)) for i, number in order]
    return [(classes[label][number], label) for _, label, number in sorted(ranked)]
