"""Splits of a data set, in the syntax of tfds: parsed, chosen, divided and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds


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


def absolute_parts(split: str, splits: Mapping[str, int]) -> list[Any]:
    """Returns the parts of a split, which a "+" separates, with percentages as numbers of examples.

    Args:
      split: a text such as "train[:85%]+validation".
      splits: names of the data set's splits, with their numbers of examples.

    Returns:
      For each part an object with `splitname`, and `from_` and `to`: the numbers of its first
      example and of the one after its last, or None at an end of the named split.

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    infos = [
        tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in splits.items()
    ]
    return parse_split(split).to_absolute(tfds.core.splits.SplitDict(infos))


def split_size(split: str, splits: Mapping[str, int]) -> int:
    """Returns the number of examples in a split. Arguments and errors: see `absolute_parts`."""
    parts = absolute_parts(split, splits)
    return sum((splits[p.splitname] if p.to is None else p.to) - (p.from_ or 0) for p in parts)


def own_test_split(splits: Iterable[str]) -> str | None:
    """Returns the name of a data set's test split, or else of its validation split, or None."""
    names = set(splits)
    return next((name for name in ("test", "validation", "val") if name in names), None)


def default_splits(splits: Iterable[str]) -> tuple[str, str]:
    """Returns the (train, test) splits of a data set for a configuration that names none.

    The test split is `own_test_split`. If there is none, the last 15 % of train are the test split
    and the rest is the training split.
    """
    own = own_test_split(splits)
    return ("train[:85%]", "train[85%:]") if own is None else ("train", own)


def hold_out(split: str, share: float, splits: Mapping[str, int]) -> tuple[str, str]:
    """Returns a split without its last examples, and these as a split of their own.

    Args:
      split: a text such as "train[:90%]" or "train+validation". Each part of it is divided.
      share: the part of the examples to hold out, in (0, 1). It is rounded to whole examples; one
        is held out at least, and one stays at least.
      splits: names of the data set's splits, with their numbers of examples.

    Raises:
      ValueError: a part has fewer than two examples; or as `absolute_parts`.
    """
    kept, held = [], []
    for part in absolute_parts(split, splits):
        start, end = part.from_ or 0, splits[part.splitname] if part.to is None else part.to
        if end - start < 2:
            raise ValueError(f"{split}: {part.splitname} is too small to be divided.")
        cut = end - min(max(1, round(share * (end - start))), end - start - 1)
        kept.append(f"{part.splitname}[{start}:{cut}]")
        held.append(f"{part.splitname}[{cut}:{end}]")
    return "+".join(kept), "+".join(held)
