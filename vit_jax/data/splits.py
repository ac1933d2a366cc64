"""Splits in the syntax of tfds: parsed, divided and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds


def parse_split(split: str) -> tfds.core.ReadInstruction:
    """Parses tfds's split syntax: "train", "train[:85%]", "train[:800]+validation".

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


def default_splits(splits: Iterable[str]) -> tuple[str, str]:
    """Returns the (train, test) splits to use where the configuration names none.

    The data set's own test split where it has one, else its validation split, else the last 15 %
    of train.
    """
    held_out = [name for name in ("test", "validation", "val") if name in splits]
    return ("train", held_out[0]) if held_out else ("train[:85%]", "train[85%:]")


def hold_out(split: str, share: float, splits: Mapping[str, int]) -> tuple[str, str]:
    """Divides a split in two: all but the last `share` of every part of it, and these.

    Args:
      split: such as "train[:90%]" or "train+validation".
      share: of the examples of each part, in (0, 1); rounded to whole examples, at least one.
      splits: the numbers of examples of the data set's splits.

    Raises:
      ValueError: a part has fewer than two examples.
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


def split_size(split: str, splits: Mapping[str, int]) -> int:
    """Returns the number of examples in a split such as "train[:85%]".

    Args:
      split: in tfds's syntax.
      splits: the numbers of examples of the data set's splits.

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    parts = absolute_parts(split, splits)
    return sum((splits[p.splitname] if p.to is None else p.to) - (p.from_ or 0) for p in parts)


def absolute_parts(split: str, splits: Mapping[str, int]) -> list[Any]:
    """Returns the parts of a split, with `splitname`, `from_` and `to` in examples."""
    infos = [
        tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in splits.items()
    ]
    return parse_split(split).to_absolute(tfds.core.splits.SplitDict(infos))
