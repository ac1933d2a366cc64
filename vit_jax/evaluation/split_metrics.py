"""The metrics of an objective on a split: every example counts once.

The metrics themselves are in `training/metrics.py`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vit_jax.data.batch import Batch
from vit_jax.evaluation.average_precision import Ranking
from vit_jax.evaluation.evaluator import Evaluator
from vit_jax.training.objective import DeviceBatch, Objective
from vit_jax.training.parallel import Parallel

TEST, POLYAK = "test_", "polyak_test_"  # how the names of columns begin
MEAN_AVERAGE_PRECISION = "mean_average_precision"


def sum_over_batches(
    program: Parallel,
    params: Any,
    batches: Iterable[Batch],
    each: Callable[[DeviceBatch], None] | None = None,
) -> dict[str, Any]:
    """Returns the sums of an objective's `evaluate` over all batches.

    Args:
      program: with the objective's `evaluate`.
      params: placed on the devices.
      batches: this process's; at least one.
      each: called with every batch, placed on the devices.

    Returns:
      float64 scalars or arrays on the host, by the sum's name.
    """
    total: collections.Counter = collections.Counter()

    def add(sums):
        for name, value in program.gather(sums).items():
            total[name] += value.astype(np.float64)

    pending = None
    for batch in batches:
        placed = program.put_batch(batch)
        sums = program.evaluate(params, placed)
        if each is not None:
            each(placed)
        if pending is not None:  # wait for a batch only when the next one is on its way
            add(pending)
        pending = sums
    add(pending)
    return total


def measure_split(
    objective: Objective, program: Parallel, params: Any, batches: Iterable[Batch]
) -> dict[str, float]:
    """Returns an objective's metrics on a split.

    Args:
      objective: gives the metrics.
      program: with the objective's `evaluate`; if images have several labels, with a
        `feature_extractor`, too.
      params, batches: as for `sum_over_batches`.
    """
    if objective.multi_label:
        return rank_split(objective, program, params, batches)[0]
    return objective.summarize(sum_over_batches(program, params, batches))


def rank_split(
    objective: Objective, program: Parallel, params: Any, batches: Iterable[Batch]
) -> tuple[dict[str, float], Ranking]:
    """Returns the metrics on a split whose images have several labels, and their ranking.

    The mean average precision is one of the metrics, if any image has a label: see `Ranking`.

    Arguments: see `measure_split`.
    """
    ranking = Ranking()

    def rank(batch: DeviceBatch) -> None:
        ranking.add(program.gather(program.extract_features(params, batch)))

    sums = sum_over_batches(program, params, batches, rank)
    mean = ranking.mean_average_precision(program.gather(params["head"]))
    found = {} if mean is None else {MEAN_AVERAGE_PRECISION: mean}
    return {**objective.summarize(sums), **found}, ranking


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Returns metrics as columns: `prefixed(TEST, {"loss": 1.0})` is `{"test_loss": 1.0}`."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def on_test_split(
    objective: Objective, program: Parallel, batches: Iterable[Batch], every: int
) -> Evaluator:
    """Returns the evaluator of the parameters on the test split.

    Args:
      objective: gives the metrics.
      program: as for `measure_split`.
      batches: the test split's; they are read again for each measurement.
      every: steps between two measurements.
    """

    def run(state):
        return prefixed(TEST, measure_split(objective, program, state.params, batches))

    return Evaluator("test", every, _columns(TEST, objective), run)


def polyak_on_test_split(
    objective: Objective, program: Parallel, batches: Iterable[Batch], every: int
) -> Evaluator:
    """Returns the evaluator of the Polyak average on the test split; see `on_test_split`.

    A run that keeps no average has the columns, too. They stay empty.
    """

    def run(state):
        if state.average is None:
            return {}
        return prefixed(POLYAK, measure_split(objective, program, state.average, batches))

    return Evaluator("polyak", every, _columns(POLYAK, objective), run)


def _columns(prefix: str, objective: Objective) -> tuple[str, ...]:
    more = (MEAN_AVERAGE_PRECISION,) if objective.multi_label else ()
    return tuple(f"{prefix}{name}" for name in (*objective.test_metrics, *more))
