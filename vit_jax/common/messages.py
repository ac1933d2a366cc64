"""Parts of messages that several folders write: lists that are cut, and corrections of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vit_jax.common.names import printable


def first_few(items: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """Returns the first items as text, and the number of the rest: "a, b and 3 more".

    Args:
      items: what to list; each is written as `printable` writes it.
      most: number of items that are written.
      separator: stands between two items. If it ends a line, the number of the rest has a line of
        its own.
    """
    texts = [printable(item) for item in items]
    shown = separator.join(texts[:most])
    if len(texts) <= most:
        return shown
    between = separator if separator.endswith("\n") else " "
    return f"{shown}{between}and {len(texts) - most} more"


def closest(name: str, known: Iterable[str], *, most: int = 1, likeness: float = 0.6) -> str:
    """Returns " (did you mean 'adam'?)" for a wrong name, or "" if no known name is like it.

    Args:
      name: the wrong name.
      known: the right names.
      most: number of names that are suggested, the most similar one first.
      likeness: smallest similarity of a suggested name, in [0, 1], as `difflib` counts it.
    """
    names = difflib.get_close_matches(name, known, n=most, cutoff=likeness)
    return f" (did you mean {' or '.join(map(repr, names))}?)" if names else ""
