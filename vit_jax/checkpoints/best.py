"""The best checkpoint of a run: what the newest one says of it, and its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

BEST = "@best"  # behind a workdir: its best checkpoint
_KEY = "best"  # in a checkpoint's metadata


class Best(NamedTuple):
    """The best test of a run so far.

    Attributes:
      metric: the column of metrics.csv that it is the best of, such as "test_accuracy".
      step: the step after which the test was made.
      value: the metric there.
      tests_since: number of tests of this metric since then. None of them was better.
    """

    metric: str
    step: int
    value: float
    tests_since: int = 0


def best_as_metadata(best: Best | None) -> dict[str, Any]:
    """Returns what a checkpoint's metadata say of the best test; {} if it is None."""
    return {} if best is None else {_KEY: best._asdict()}


def best_in_metadata(metadata: Mapping[str, Any]) -> Best | None:
    """Returns the best test up to a checkpoint, None if its run kept no best checkpoint.

    Raises:
      TypeError, ValueError: the metadata are damaged.
    """
    if (found := metadata.get(_KEY)) is None:
        return None
    best = Best(**found)
    return Best(str(best.metric), int(best.step), float(best.value), int(best.tests_since))
