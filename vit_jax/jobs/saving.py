"""After which steps a run is saved."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.evaluation.evaluator import is_due

_FIRST = 120  # seconds of training before the first checkpoint


class SaveTimes:
    """Decides after which steps a run is saved: at intervals, and once after two minutes.

    A long interval would leave nothing of the first minutes, if the run were killed in them. The
    two minutes begin after the first step, so the time of compiling it doesn't count.

    Args:
      every: steps between two checkpoints, `config.checkpoint.every`; 0 for none but the last.
      is_saved: True if the run has a checkpoint.
    """

    def __init__(self, every: int, *, is_saved: bool):
        self._every = every
        self._is_saved = is_saved or not every
        self._begin: float | None = None  # the first step is compiled before

    def is_due(self, step: int, *, has_row: bool) -> bool:
        """Returns True if the state after this step is to be saved.

        Several processes get the same answer. They ask each other only after steps that have a row
        in metrics.csv, since that takes time.

        Args:
          step: counted from 1; each step is asked for once, in order.
          has_row: True if the step has a row.
        """
        self._begin = self._begin or time.monotonic()
        due = is_due(self._every, step)
        if not (due or self._is_saved) and (has_row or jax.process_count() == 1):
            late = time.monotonic() - self._begin > _FIRST
            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(late)))
        self._is_saved = self._is_saved or due
        return due
