"""Mixup (Zhang et al., arXiv 1710.09412): training on blends of two images."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def apply_mixup(
    images: jax.Array, labels: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | float]:
    """Blends every image with the one before it.

    One weight is drawn from Beta(alpha, alpha). The larger of it and its complement is taken. A
    step has one weight for all devices and micro-batches, as in the public ViT recipes; images are
    blended within the part of the batch that is given.

    Args:
      images: (b, h, w, 3) float.
      labels: (b,), or (b, c) if images have several.
      key: the random key of the weight.
      alpha: 0 leaves the images as they are.

    Returns:
      The images, their labels, the labels of the images that were blended in, and the weight of the
      former, in [0.5, 1].
    """
    if not alpha:
        return images, labels, labels, 1.0
    weight = jax.random.beta(key, alpha, alpha)
    weight = jnp.maximum(weight, 1 - weight)
    images = weight * images + (1 - weight) * jnp.roll(images, 1, axis=0)
    return images, labels, jnp.roll(labels, 1, axis=0), weight
