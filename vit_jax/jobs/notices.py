"""What a run says once, before its first step: what its settings do that is easily overlooked."""

from __future__ import annotations

import logging

import jax
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.config.keys import eval_image_shape, image_shape, look_up
from vit_jax.jobs.resume import Start
from vit_jax.training.optim import learning_rate_schedule
from vit_jax.training.setup import needs_labels, run_length

logger = logging.getLogger(__name__)


def log_notices(config: ConfigDict, start: Start, images: int) -> None:
    """Logs what is easily overlooked in the settings of a run, a line for each.

    Args:
      config: the run's, with the number of micro-batches.
      start: what the run starts from.
      images: the number of images that it is trained on.
    """
    total_steps = run_length(config, images)
    if config.optim.warmup_steps >= total_steps:
        logger.warning(
            "optim.warmup_steps=%d is no shorter than the run of %d steps: the learning rate "
            "rises to the end and never decays.",
            config.optim.warmup_steps,
            total_steps,
        )
    if config.dtype == "bfloat16" and jax.default_backend() == "cpu":
        logger.warning(
            "dtype='bfloat16' saves memory on a CPU, and takes longer than 'float32': XLA computes "
            "its matmuls in float32."
        )
    trained, tested = image_shape(config.data.image_size), eval_image_shape(config.data)
    if tested != trained:
        logger.info(
            "Training images have %d x %d pixels (height x width). Images to test on have %d x %d, "
            "as data.eval_image_size says.",
            *(*trained, *tested),
        )
    for key, none in (("optim.freeze", "none"), ("model.lora_rank", None)):
        value = look_up(config, key, none) or none  # rank 0 is none, too
        if value != none and start.pretrained is None and start.saved is None:
            logger.warning(
                "%s=%r keeps random parameters as they are, because init_from is None. Set "
                "init_from to the weights to start from, or %s=%r.",
                *(key, value, key, none),
            )
    for key in ("mixup", "cutmix"):
        if needs_labels(config) and config.data[key] and images_mixed(config) == 1:
            logger.warning(
                "data.%s=%g changes nothing: it mixes images that are computed together, and with "
                "batch_size=%d on %d x %s and accumulate_steps=%d each is computed alone. Raise "
                "batch_size, lower accumulate_steps, or set data.%s=0.",
                key,
                config.data[key],
                config.batch_size,
                jax.device_count(),
                jax.devices()[0].device_kind,
                config.accumulate_steps or 1,
                key,
            )
    if start.saved is not None and start.step < total_steps:
        trained_on = images
        if start.data is not None and start.data.splits is not None:
            trained_on = start.data.splits["train"]["images"]
        _log_other_rate(config, start.saved, start.step, total_steps, trained_on)


def images_mixed(config: ConfigDict) -> int:
    """Returns the number of images that are mixed with each other, see `mixup.mix_images`.

    With `pmap` it is a micro-batch of one device, and with `sharded` one of all devices together.
    """
    devices = jax.device_count() if config.parallel == "pmap" else 1
    return config.batch_size // devices // (config.accumulate_steps or 1)


def _log_other_rate(
    config: ConfigDict, saved: ConfigDict, step: int, total_steps: int, images: int
) -> None:
    """Logs if the next step's learning rate is not that of the run so far.

    Args:
      config: the run's, as it goes on.
      saved: the checkpoint's.
      step: the number of updates that are done.
      total_steps: the length of the run, as it goes on.
      images: the number of images that it was trained on so far.
    """
    old = default()
    keys = ("total_steps", "epochs", "batch_size", *(f"optim.{key}" for key in old.optim))
    old.update_from_flattened_dict({key: look_up(saved, key, old[key]) for key in keys})
    if old.total_steps is None and old.epochs is None:  # no run wrote it, but `convert`
        return
    old_steps = run_length(old, images)
    before, after = (
        f"{learning_rate_schedule(optim, steps)(step):.3g}"
        for optim, steps in ((old.optim, old_steps), (config.optim, total_steps))
    )
    if before != after:
        reason = "keys of optim were changed"
        if old_steps != total_steps:
            reason = (
                f"its schedule was for a run of {old_steps} steps, and is now for one of "
                f"{total_steps}"
            )
        logger.warning(
            "The learning rate is %s in step %d, and would have been %s: %s.",
            *(after, step + 1, before, reason),
        )
