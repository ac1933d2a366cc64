"""Calibrated probabilities: a temperature is fitted, and put into the head of a checkpoint."""

from __future__ import annotations

import logging
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint, is_checkpoint, write_checkpoint
from vit_jax.evaluation.answers import Answers
from vit_jax.evaluation.calibration import reliability
from vit_jax.evaluation.temperature import (
    RANGE,
    confidence,
    fit_temperature,
    mean_loss,
    with_temperature,
)

logger = logging.getLogger(__name__)


def check_can_calibrate(config: ConfigDict, multi_label: bool) -> None:
    """Raises ValueError if `config.calibrate` asks for what can't be done.

    Args:
      config: of a job.
      multi_label: True if images have several labels.
    """
    if config.calibrate and multi_label:
        raise ValueError(
            f"calibrate=True needs one label an image, and those of {config.data.name} have "
            f"several: leave it out."
        )
    if config.calibrate and jax.process_count() > 1:
        raise ValueError("calibrate=True runs in one process: start this job on one host alone.")


def write_calibrated(checkpoint: Checkpoint, answers: Answers, path: epath.Path) -> dict[str, Any]:
    """Fits a temperature to the answers of a checkpoint, and writes the checkpoint with it.

    Args:
      checkpoint: with all its classes.
      answers: its answers for images that it was not trained on, with logits.
      path: the folder that is written; a checkpoint that is there is replaced.

    Returns:
      `temperature`; the `calibrated_loss` and `calibrated_expected_calibration_error` on the images
      that it was fitted to; and `calibrated_checkpoint`, the path.

    Raises:
      FileExistsError: `path` is no checkpoint, or the given one.
      OSError: it can't be written.
    """
    if path.exists():
        if not is_checkpoint(path) or checkpoint.path == str(path):
            raise FileExistsError(
                f"{path} would be replaced by the calibrated checkpoint, and is no checkpoint or "
                f"the one that is evaluated: take another --workdir."
            )
        path.rmtree()
    loss = checkpoint.loss
    temperature = fit_temperature(answers.logits, answers.label, loss)
    if not 1.01 * RANGE[0] < temperature < 0.99 * RANGE[1]:
        logger.warning(
            "The temperature %.3g is at the end of its range: %d images with %d mistakes don't "
            "say more. Fit it on more images.",
            *(temperature, answers.images, int((~answers.is_right).sum())),
        )
    write_checkpoint(with_temperature(checkpoint, temperature), path)
    scaled = reliability(confidence(answers.logits, loss, temperature), answers.is_right)
    return {
        "temperature": temperature,
        "calibrated_loss": mean_loss(answers.logits, answers.label, loss, temperature),
        "calibrated_expected_calibration_error": scaled.expected_calibration_error,
        "calibrated_checkpoint": str(path),
    }
