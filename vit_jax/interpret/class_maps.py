"""class maps"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.patches import to_float
from vit_jax.models.resnet import ResNet


@functools.partial(jax.jit, static_argnums=0)
def class_maps(
    model: ResNet, params: Any, images: jax.Array, classes: jax.Array | None = None
) -> jax.Array:
    """Returns where a ResNet sees evidence for a class: (b, rows, columns) float32, at least 0.

    Grad-CAM (Selvaraju et al., arXiv 1610.02391): the channels of the last feature map, each
    weighted by the mean gradient of the class's logit, are summed, and negative sums set to 0. All
    that follows this map is its mean and a linear head, so the gradient is the head's kernel,
    divided by the number of places.

    Args:
      params: with a head.
      classes: int (b,), the class for each image; None for the likeliest.
    """
    logits, state = model.apply(
        {"params": params},
        to_float(images),
        capture_intermediates=lambda module, _: module.name == "gn_pre_head",
        mutable=["intermediates"],
    )
    features = nn.relu(state["intermediates"]["gn_pre_head"]["__call__"][0])
    chosen = logits.argmax(-1) if classes is None else classes
    gradients = params["head"]["kernel"][:, chosen] / np.prod(features.shape[1:3])
    return nn.relu(jnp.einsum("bhwc,cb->bhw", features, gradients))
