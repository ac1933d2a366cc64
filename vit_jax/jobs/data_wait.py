"""Says in the log that the devices wait for images, if they do so for long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax

logger = logging.getLogger(__name__)

_JUDGED_AFTER = 30.0  # seconds
_LONG = 0.2  # share of the time


class DataWait:
    """Measures how long the devices have nothing to compute, since no batch has come.

    While a batch is read, the devices compute the step before. If they have finished it when the
    batch comes, they have waited, at most as long as the reading took. After 30 seconds, a warning
    is logged once if that was more than a fifth of the time.
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._waited, self._is_judged = 0.0, False

    @contextlib.contextmanager
    def reading(self, metrics: Any) -> Iterator[None]:
        """A context in which the next batch is read.

        Args:
          metrics: of the step that the devices compute meanwhile.
        """
        begin = time.monotonic()
        yield
        now = time.monotonic()
        if self._begin is None:  # the first step is over, and with it the compiler's time
            self._begin = now
            return
        if all(x.is_ready() for x in jax.tree.leaves(metrics)):
            self._waited += now - begin
        if self._is_judged or now - self._begin < _JUDGED_AFTER:
            return
        self._is_judged = True
        share = self._waited / (now - self._begin)
        if share > _LONG:
            logger.warning(
                "The devices wait for images in up to %.0f %% of the time. More CPUs read faster, "
                "if data.threads isn't below their number; so do smaller image files.",
                100 * share,
            )
