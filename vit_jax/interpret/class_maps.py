"""Where a ResNet sees evidence for a class: class maps, based on gradients."""

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
def grad_cam(
    model: ResNet, params: Any, images: jax.Array, classes: jax.Array | None = None
) -> jax.Array:
    """Returns where a ResNet sees evidence for a class: (b, rows, columns) float32, at least 0.

    This is Grad-CAM (Selvaraju et al., arXiv 1610.02391): the channels of the last feature map are
    summed, each weighted by the mean gradient of the class's logit; negative sums are set to 0.
    Only a mean and a linear head follow this feature map, so the gradient is the head's kernel,
    divided by the number of places.

    Args:
      model: a ResNet with a head.
      params: its parameters.
      images: uint8 (b, h, w, 3).
      classes: int (b,), the class for each image. None for the likeliest.
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
