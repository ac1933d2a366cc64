"""Says in the log that the devices wait for images, if they do so for long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax

logger = logging.getLogger(__name__)

_WINDOW = 30.0  # seconds of training, after which it is judged whether they waited long
_LONG = 0.2  # share of these seconds


class DataWait:
    """Measures how long the devices have nothing to compute, since no batch has come.

    While a batch is read, the devices compute the step before. If they have finished it when the
    batch comes, they have waited, at most as long as the reading took. A warning is logged, once,
    if that was more than a fifth of 30 seconds of training. Evaluations don't count.
    """

    def __init__(self) -> None:
        self._since: float | None = None  # when the devices began to compute; None: they pause
        self._waited = self._seconds = 0.0
        self._is_told = False

    def pause(self) -> None:
        """Doesn't count the time from the last reading to the end of the next."""
        self._since = None

    @contextlib.contextmanager
    def reading(self, metrics: Any) -> Iterator[None]:
        """A context in which the next batch is read.

        Args:
          metrics: of the step that the devices compute meanwhile.
        """
        begin = time.monotonic()
        yield
        now = time.monotonic()
        if self._since is not None:
            self._seconds += now - self._since
            if all(x.is_ready() for x in jax.tree.leaves(metrics)):
                self._waited += now - begin
            if self._seconds > _WINDOW:
                self._judge()
        self._since = now

    def _judge(self) -> None:
        share = self._waited / self._seconds
        self._waited = self._seconds = 0.0
        if share > _LONG and not self._is_told:
            self._is_told = True
            logger.warning(
                "The devices wait for images in up to %.0f %% of the time. More CPUs read faster, "
                "if data.threads isn't below their number; so do smaller image files.",
                100 * share,
            )
