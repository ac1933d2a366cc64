"""Which test of a run was the best so far, and when to stop because none is better."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.checkpoints.best import Best
from vit_jax.common.messages import closest
from vit_jax.config.keys import look_up
from vit_jax.evaluation.split_metrics import POLYAK
from vit_jax.jobs.resume import Start
from vit_jax.training.metrics import METRICS

logger = logging.getLogger(__name__)

# If one of these was changed since the best test, later tests can't be compared with it.
_OF_THE_TEST = (
    *("data.test", "data.eval_image_size"),
    *("data.eval_crop", "data.eval_resize", "data.crop_fraction"),
)


class BestSoFar:
    """Follows the tests of a run, for `checkpoint.best` and `early_stopping.patience`.

    A run that goes on knows the tests up to its newest checkpoint. It begins anew if the metric or
    the test has changed.

    Args:
      start: what the run starts from, with its configuration.
      columns: the columns of metrics.csv that tests fill.
      num_classes: the number of the head's classes; 0 without labels.
      other_data: True if a run goes on with other data.

    Attributes:
      best: the best test so far, None if there was none or none is looked for.

    Raises:
      ValueError: no test fills the column `checkpoint.best`; names those that tests fill.
    """

    def __init__(
        self, start: Start, columns: Collection[str], *, num_classes: int, other_data: bool
    ):
        config = start.config
        self._metric, self._patience = config.checkpoint.best, config.early_stopping.patience or 0
        self._is_lower_better = (self._metric or "").endswith("loss")
        self.best: Best | None = None
        if self._metric is None:
            return
        averaged = [x for x in columns if config.optim.polyak or not x.startswith(POLYAK)]
        _check_column(self._metric, averaged, num_classes)
        direction = "lowest" if self._is_lower_better else "highest"
        logger.info("The checkpoint with the %s %s is kept as the best.", direction, self._metric)
        if (saved := start.checkpoints.best) is None:
            return
        changed = [k for k in _OF_THE_TEST if look_up(start.saved, k, None) != config.data[k[5:]]]
        if saved.metric == self._metric and not changed and not other_data:
            self.best = saved
            self._log_if_exhausted()
        else:
            logger.info(
                "The best so far, %s %.4g at step %d, was measured otherwise: it doesn't count.",
                *(saved.metric, saved.value, saved.step),
            )

    @property
    def is_exhausted(self) -> bool:
        """True if the run ends, because `early_stopping.patience` tests were no better."""
        return bool(self._patience and self.best and self.best.tests_since >= self._patience)

    def add(self, step: int, results: Mapping[str, float]) -> bool:
        """Takes note of what was measured after a step; returns True if it is the best so far.

        Args:
          step: counted from 1.
          results: numbers by column. Without the metric, they are no test of it.
        """
        value = None if self._metric is None else results.get(self._metric)
        if self._metric is None or value is None:
            return False
        if self._is_better(value):
            self.best = Best(self._metric, step, value)
            return True
        if self.best is not None:
            self.best = self.best._replace(tests_since=self.best.tests_since + 1)
            self._log_if_exhausted()
        return False

    def summary(self, checkpoints: Any) -> dict[str, Any]:
        """Returns `best_step`, `best_METRIC` and `best_checkpoint`, and `stopped_early`, if it did.

        Args:
          checkpoints: the run's `CheckpointManager`.
        """
        if self.best is None:
            return {}
        return {
            "best_step": self.best.step,
            f"best_{self.best.metric}": self.best.value,
            "best_checkpoint": checkpoints.path(self.best.step),
            **({"stopped_early": True} if self.is_exhausted else {}),
        }

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return not math.isnan(value)
        return value < self.best.value if self._is_lower_better else value > self.best.value

    def _log_if_exhausted(self) -> None:
        if self.best is not None and self.is_exhausted:
            logger.info(
                "Stopped early: %s was best at step %d, %.4g, and the %d tests since then were no "
                "better (early_stopping.patience=%d).",
                *(self.best.metric, self.best.step, self.best.value),
                *(self.best.tests_since, self._patience),
            )


def _check_column(metric: str, columns: Collection[str], num_classes: int) -> None:
    """Raises ValueError if a metric is no column that is filled by a test."""
    empty = tuple(f"_{x}" for x, row in METRICS.items() if 0 < num_classes < row.min_classes)
    filled = [x for x in columns if not x.endswith(empty)]
    if metric not in filled:
        raise ValueError(
            f"checkpoint.best={metric!r} is nothing that this run measures. It measures "
            f"{', '.join(filled)}{closest(metric, filled)}."
        )
