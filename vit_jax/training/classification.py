"""The objective of classification, with label smoothing and mixup."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.patches import to_float
from vit_jax.training.metrics import METRICS, add_up
from vit_jax.training.mixup import apply_mixup
from vit_jax.training.objective import Objective, softmax_cross_entropy


def classification(
    model: nn.Module,
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    confusion: bool = False,
) -> Objective:
    """Returns the objective of classification; its batches hold `image`, `label` and `mask`.

    The metrics of training are `loss` and `accuracy`. The sums of a test are `count`, those of
    `metrics.METRICS` and, if asked for, `confusion`: int32 (c, c), true class by predicted class.

    Args:
      model: images (b, h, w, 3) -> logits (b, c).
      label_smoothing: see `softmax_cross_entropy`.
      mixup: alpha of `apply_mixup`. `accuracy` counts the label with the larger weight.
      confusion: counts the confusion matrix in a test.
    """

    def loss(params, batch, key):
        images, label, other, weight = apply_mixup(
            to_float(batch["image"]), batch["label"], jax.random.fold_in(key, 0), mixup
        )
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        total = weight * softmax_cross_entropy(logits, label, label_smoothing).mean()
        if mixup:
            total += (1 - weight) * softmax_cross_entropy(logits, other, label_smoothing).mean()
        return total, {"loss": total, "accuracy": (logits.argmax(-1) == label).mean()}

    def evaluate(params, batch):
        logits: Any = model.apply({"params": params}, to_float(batch["image"]), train=False)
        label, mask = batch["label"], batch["mask"]
        sums = {"count": mask.sum(), **add_up(logits, label, mask)}
        if confusion:
            num_classes = logits.shape[-1]
            table = jnp.zeros((num_classes, num_classes), jnp.int32)
            sums["confusion"] = table.at[label, logits.argmax(-1)].add(mask.astype(jnp.int32))
        return sums

    test_metrics = {name: metric.value for name, metric in METRICS.items()}
    return Objective(model, loss, evaluate, ("loss", "accuracy"), test_metrics)
