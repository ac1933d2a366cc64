"""The metrics of a classifier on a split: `METRICS` has a row for each.

A metric is computed from a sum over the examples. So every example counts once, however the split
is cut into batches. A new metric is a row here, and metrics.csv gets its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.training.objective import LOSSES, mean, softmax_cross_entropy


class Metric(NamedTuple):
    """How a metric is computed.

    Attributes:
      per_example: logits (b, c) float32, labels (b,) int32 -> array (b, …), which is added up over
        the examples. In `MULTI_LABEL_METRICS` labels are bool (b, c).
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


def is_one_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns (b,) bool: is the class with the largest logit (b, c) one of the labels (b, c)?"""
    return jnp.take_along_axis(labels, logits.argmax(-1)[:, None], axis=-1)[:, 0]


METRICS = {
    "loss": Metric(softmax_cross_entropy),  # or that of `config.optim.loss`
    "accuracy": Metric(_is_correct),
    "top5_accuracy": Metric(_is_in_top5, min_classes=6),
}
# Of data whose images have several labels. Mean average precision, which is no sum over examples,
# comes from evaluation/average_precision.py.
MULTI_LABEL_METRICS = {
    "loss": Metric(LOSSES["sigmoid"]),
    "precision_at_1": Metric(is_one_of),
}


def choose_metrics(loss: str, *, multi_label: bool = False) -> dict[str, Metric]:
    """Returns the metrics of a test, by name.

    Args:
      loss: what a model was trained with, a key of `objective.LOSSES`.
      multi_label: True for labels (b, c), see `Metric.per_example`.
    """
    return MULTI_LABEL_METRICS if multi_label else {**METRICS, "loss": Metric(LOSSES[loss])}


def add_up(
    metrics: Mapping[str, Metric], logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns the sums of metrics over some examples.

    Args:
      metrics: by name.
      logits: (b, c) float32.
      labels: (b,) int32, or (b, c) bool, as the metrics take them.
      mask: (b,) bool; False for an example that doesn't count.
    """
    sums = {}
    for name, metric in metrics.items():
        if logits.shape[-1] >= metric.min_classes:
            values = metric.per_example(logits, labels)
            counted = mask.reshape(-1, *(1,) * (values.ndim - 1))
            sums[name] = jnp.where(counted, values, 0).sum(0)
    return sums
