"""The metrics of the steps that metrics.csv has no row of yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from vit_jax.training.objective import Metrics
from vit_jax.training.step import TrainState

HostMetrics = dict[str, np.ndarray]

# What `step.make_update` adds to the metrics of the objective.
_OF_THE_UPDATE = ("learning_rate", "grad_norm")


def train_columns(train_metrics: Iterable[str]) -> tuple[str, ...]:
    """Returns the columns that `PendingMetrics.row` fills.

    Args:
      train_metrics: the names of the objective's metrics.
    """
    return (*(f"train_{name}" for name in train_metrics), *_OF_THE_UPDATE, "skipped_updates")


class PendingMetrics:
    """Collects the metrics of steps without waiting for the devices.

    Args:
      gather: device arrays -> host arrays.
      on_refused: called with the metrics of an update that was refused and may not be skipped, and
        with the state; raises an error.
      saved: pending metrics that a checkpoint kept.

    Attributes:
      metrics: the metrics that were fetched from the devices, one dictionary per step.
    """

    def __init__(
        self,
        gather: Callable[[Any], Any],
        on_refused: Callable[[HostMetrics, TrainState], NoReturn],
        saved: Iterable[HostMetrics] = (),
    ):
        self._gather, self._on_refused = gather, on_refused
        self._on_device: list[Metrics] = []
        self.metrics = list(saved)

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of a step, which may not have ended yet."""
        self._on_device.append(metrics)

    def check_finite(self, state: TrainState, max_skipped: int) -> None:
        """Fetches the metrics of all steps, and raises an error if too many updates were refused.

        It waits until the steps have ended.

        Args:
          state: the state after these steps. The update that stops the run has changed only the
            counts in it.
          max_skipped: how many updates in a row may be skipped.
        """
        self.metrics.extend(self._gather(self._on_device))
        self._on_device.clear()
        if self.metrics and self.metrics[-1]["nonfinite"] > max_skipped:
            refused = next(x for x in self.metrics if x["nonfinite"] == max_skipped + 1)
            self._on_refused(refused, state)

    def row(self) -> dict[str, float]:
        """Returns the columns of a row: means over the steps since the last row.

        `check_finite` comes first: it fetches the metrics.

        Skipped updates don't count, unless all were skipped. The learning rate is the last one.
        """
        last = self.metrics[-1]
        counted = [x for x in self.metrics if not x["nonfinite"]] or self.metrics
        columns = {}
        for name in last.keys() - {"nonfinite", "skipped"}:
            column = name if name in _OF_THE_UPDATE else f"train_{name}"
            columns[column] = float(np.mean([x[name] for x in counted]))
        columns["learning_rate"] = float(last["learning_rate"])
        columns["skipped_updates"] = int(last["skipped"])
        return columns

    def clear(self) -> None:
        """Forgets the metrics that have a row."""
        self.metrics.clear()
