"""From a configuration to what is trained: model, objective, update and first state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.config.keys import image_shape, model_attributes
from vit_jax.models.vit import VisionTransformer
from vit_jax.training import optim
from vit_jax.training.classification import classification
from vit_jax.training.masked_patches import masked_patches
from vit_jax.training.mixup import Mixing
from vit_jax.training.objective import Objective
from vit_jax.training.step import TrainState, initial_state, make_update


class Setup(NamedTuple):
    """What a configuration trains.

    Attributes:
      model: the module that is trained; the objective's module may contain it.
      objective: what it is trained for.
      update: what `step.make_update` returns.
      max_skipped: how many updates in a row may be skipped because they are not finite.
      key: the random key of the run, for `update`.
      init_state: key -> the state before the first step.
      init_key: the random key for `init_state`.
    """

    model: nn.Module
    objective: Objective
    update: Callable[..., Any]
    max_skipped: int
    key: jax.Array
    init_state: Callable[[jax.Array], TrainState]
    init_key: jax.Array


class ObjectiveRow(NamedTuple):
    """A row of `OBJECTIVES`.

    Attributes:
      make: (configuration, model, multi_label, class_weights) -> the objective, see `set_up`.
      needs_labels: True if the objective reads labels, and the model needs a head for them.
    """

    make: Callable[[ConfigDict, Any, bool, Sequence[float] | None], Objective]
    needs_labels: bool


def _classification(
    config: ConfigDict, model: nn.Module, multi_label: bool, class_weights: Sequence[float] | None
) -> Objective:
    return classification(
        model,
        loss=config.optim.loss,
        label_smoothing=config.optim.label_smoothing,
        mixing=Mixing(config.data.mixup, config.data.cutmix, config.data.cutmix_probability),
        multi_label=multi_label,
        class_weights=class_weights,
    )


def _masked_patches(config: ConfigDict, model: VisionTransformer, *_: Any) -> Objective:
    return masked_patches(model, target=config.masked.target, fraction=config.masked.fraction)


OBJECTIVES = {  # by the value of config.objective
    "classification": ObjectiveRow(_classification, needs_labels=True),
    "masked_patches": ObjectiveRow(_masked_patches, needs_labels=False),
}


def needs_labels(config: ConfigDict) -> bool:
    """Returns True if the configured objective reads labels, see `OBJECTIVES`."""
    return OBJECTIVES[config.objective].needs_labels


def set_up(
    config: ConfigDict,
    *,
    num_classes: int,
    total_steps: int,
    multi_label: bool = False,
    class_weights: Sequence[float] | None = None,
) -> Setup:
    """Returns what a configuration trains: the model, the objective, the update, the first state.

    Args:
      config: see `vit_jax.config.default`. `accumulate_steps=None` is 1 here, see
        `fit_memory.fit_training`.
      num_classes: the number of classes of the data. Without labels, the model has no head.
      total_steps: the length of the run and of its learning-rate schedule.
      multi_label: True if the images of the data may have several labels, see `is_multi_label`.
      class_weights: the weight of each class in the loss, by label; None for no weights.

    Raises:
      ValueError: the variant doesn't exist, or doesn't take these attributes.
    """
    model = models.build(
        config.model.variant,
        num_classes=num_classes if needs_labels(config) else 0,
        dtype=config.dtype,
        **model_attributes(config),
    )
    objective = OBJECTIVES[config.objective].make(config, model, multi_label, class_weights)
    learning_rate = optim.learning_rate_schedule(config.optim, total_steps)
    optimizer = optim.optimizer(config.optim, learning_rate)
    max_skipped = config.max_skipped_updates if config.on_nonfinite == "skip" else 0
    init_key, key = jax.random.split(jax.random.key(config.seed))
    update = make_update(
        objective,
        optimizer,
        learning_rate,
        accumulate_steps=config.accumulate_steps or 1,
        polyak=config.optim.polyak,
        max_skipped=max_skipped,
        freeze=config.optim.freeze,
    )
    init_state = functools.partial(
        initial_state,
        objective.model,
        optimizer,
        image_shape(config.data.image_size),
        polyak=config.optim.polyak,
        freeze=config.optim.freeze,
    )
    return Setup(model, objective, update, max_skipped, key, init_state, init_key)


def run_length(config: ConfigDict, images: int) -> int:
    """Returns the length of a run in steps.

    Args:
      config: `total_steps`, or else `epochs` and `batch_size`.
      images: the number of images in the training split.

    Raises:
      ValueError: it is 2**31 steps or more.
    """
    if config.total_steps:
        return config.total_steps
    steps = config.epochs * images / config.batch_size
    if steps > 2**31 - 1:
        raise ValueError(
            f"epochs={config.epochs:g} of {images} images in batches of {config.batch_size} are "
            f"{steps:.3g} steps, and a run has fewer than 2**31: take fewer epochs."
        )
    return max(1, round(steps))
