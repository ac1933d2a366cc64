"""The objective of classification, with label smoothing, mixup and CutMix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.patches import to_float
from vit_jax.training.metrics import add_up, choose_metrics, is_one_of
from vit_jax.training.mixup import NO_MIXING, Mixing, mix_images
from vit_jax.training.objective import LOSSES, Objective


def classification(
    model: nn.Module,
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    mixing: Mixing = NO_MIXING,
    class_weights: Sequence[float] | None = None,
    multi_label: bool = False,
) -> Objective:
    """Returns the objective of classification; its batches hold `image`, `label` and `mask`.

    The metrics of training are `loss` and `accuracy`, or `precision_at_1` if images have several
    labels. The sums of a test are `count` and those of `metrics.choose_metrics`.

    Args:
      model: images (b, h, w, 3) -> logits (b, c).
      loss: a key of `objective.LOSSES`.
      label_smoothing: see `objective.LOSSES`.
      mixing: see `mix_images`. `accuracy` counts the label with the larger share, and
        `precision_at_1` those of the image with the larger share.
      class_weights: by label. In training, the loss of an example is multiplied by the weight of
        its class; of a mixture, each of its two losses by its own. None for no weights, and with
        `multi_label`. A test's loss has no weights.
      multi_label: True if `label` is bool (b, c): every class of each image. Needs the loss
        "sigmoid".
    """
    cross_entropy = LOSSES[loss]
    share = "precision_at_1" if multi_label else "accuracy"
    metrics = choose_metrics(loss, multi_label=multi_label)

    def mean_loss(logits, label):
        losses = cross_entropy(logits, label, label_smoothing)
        if class_weights is not None:
            losses *= jnp.asarray(class_weights, jnp.float32)[label]
        return losses.mean()

    def train_loss(params, batch, key, shared_key):
        images, label, other, weight = mix_images(
            to_float(batch["image"]), batch["label"], jax.random.fold_in(shared_key, 0), mixing
        )
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        total = weight * mean_loss(logits, label)
        if mixing.mixup or mixing.cutmix:
            total += (1 - weight) * mean_loss(logits, other)
        is_right = is_one_of(logits, label) if multi_label else logits.argmax(-1) == label
        return total, {"loss": total, share: is_right.mean()}

    def evaluate(params, batch):
        logits: Any = model.apply({"params": params}, to_float(batch["image"]), train=False)
        label, mask = batch["label"], batch["mask"]
        return {"count": mask.sum(), **add_up(metrics, logits, label, mask)}

    values = {name: metric.value for name, metric in metrics.items()}
    return Objective(model, train_loss, evaluate, ("loss", share), values, multi_label)
