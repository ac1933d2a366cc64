"""The progress bar of a run, and its speed."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from vit_jax.common.bars import progress_bar
from vit_jax.models.params import count_parameters
from vit_jax.training.trained import split_params

logger = logging.getLogger(__name__)

_SHOWN = {
    "loss": "train_loss",
    "accuracy": "train_accuracy",
    "test": "test_accuracy",
    "precision at 1": "train_precision_at_1",
    "test at 1": "test_precision_at_1",
    "test mAP": "test_mean_average_precision",
}
_SPEED = "images_per_second"


def log_start(config: ConfigDict, params: Any, steps_done: int, total_steps: int) -> None:
    """Logs what will be trained, or that a run has no step left.

    Args:
      config: the run's.
      params: the parameters, a tree with Linen names.
      steps_done: where the run starts.
      total_steps: the length of the run.
    """
    trained, frozen = split_params(params, config.optim.freeze)
    model = f"{config.model.variant} with {count_parameters(params):,} parameters"
    if frozen:
        model += f", of which {count_parameters(trained):,} are trained"
    if steps_done >= total_steps:
        logger.info("%s, step %d of %d: finished; evaluating", model, steps_done, total_steps)
        return
    logger.info(
        "%s, steps %d to %d, %d images each, on %d x %s; compiling the first",
        model,
        steps_done + 1,
        total_steps,
        config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
    )


class Progress:
    """Shows which step a run is at, and measures images per second in training.

    A step counts when the devices have finished it. At most two steps are on the devices: one that
    is computed, and the next, which begins as soon as it can. Only the first step is not measured,
    since most of its time is the compiler's, and neither is the time between `pause` and `resume`,
    such as that of evaluations.

    Args:
      steps_done: where the run starts.
      total_steps: the length of the run.
      batch_size: images per step.
      active: False shows nothing, for all processes but one.
    """

    def __init__(self, steps_done: int, total_steps: int, batch_size: int, *, active: bool):
        self._batch_size = batch_size
        self._images, self._seconds = 0, 0.0
        self._on_devices: Any = None  # metrics of the last step that was sent, until it's finished
        self._compiled = False
        self._bar = tqdm(disable=True)
        self._make_bar = functools.partial(
            progress_bar,
            total=total_steps,
            initial=steps_done + 1,  # the bar's rate, too, leaves out the first step
            unit="step",
            active=active,
            miniters=1,
        )
        self.resume()

    def resume(self) -> None:
        """Measures the time from here on."""
        self._begin, self._new_images = time.monotonic(), 0

    def advance(self, metrics: Any) -> None:
        """Takes note of a step that was sent to the devices, and waits for the step before it.

        Args:
          metrics: the step's, to wait for.
        """
        self.wait()
        self._on_devices = metrics
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled, self._on_devices = True, None
            self._bar = self._make_bar()
            self.resume()

    def wait(self) -> None:
        """Waits until the devices have finished all steps, and counts the last one."""
        if self._on_devices is not None:
            jax.block_until_ready(self._on_devices)
            self._on_devices = None
            self._new_images += self._batch_size
            self._bar.update()

    def pause(self) -> dict[str, float]:
        """Waits, and returns the column `images_per_second`: the speed since `resume`.

        There is no such column if no step was measured.
        """
        self.wait()
        seconds = time.monotonic() - self._begin
        self._seconds += seconds
        self._images += self._new_images
        return {_SPEED: self._new_images / seconds} if self._new_images else {}

    def show(self, row: dict[str, float]) -> None:
        """Shows the main columns of a row of metrics.csv beside the bar."""
        shown: dict[str, Any] = {k: row[name] for k, name in _SHOWN.items() if name in row}
        if _SPEED in row:
            shown["images/s"] = f"{row[_SPEED]:.0f}"
        self._bar.set_postfix(shown)

    def summary(self) -> dict[str, float]:
        """Returns `images_per_second`, the mean over all that was measured; {} if nothing was."""
        return {_SPEED: round(self._images / self._seconds, 1)} if self._images else {}

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
