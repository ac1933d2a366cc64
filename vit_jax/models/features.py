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
      tokens: block number -> its output (b, n, d) float32; 0 -> what the first block gets. Class
        tokens come first, if there are any; the patches follow row by row. Registers are left out.
      final_tokens: (b, n, d) float32, what the encoder returns: the tokens after the last block,
        normalised if the model normalises before it pools. None if they weren't asked for.
    """

    pooled: jax.Array
    tokens: Mapping[int, jax.Array]
    final_tokens: jax.Array | None = None


def token_features(
    model: nn.Module,
    params: Any,
    images: jax.Array,
    layers: Sequence[int] = (),
    *,
    final_tokens: bool = False,
) -> Features:
    """Returns the pooled representation of images and the tokens after chosen encoder blocks.

    It can be compiled by `jax.jit`, where all but `params` and `images` are constants.

    Args:
      model: what `models.build` returns; its head is not computed.
      params: the model's parameters. Those of a head may be among them.
      images: (b, h, w, 3) in [-1, 1].
      layers: numbers of encoder blocks, counted from 1. The last LayerNorm is not applied to
        their tokens. 0 stands for the input of the first block: patch embeddings and class tokens
        with their positions, and normalised if the model has `pre_norm`.
      final_tokens: True if the encoder's result is returned, too.

    Raises:
      ValueError: the model has no encoder block of a number, or is a ResNet and tokens are asked
        for.
    """
    headless = model.clone(num_classes=0)
    if not (layers or final_tokens):
        pooled: Any = headless.apply({"params": params}, images, train=False)
        return Features(pooled, {})
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"A {type(model).__name__} has no tokens: leave layers and tokens out. It has pooled "
            f"features."
        )
    if wrong := [layer for layer in layers if layer not in range(model.depth + 1)]:
        raise ValueError(
            f"There is no encoder block {wrong[0]}: the model's are numbered from 1 to "
            f"{model.depth}, and 0 stands for the first one's input."
        )
    names = {f"encoderblock_{layer - 1}" for layer in layers} | {"Transformer"}
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
    found = state["intermediates"]["Transformer"]

    def shown(outputs: Sequence[jax.Array]) -> jax.Array:
        return outputs[0][:, :count].astype(jnp.float32)

    tokens = {
        layer: shown(
            found[f"encoderblock_{layer - 1}"]["__call__"] if layer else found["input_of_blocks"]
        )
        for layer in layers
    }
    return Features(pooled, tokens, shown(found["__call__"]) if final_tokens else None)
