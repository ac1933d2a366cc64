"""What a model has found in images before its head: pooled representations and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.vit import VisionTransformer


class Features(NamedTuple):
    """The features of images.

    Attributes:
      pooled: (b, d) float32, what the head would read.
      tokens: block number -> its output (b, n, d) float32. Class tokens come first, if there are
        any; the patches follow row by row. Registers are left out.
    """

    pooled: jax.Array
    tokens: Mapping[int, jax.Array]


def token_features(
    model: nn.Module, params: Any, images: jax.Array, layers: Sequence[int] = ()
) -> Features:
    """Returns the pooled representation of images and the tokens after chosen encoder blocks.

    It can be compiled by `jax.jit`, where `model` and `layers` are constants.

    Args:
      model: what `models.build` returns; its head is not computed.
      params: the model's parameters. Those of a head may be among them.
      images: (b, h, w, 3) in [-1, 1].
      layers: numbers of encoder blocks, counted from 1. The last LayerNorm is not applied to
        their tokens.

    Raises:
      ValueError: the model has no encoder block of a number, or is a ResNet and `layers` isn't
        empty.
    """
    headless = model.clone(num_classes=0)
    if not layers:
        pooled: Any = headless.apply({"params": params}, images, train=False)
        return Features(pooled, {})
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"A {type(model).__name__} has no encoder blocks: leave layers empty.")
    if wrong := [layer for layer in layers if layer not in range(1, model.depth + 1)]:
        raise ValueError(
            f"There is no encoder block {wrong[0]}: the model's are numbered from 1 to "
            f"{model.depth}."
        )
    names = {f"encoderblock_{layer - 1}": layer for layer in layers}
    pooled, state = headless.apply(
        {"params": params},
        images,
        train=False,
        capture_intermediates=lambda module, method: module.name in names,
        mutable=["intermediates"],
    )
    _, height, width, _ = images.shape
    rows, columns = model.grid((height, width))
    count = model.num_class_tokens + rows * columns  # registers and cuDNN's one more follow
    outputs = state["intermediates"]["Transformer"]
    tokens = {
        names[name]: outputs[name]["__call__"][0][:, :count].astype(jnp.float32) for name in names
    }
    return Features(pooled, tokens)
