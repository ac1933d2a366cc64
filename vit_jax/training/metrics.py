"""The metrics of a classifier on a split: `METRICS` has a row for each.

A metric is computed from a sum over the examples. So every example counts once, however the split
is cut into batches. A new metric is a row here, and metrics.csv gets its columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.training.objective import mean, softmax_cross_entropy


class Metric(NamedTuple):
    """How a metric is computed.

    Attributes:
      per_example: logits (b, c) float32, labels (b,) int32 -> array (b, …), which is added up over
        the examples.
      value: that sum on the host, the number of examples -> the metric.
      min_classes: the smallest number of classes for which the metric is computed.
    """

    per_example: Callable[[jax.Array, jax.Array], jax.Array]
    value: Callable[[Any, float], float] = mean
    min_classes: int = 1


def _is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return logits.argmax(-1) == labels


def _is_in_top5(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (jax.lax.top_k(logits, 5)[1] == labels[:, None]).any(-1)


METRICS = {
    "loss": Metric(softmax_cross_entropy),
    "accuracy": Metric(_is_correct),
    "top5_accuracy": Metric(_is_in_top5, min_classes=6),
}


def add_up(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the sums of all metrics over some examples.

    Args:
      logits: (b, c) float32.
      labels: (b,) int32.
      mask: (b,) bool; False for an example that doesn't count.
    """
    sums = {}
    for name, metric in METRICS.items():
        if logits.shape[-1] >= metric.min_classes:
            values = metric.per_example(logits, labels)
            counted = mask.reshape(-1, *(1,) * (values.ndim - 1))
            sums[name] = jnp.where(counted, values, 0).sum(0)
    return sums
