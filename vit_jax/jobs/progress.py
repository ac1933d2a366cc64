"""progress"""

from __future__ import annotations

import time


class ThroughputMeter:
    """Images per second in training: since `start`, and over all such stretches."""

    def __init__(self):
        self._seconds = self._images = 0
        self.start()

    def start(self) -> None:
        self._begin, self._new = time.monotonic(), 0

    def count(self, images: int) -> None:
        self._new += images

    def stop(self) -> float:
        """Returns the rate since `start`."""
        seconds = time.monotonic() - self._begin
        self._seconds += seconds
        self._images += self._new
        return self._new / seconds

    @property
    def mean(self) -> float:
        return self._images / self._seconds if self._seconds else 0.0


Summary = dict[str, float | int | str]
