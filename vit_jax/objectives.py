"""Losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns each example's cross-entropy in nats: logits (b, c), int labels (b,) -> (b,) float32.

    Args:
      label_smoothing: probability mass taken from the label and spread evenly over all classes
        (Szegedy et al., arXiv 1512.00567, section 7).
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
