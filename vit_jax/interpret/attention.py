"""Attention as arrays: of every layer and head, through all layers (rollout), and its distances.

Images are uint8 (b, h, w, 3) of the size that the parameters are for. n counts the tokens: first
the class token, if there is one, then the patches row by row.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models import attention as attention_lib
from vit_jax.models.patches import to_float
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
    grid = model.grid((images.shape[1], images.shape[2]))
    projected: dict[tuple[str, ...], dict[str, jax.Array]] = {}
    weights = []

    def record(call, args, kwargs, context):
        module = context.module
        result = call(*args, **kwargs)
        if isinstance(module.parent, attention_lib.MultiHeadDotProductAttention):
            projected.setdefault(module.parent.path, {})[module.name] = result
        elif isinstance(module, attention_lib.MultiHeadDotProductAttention):
            found = projected[module.path]
            relative = getattr(module.attention_fn, "keywords", {})
            own = attention_lib.attention_weights(found["query"], found["key"], **relative)
            weights.append(_between_all_tokens(own, module.path, grid))
        return result

    with nn.intercept_methods(record):
        models.plain(model).apply({"params": params}, to_float(images), train=False)
    return jnp.stack(weights)


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


def output_attention(weights: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Returns the output's attention to each patch: (…, rows, columns).

    It is that of the class token or, if there is none, the mean over the patches.

    Args:
      weights: (…, n, n), see `attention_maps`.
      grid: (rows, columns) of the patches.
    """
    patches = grid[0] * grid[1]
    has_token = weights.shape[-1] > patches
    output = weights[..., 0, :] if has_token else weights.mean(-2)
    return output[..., -patches:].reshape(*output.shape[:-1], *grid)


def rollout(weights: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Returns how much each patch contributes to the output: (b, rows, columns) float32.

    For each layer, the heads are averaged, and the identity is added for the residual connection,
    each with weight one half. The layers' matrices are multiplied, from the output back to the
    patches (paper D.8; Abnar and Zuidema, arXiv 2005.00928). The shares of the patches and that of
    the class token sum to 1.

    Args:
      weights: (layers, b, k, n, n), see `attention_maps`.
      grid: (rows, columns) of the patches.
    """
    layers = 0.5 * weights.mean(2) + 0.5 * jnp.eye(weights.shape[-1])  # (layers, b, n, n)
    return output_attention(functools.reduce(lambda below, layer: layer @ below, layers), grid)


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
    weights = attention_maps(model, params, image[None])
    return rollout(weights, grid)[0], output_attention(weights[:, 0], grid)


def attention_distances(
    weights: jax.Array, grid: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
    """Returns each head's mean distance between attending and attended patches: (layers, b, k).

    They are in pixels. The distance of a patch is that of its centre to those of all patches,
    averaged with the attention between them as weights; the result is the mean over the patches
    (paper 4.5 and figure 11). The class token is left out, and the rest of each row is scaled to
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
