"""Objective"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Objective(NamedTuple):
    """How a model is trained and judged.

    Attributes:
      model: a module of images (b, h, w, 3) whose `init` makes all parameters.
      loss: (params, batch, key) -> (loss to descend, metrics), float32 scalars, means over the
        batch; the metrics are `loss` (nats) and what else the objective counts.
      evaluate: (params, batch) -> sums over the examples whose mask is True: `count`, `loss` and
        others. Sums of several batches or devices are added up before any mean is taken.
    """

    model: nn.Module
    loss: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
    evaluate: Callable[[Any, Batch], Metrics]


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy in nats: logits (…, c), int labels (…) -> (…) float32.

    Args:
      label_smoothing: probability mass taken from the label and spread evenly over all classes
        (Szegedy et al., arXiv 1512.00567, section 7).
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
