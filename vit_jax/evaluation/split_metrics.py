"""The metrics of an objective on a split: every example counts once.

The metrics themselves are in `training/metrics.py`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax.data.batch import Batch
from vit_jax.evaluation.evaluator import Evaluator
from vit_jax.training.objective import Objective
from vit_jax.training.parallel import Parallel

TEST, POLYAK = "test_", "polyak_test_"  # how the names of columns begin


def sum_over_batches(program: Parallel, params: Any, batches: Iterable[Batch]) -> dict[str, Any]:
    """Returns the sums of an objective's `evaluate` over all batches.

    Args:
      program: with the objective's `evaluate`.
      params: placed on the devices.
      batches: this process's; at least one.

    Returns:
      float64 scalars or arrays on the host, by the sum's name.
    """
    total: collections.Counter = collections.Counter()

    def add(sums):
        for name, value in program.gather(sums).items():
            total[name] += value.astype(np.float64)

    pending = None
    for batch in batches:
        sums = program.evaluate(params, program.put_batch(batch))
        if pending is not None:  # wait for a batch only when the next one is on its way
            add(pending)
        pending = sums
    add(pending)
    return total


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Returns metrics as columns: `prefixed(TEST, {"loss": 1.0})` is `{"test_loss": 1.0}`."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def on_test_split(
    objective: Objective, program: Parallel, batches: Iterable[Batch], every: int
) -> Evaluator:
    """Returns the evaluator of the parameters on the test split.

    Args:
      objective: gives the metrics.
      program: with the objective's `evaluate`.
      batches: the test split's; they are read again for each measurement.
      every: steps between two measurements.
    """

    def run(state):
        return prefixed(TEST, objective.summarize(sum_over_batches(program, state.params, batches)))

    return Evaluator("test", every, tuple(TEST + name for name in objective.test_metrics), run)


def polyak_on_test_split(
    objective: Objective, program: Parallel, batches: Iterable[Batch], every: int
) -> Evaluator:
    """Returns the evaluator of the Polyak average on the test split; see `on_test_split`.

    A run that keeps no average has the columns, too. They stay empty.
    """

    def run(state):
        if state.average is None:
            return {}
        return prefixed(
            POLYAK, objective.summarize(sum_over_batches(program, state.average, batches))
        )

    return Evaluator("polyak", every, tuple(POLYAK + name for name in objective.test_metrics), run)
