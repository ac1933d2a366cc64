"""What a model is trained for, as pure functions of parameters and batches that know no devices.

`classification.py` and `masked_patches.py` make the two objectives; `setup.OBJECTIVES` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

DeviceBatch = dict[str, jax.Array]  # a `data.batch.Batch`, placed on the devices
Metrics = dict[str, jax.Array]


class Objective(NamedTuple):
    """How a model is trained and tested.

    Attributes:
      model: a module of images (b, h, w, 3) float32 in [-1, 1]. Its `init` makes all parameters.
      loss: (params, batch, key, shared_key) -> (loss, metrics). Both are float32 scalars, means
        over the batch. The metrics are `loss` and the others of `train_metrics`. `key` differs
        between the parts of a batch, on devices or in micro-batches; `shared_key` is one for all.
      evaluate: (params, batch) -> sums over the examples whose mask is True: `count` (of examples,
        or of what else is predicted), and one sum for each of `test_metrics`. The sums of batches
        and devices are added up.
      train_metrics: the names of the metrics of `loss`. `metrics.csv` has a column `train_NAME` for
        each.
      test_metrics: functions (sum, count) -> metric, by the name of the metric of a test.
        `metrics.csv` has a column `test_NAME` for each.
      multi_label: True if an example may have several labels, or none. Then its `label` is bool
        (b, c), and a test also measures the mean average precision.
    """

    model: nn.Module
    loss: Callable[[Any, DeviceBatch, jax.Array, jax.Array], tuple[jax.Array, Metrics]]
    evaluate: Callable[[Any, DeviceBatch], Metrics]
    train_metrics: tuple[str, ...]
    test_metrics: Mapping[str, Callable[[Any, float], float]]
    multi_label: bool = False

    def summarize(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the test metrics of some sums; a metric without a sum is left out."""
        count = float(sums["count"])
        return {
            name: value(sums[name], count)
            for name, value in self.test_metrics.items()
            if name in sums
        }


def mean(total: Any, count: float) -> float:
    """Returns the mean of a metric: its sum divided by the count."""
    return float(total) / count


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy in nats: logits (…, c), int labels (…) -> (…) float32.

    Args:
      logits: float, any dtype.
      labels: classes, from 0.
      label_smoothing: the probability mass that is taken from the label and spread evenly over all
        classes (Szegedy et al., arXiv 1512.00567, section 7).
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def sigmoid_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the binary cross-entropy in nats, summed over the classes: -> (…) float32.

    Each class has a probability of its own, the sigmoid of its logit. It is the `sigmoid_xent` that
    the paper's authors trained with (google-research/vision_transformer, issues 2 and 34).

    Args:
      logits: (…, c) float, any dtype.
      labels: int (…), classes, from 0; or bool (…, c), True for each class of the example.
      label_smoothing: s, which makes of a target y in {0, 1} the target (1 - s) y + s / c.
    """
    logits = logits.astype(jnp.float32)
    targets = labels.astype(jnp.float32)
    if labels.dtype != jnp.bool_:
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    targets = optax.smooth_labels(targets, label_smoothing)
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


# By the value of config.optim.loss: the loss, and what makes probabilities of logits (…, c).
LOSSES = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
}
PROBABILITIES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
