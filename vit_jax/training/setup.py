"""setup"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.config.keys import image_shape, model_attributes
from vit_jax.training import optim
from vit_jax.training.classification import classification
from vit_jax.training.masked_patches import masked_patches
from vit_jax.training.objective import Objective
from vit_jax.training.step import TrainState, initial_state, make_update


def total_steps(config: ConfigDict, images: int) -> int:
    """Returns the length of a run that trains on so many images."""
    if config.total_steps:
        return config.total_steps
    steps = config.epochs * images / config.batch_size
    if steps > 2**31 - 1:
        raise ValueError(
            f"epochs={config.epochs:g} of {images} images in batches of {config.batch_size} are "
            f"{steps:.3g} steps, and a run has fewer than 2**31: take fewer epochs."
        )
    return max(1, round(steps))


class Setup(NamedTuple):
    """What a configuration trains.

    Attributes:
      model: the module that is trained; an objective may have it in another.
      objective: what it is trained for.
      update: what `step.make_update` returns.
      max_skipped: updates that it may refuse in a row.
      key: the run's, for `update`.
      initial: a key -> the state before the first step.
      init_key: for `initial`.
    """

    model: nn.Module
    objective: Objective
    update: Callable[..., Any]
    max_skipped: int
    key: jax.Array
    initial: Callable[[jax.Array], TrainState]
    init_key: jax.Array


def set_up(config: ConfigDict, *, num_classes: int, total_steps: int) -> Setup:
    """Returns the model, objective, update and initial state of a configuration.

    Args:
      config: see `vit_jax.config.default`.
      num_classes: of the head; with objective="masked_patches" there is none.
      total_steps: length of the run: the schedule's.
    """
    masked = config.objective == "masked_patches"
    model = models.build(
        config.model.variant,
        num_classes=0 if masked else num_classes,
        dtype=config.dtype,
        **model_attributes(config),
    )
    if masked:
        objective = masked_patches(
            model, target=config.masked.target, fraction=config.masked.fraction
        )
    else:
        objective = classification(
            model, label_smoothing=config.optim.label_smoothing, mixup=config.data.mixup
        )
    learning_rate = optim.learning_rate_schedule(config.optim, total_steps)
    optimizer = optim.optimizer(config.optim, learning_rate)
    max_skipped = config.max_skipped_updates if config.on_nonfinite == "skip" else 0
    init_key, update_key = jax.random.split(jax.random.key(config.seed))
    update = make_update(
        objective,
        optimizer,
        learning_rate,
        accumulate_steps=config.accumulate_steps,
        polyak=config.optim.polyak,
        max_skipped=max_skipped,
    )
    initial = functools.partial(
        initial_state,
        objective.model,
        optimizer,
        image_shape(config.data.image_size),
        polyak=config.optim.polyak,
    )
    return Setup(model, objective, update, max_skipped, update_key, initial, init_key)
