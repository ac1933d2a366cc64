"""An evaluator: one measurement that a training run takes at intervals.

`jobs/train.py` walks through a list of them. To add one, write a function that returns an
`Evaluator`, and put it into that list: `metrics.csv` gets its columns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vit_jax.training.step import TrainState

logger = logging.getLogger(__name__)


class Evaluator(NamedTuple):
    """One measurement of a model in training.

    Attributes:
      name: what is measured, for the log.
      every: steps between two measurements; 0 for none before the last step.
      columns: the names of the numbers, in the order of metrics.csv.
      run: state -> {column: number}. Columns without a number stay empty.
    """

    name: str
    every: int
    columns: tuple[str, ...]
    run: Callable[[TrainState], dict[str, float]]


def is_due(every: int, step: int) -> bool:
    """Returns True if `step` is a multiple of `every`.

    Args:
      every: steps; 0 for never.
      step: counted from 1.
    """
    return bool(every) and step % every == 0


def measure(evaluators: Iterable[Evaluator], state: TrainState) -> dict[str, float]:
    """Returns the numbers of all evaluators, by column."""
    results: dict[str, float] = {}
    for evaluator in evaluators:
        begin = time.monotonic()
        results |= evaluator.run(state)
        logger.debug("evaluator %s: %.1f s", evaluator.name, time.monotonic() - begin)
    return results
