"""The progress bar of a run, and its speed."""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
from tqdm import tqdm

_SHOWN = {"loss": "train_loss", "accuracy": "train_accuracy", "test": "test_accuracy"}


class Progress:
    """Shows which step a run is at, and measures images per second in training.

    Time between `pause` and `resume`, such as that of evaluations, doesn't count.

    Args:
      steps_done: where the run starts.
      total_steps: the length of the run.
      batch_size: images per step.
      active: False shows nothing, for all processes but one.
    """

    def __init__(self, steps_done: int, total_steps: int, batch_size: int, *, active: bool):
        self._batch_size = batch_size
        self._compiled = (
            total_steps - steps_done == 1
        )  # of a single step, the compiler's time counts
        self._images, self._seconds = 0, 0.0
        self._bar = tqdm(
            total=total_steps,
            initial=steps_done,
            unit="step",
            disable=not active,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds: a log file stays short
        )
        self.resume()

    def resume(self) -> None:
        """Measures the time from here on."""
        self._begin, self._new_images = time.monotonic(), 0

    def advance(self, metrics: Any) -> None:
        """Counts a step that was sent to the devices.

        The first step is waited for and not measured: most of its time is the compiler's.

        Args:
          metrics: the step's, to wait for.
        """
        self._bar.update()
        if self._compiled:
            self._new_images += self._batch_size
        else:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.resume()

    def pause(self) -> float:
        """Returns the images per second since `resume`."""
        seconds = time.monotonic() - self._begin
        self._seconds += seconds
        self._images += self._new_images
        return self._new_images / seconds

    def show(self, row: dict[str, float]) -> None:
        """Shows the main columns of a row of metrics.csv beside the bar."""
        shown: dict[str, Any] = {k: row[name] for k, name in _SHOWN.items() if name in row}
        self._bar.set_postfix({**shown, "images/s": f"{row['images_per_second']:.0f}"})

    @property
    def images_per_second(self) -> float:
        """The mean over all that was measured, 0 if nothing was."""
        return self._images / self._seconds if self._seconds else 0.0

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
