"""Training on mixtures of two images: mixup and CutMix.

Sources: Zhang et al., arXiv 1710.09412 (mixup); Yun et al., arXiv 1905.04899 (CutMix).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """How images are mixed.

    Attributes:
      mixup: alpha of mixup's Beta distribution; 0 for no mixup.
      cutmix: alpha of CutMix's Beta distribution; 0 for no CutMix.
      cutmix_probability: of CutMix in place of mixup in a step, if neither alpha is 0.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_probability: float = 0.5


NO_MIXING = Mixing()


def mix_images(
    images: jax.Array, labels: jax.Array, key: jax.Array, mixing: Mixing
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | float]:
    """Mixes every image with the one before it, by mixup or by CutMix.

    Mixup blends them. One weight is drawn from Beta(alpha, alpha). The larger of it and its
    complement is taken. CutMix puts a box of the one into the other, see `draw_box`. A step has one
    weight or box for all devices and micro-batches, as in the public ViT recipes; images are mixed
    within the part of the batch that is given.

    Args:
      images: (b, h, w, 3) float.
      labels: (b,), or (b, c) if images have several.
      key: the random key of all that is drawn.
      mixing: how; nothing is drawn if both alphas are 0.

    Returns:
      The images; for each of them the labels of the image that has the larger share of it, and
      those of the other; and the share of the former, in [0.5, 1].
    """
    alpha, cutmix, cutmix_probability = mixing
    if not alpha and not cutmix:
        return images, labels, labels, 1.0
    others, other_labels = jnp.roll(images, 1, axis=0), jnp.roll(labels, 1, axis=0)
    if alpha:
        weight = jax.random.beta(key, alpha, alpha)
        weight = jnp.maximum(weight, 1 - weight)
    if not cutmix:
        return weight * images + (1 - weight) * others, labels, other_labels, weight

    box_key, choice_key = jax.random.split(jax.random.fold_in(key, 1))
    _, h, w, _ = images.shape
    kept = 1.0 - draw_box(box_key, (h, w), cutmix)  # in each pixel, the share of `images`
    if alpha:
        use_cutmix = jax.random.bernoulli(choice_key, cutmix_probability)
        kept = jnp.where(use_cutmix, kept, weight)
    share = kept.mean()
    images = kept[..., None] * images + (1 - kept[..., None]) * others
    is_less = share < 0.5
    first = jnp.where(is_less, other_labels, labels)
    second = jnp.where(is_less, labels, other_labels)
    return images, first, second, jnp.maximum(share, 1 - share)


def draw_box(key: jax.Array, size: tuple[int, int], alpha: float) -> jax.Array:
    """Returns a random box of CutMix: (h, w) bool, True inside.

    The box's share of the area is drawn from Beta(alpha, alpha), its centre uniformly from all
    pixels. Its sides are in the proportion of the image's, and are rounded down to even numbers of
    pixels. What lies outside of the image is cut off, as in the authors' code. So the share of the
    area that the box has in the end is smaller than what was drawn.

    Args:
      key: a random key.
      size: (h, w) of the image in pixels.
      alpha: above 0.
    """
    share_key, *keys = jax.random.split(key, 3)
    side = jnp.sqrt(jax.random.beta(share_key, alpha, alpha))  # as a share of the image's
    inside = []
    for key, length in zip(keys, size, strict=True):
        centre = jax.random.randint(key, (), 0, length)
        half = jnp.floor(length * side).astype(jnp.int32) // 2
        pixels = jnp.arange(length)
        inside.append((centre - half <= pixels) & (pixels < centre + half))
    rows, columns = inside
    return rows[:, None] & columns[None, :]
