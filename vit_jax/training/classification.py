"""The objective of telling classes apart, with label smoothing and mixup."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.patches import to_float
from vit_jax.training.objective import Objective, softmax_cross_entropy

# The metrics of a test, and the sum that each is computed from. Top-5 accuracy has a sum only where
# there are more than five classes.
TEST_METRICS = {"loss": "loss", "accuracy": "correct", "top5_accuracy": "top5"}


def classification(
    model: nn.Module,
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    confusion: bool = False,
) -> Objective:
    """Returns the objective of classification; its batches hold `image`, `label` and `mask`.

    The metrics of training are `loss` and `accuracy`. The sums of a test are `count`, `loss`,
    `correct`, `top5` (the label is among the five largest logits; only for more than five classes)
    and, if asked for, `confusion`: int32 (c, c), true class by predicted class.

    Args:
      model: images (b, h, w, 3) -> logits (b, c).
      label_smoothing: see `softmax_cross_entropy`.
      mixup: alpha of `apply_mixup`. `accuracy` counts the label with the larger share.
      confusion: counts the confusion matrix in a test.
    """

    def loss(params, batch, key):
        images, label, other, share = apply_mixup(
            to_float(batch["image"]), batch["label"], jax.random.fold_in(key, 0), mixup
        )
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        total = share * softmax_cross_entropy(logits, label, label_smoothing).mean()
        if mixup:
            total += (1 - share) * softmax_cross_entropy(logits, other, label_smoothing).mean()
        return total, {"loss": total, "accuracy": (logits.argmax(-1) == label).mean()}

    def evaluate(params, batch):
        logits: Any = model.apply({"params": params}, to_float(batch["image"]), train=False)
        label, mask = batch["label"], batch["mask"]
        predicted = logits.argmax(-1)
        num_classes = logits.shape[-1]
        sums = {
            "count": mask.sum(),
            "loss": jnp.where(mask, softmax_cross_entropy(logits, label), 0.0).sum(),
            "correct": (mask & (predicted == label)).sum(),
        }
        if num_classes > 5:
            top5 = jax.lax.top_k(logits, 5)[1]
            sums["top5"] = (mask & (top5 == label[:, None]).any(-1)).sum()
        if confusion:
            table = jnp.zeros((num_classes, num_classes), jnp.int32)
            sums["confusion"] = table.at[label, predicted].add(mask.astype(jnp.int32))
        return sums

    return Objective(model, loss, evaluate, ("loss", "accuracy"), TEST_METRICS)


def apply_mixup(
    images: jax.Array, labels: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | float]:
    """Blends every image with the one before it (mixup: Zhang et al., arXiv 1710.09412).

    One share is drawn for the batch from Beta(alpha, alpha). The larger of it and its complement is
    taken, as in the public ViT recipes.

    Args:
      images: (b, h, w, 3) float.
      labels: (b,).
      key: of the share.
      alpha: 0 leaves the images as they are.

    Returns:
      The images, their labels (b,), the labels (b,) of the images that were blended in, and the
      share of the former, in [0.5, 1].
    """
    if not alpha:
        return images, labels, labels, 1.0
    share = jax.random.beta(key, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    images = share * images + (1 - share) * jnp.roll(images, 1, axis=0)
    return images, labels, jnp.roll(labels, 1), share
