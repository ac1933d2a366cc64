"""The objective of classification, with label smoothing and mixup."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vit_jax.models.patches import to_float
from vit_jax.training.metrics import add_up, choose_metrics, is_one_of
from vit_jax.training.mixup import apply_mixup
from vit_jax.training.objective import LOSSES, Objective


def classification(
    model: nn.Module,
    *,
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    multi_label: bool = False,
) -> Objective:
    """Returns the objective of classification; its batches hold `image`, `label` and `mask`.

    The metrics of training are `loss` and `accuracy`, or `precision_at_1` if images have several
    labels. The sums of a test are `count` and those of `metrics.choose_metrics`.

    Args:
      model: images (b, h, w, 3) -> logits (b, c).
      loss: a key of `objective.LOSSES`.
      label_smoothing: see `objective.LOSSES`.
      mixup: alpha of `apply_mixup`. `accuracy` counts the label with the larger weight, and
        `precision_at_1` those of the image with the larger weight.
      multi_label: True if `label` is bool (b, c): every class of each image. Needs the loss
        "sigmoid".
    """
    cross_entropy = LOSSES[loss]
    share = "precision_at_1" if multi_label else "accuracy"
    metrics = choose_metrics(loss, multi_label=multi_label)

    def train_loss(params, batch, key, shared_key):
        images, label, other, weight = apply_mixup(
            to_float(batch["image"]), batch["label"], jax.random.fold_in(shared_key, 0), mixup
        )
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        total = weight * cross_entropy(logits, label, label_smoothing).mean()
        if mixup:
            total += (1 - weight) * cross_entropy(logits, other, label_smoothing).mean()
        is_right = is_one_of(logits, label) if multi_label else logits.argmax(-1) == label
        return total, {"loss": total, share: is_right.mean()}

    def evaluate(params, batch):
        logits: Any = model.apply({"params": params}, to_float(batch["image"]), train=False)
        label, mask = batch["label"], batch["mask"]
        return {"count": mask.sum(), **add_up(metrics, logits, label, mask)}

    values = {name: metric.value for name, metric in metrics.items()}
    return Objective(model, train_loss, evaluate, ("loss", share), values, multi_label)
