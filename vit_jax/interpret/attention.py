"""Attention as arrays: of every layer and head, through all layers (rollout), and its distances.

Images are uint8 (b, h, w, 3) of the size that the parameters are for. n counts the tokens: first
the class tokens and registers, if there are any, then the patches row by row.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.models import attention as attention_lib
from vit_jax.models.patches import to_float
from vit_jax.models.pooling import MAPHead
from vit_jax.models.vit import VisionTransformer


@functools.partial(jax.jit, static_argnums=0)
def attention_maps(model: VisionTransformer, params: Any, images: jax.Array) -> jax.Array:
    """Returns what each token attends to in every layer and head: (layers, b, k, n, n) float32.

    Entry [l, b, k, q, j] is the weight of token j's value for token q (paper equation 6); each row
    sums to 1. A block of axial attention is two layers, along rows and along columns; the weights
    of patches in other rows or columns are 0 (paper D.6).

    Args:
      model: a ViT, a hybrid or axial; with or without a head.
      params: its parameters.
      images: uint8 (b, h, w, 3).
    """
    return _attention_and_pooling(model, params, images)[0]


def _attention_and_pooling(
    model: VisionTransformer, params: Any, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `attention_maps`, and the weights of tokens in the pooled representation (b, n).

    The weights sum to 1. All vectors that pooling concatenates have the same share. Those of
    attention pooling are the mean over its heads.
    """
    grid = model.grid((images.shape[1], images.shape[2]))
    projected: dict[tuple[str, ...], dict[str, jax.Array]] = {}
    weights: list[jax.Array] = []
    of_probe: list[jax.Array] = []

    def record(call, args, kwargs, context):
        module = context.module
        result = call(*args, **kwargs)
        if isinstance(module.parent, attention_lib.MultiHeadDotProductAttention):
            projected.setdefault(module.parent.path, {})[module.name] = result
        elif isinstance(module, attention_lib.MultiHeadDotProductAttention):
            found = projected[module.path]
            relative = getattr(module.attention_fn, "keywords", {})
            own = attention_lib.attention_weights(found["query"], found["key"], **relative)
            if isinstance(module.parent, MAPHead):
                of_probe.append(own[:, :, 0].mean(1))  # (b, patches)
            else:
                weights.append(_between_all_tokens(own, module.path, grid))
        return result

    with nn.intercept_methods(record):
        models.plain(model).apply({"params": params}, to_float(images), train=False)
    k, r, patches = model.num_class_tokens, model.registers, grid[0] * grid[1]
    # In the encoder, registers are the last tokens.
    order = np.r_[:k, k + patches : k + patches + r, k : k + patches]
    maps = jnp.stack(weights)[..., order[:, None], order]
    if of_probe:
        return maps, jnp.pad(of_probe[0], ((0, 0), (k + r, 0)))
    pooled = np.zeros(len(order))
    if "token" in model.pool:
        pooled[:k] = 1
    if "gap" in model.pool:
        pooled[k + r :] = 1 / patches
    return maps, jnp.broadcast_to(pooled / pooled.sum(), (len(images), len(order)))


def _between_all_tokens(
    weights: jax.Array, path: tuple[str, ...], grid: tuple[int, int]
) -> jax.Array:
    """Returns the weights of an attention module between all tokens: (b, k, n, n).

    Args:
      weights: (b, k, n, n); of axial attention (b * rows, k, columns, columns) or (b * columns, k,
        rows, rows).
      path: the module's path, which says along which axis it attends.
      grid: (rows, columns) of the patches.
    """
    rows, columns = grid
    if "row" in path:
        lines = weights.reshape(-1, rows, *weights.shape[1:])  # (b, rows, k, columns, columns)
        full = jnp.einsum("brkij,rs->bkrisj", lines, jnp.eye(rows))
    elif "column" in path:
        lines = weights.reshape(-1, columns, *weights.shape[1:])  # (b, columns, k, rows, rows)
        full = jnp.einsum("bckij,cd->bkicjd", lines, jnp.eye(columns))
    else:
        return weights
    return full.reshape(*full.shape[:2], rows * columns, rows * columns)


def output_attention(
    weights: jax.Array, grid: tuple[int, int], pooled: jax.Array | None = None
) -> jax.Array:
    """Returns the output's attention to each patch: (…, rows, columns).

    Args:
      weights: (…, n, n), see `attention_maps`.
      grid: (rows, columns) of the patches.
      pooled: (…, n), the weights of tokens in the pooled representation, which sum to 1. None for
        those of the first token, the class token, or of the mean if there are patches alone.
    """
    patches = grid[0] * grid[1]
    if pooled is not None:
        output = jnp.einsum("...q,...qk->...k", pooled, weights)
    else:
        output = weights[..., 0, :] if weights.shape[-1] > patches else weights.mean(-2)
    return output[..., -patches:].reshape(*output.shape[:-1], *grid)


def rollout(
    weights: jax.Array, grid: tuple[int, int], pooled: jax.Array | None = None
) -> jax.Array:
    """Returns how much each patch contributes to the output: (b, rows, columns) float32.

    For each layer, the heads are averaged, and the identity is added for the residual connection,
    each with weight one half. The layers' matrices are multiplied, from the output back to the
    patches (paper D.8; Abnar and Zuidema, arXiv 2005.00928). The shares of the patches and those of
    the class tokens and registers sum to 1.

    Args:
      weights: (layers, b, k, n, n), see `attention_maps`.
      grid: (rows, columns) of the patches.
      pooled: (b, n), see `output_attention`.
    """
    layers = 0.5 * weights.mean(2) + 0.5 * jnp.eye(weights.shape[-1])  # (layers, b, n, n)
    through = functools.reduce(lambda below, layer: layer @ below, layers)
    return output_attention(through, grid, pooled)


@functools.partial(jax.jit, static_argnums=0)
def rollout_and_heads(
    model: VisionTransformer, params: Any, image: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns what the output attends to in one image: through all layers, and in each head.

    Args:
      model: a ViT, a hybrid or axial.
      params: its parameters.
      image: uint8 (h, w, 3).

    Returns:
      The rollout (rows, columns), and the attention to each patch, of every layer and head:
      (layers, k, rows, columns), see `output_attention`. Both float32.
    """
    grid = model.grid((image.shape[0], image.shape[1]))
    weights, pooled = _attention_and_pooling(model, params, image[None])
    return rollout(weights, grid, pooled)[0], output_attention(weights[:, 0], grid, pooled[0])


def attention_distances(
    weights: jax.Array, grid: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
    """Returns each head's mean distance between attending and attended patches: (layers, b, k).

    They are in pixels. The distance of a patch is that of its centre to those of all patches,
    averaged with the attention between them as weights; the result is the mean over the patches
    (paper 4.5 and figure 11). Other tokens are left out, and the rest of each row is scaled to
    sum to 1.

    Args:
      weights: (layers, b, k, n, n), see `attention_maps`.
      grid: (rows, columns) of the patches.
      stride: (height, width) in pixels from one patch to the next.
    """
    patches = grid[0] * grid[1]
    centres = jnp.stack(jnp.mgrid[: grid[0], : grid[1]], axis=-1).reshape(patches, 2)
    offsets = (centres[:, None] - centres) * jnp.asarray(stride)
    distances = jnp.sqrt(jnp.square(offsets).sum(-1))  # (patches, patches)
    weights = weights[..., -patches:, -patches:]
    return ((weights * distances).sum(-1) / weights.sum(-1)).mean(-1)
