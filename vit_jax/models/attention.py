"""Multi-head self-attention (paper appendix A) with the published checkpoints' parameter tree."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.positions import RelativePositions


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    relative: jax.Array | None = None,
    **unused: Any,
) -> jax.Array:
    """softmax(q k^T / sqrt(depth)) v for q, k, v of shape (b, n, heads, depth); same shape out.

    The sum of the exponentials divides the product with the values, not the (n, n) weights:
    the same function of equation 6 and 7 with depth instead of n divisions a row, which is
    faster on a CPU. Scores and sums are float32 whatever the dtype of the inputs.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      relative: embeddings (n, n, depth) that are each query's additional keys: their scores are
        added to the others before the softmax (paper D.4).
      **unused: what `flax.linen.MultiHeadDotProductAttention` passes besides (masks, dropout);
        ViT uses none of it.
    """
    scores = _scores(query, key, relative)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)  # (b, heads, n)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value,
                   preferred_element_type=jnp.float32)
    return (y / jnp.swapaxes(total, 1, 2)[..., None]).astype(value.dtype)


def attention_weights(
    query: jax.Array, key: jax.Array, *, relative: jax.Array | None = None
) -> jax.Array:
    """Returns the weights softmax(q k^T / sqrt(depth)) (b, heads, n, n) [query, key], float32.

    Equation 6: what `attend` multiplies the values with. Arguments are those of `attend`.
    """
    return jax.nn.softmax(_scores(query, key, relative))


def _scores(query: jax.Array, key: jax.Array, relative: jax.Array | None) -> jax.Array:
    query = query * (query.shape[-1] ** -0.5)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    if relative is not None:
        scores += jnp.einsum("bqhd,qkd->bhqk", query, relative.astype(query.dtype),
                             preferred_element_type=jnp.float32)
    return scores


class MultiHeadDotProductAttention(nn.MultiHeadDotProductAttention):
    """Self-attention of `num_heads` heads over tokens (b, n, d) -> (b, n, d).

    Flax's module gives the parameters (query, key, value: (d, heads, depth); out: (heads,
    depth, d)) and `attend` the mathematics. Kernels start Xavier-uniform, biases at zero.
    """

    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    attention_fn: Any = attend


def self_attention(
    x: jax.Array, num_heads: int, *, relative: bool = False, dtype: Any = jnp.float32
) -> jax.Array:
    """Self-attention over (b, n, d), with or without relative positions; (b, n, d) out.

    To be called in a module's compact method: that module gets the parameters, as
    `MultiHeadDotProductAttention_0` and, with `relative`, `RelativePositions_0`.
    """
    attention_fn = attend
    if relative:
        embeddings = RelativePositions(x.shape[1], x.shape[2] // num_heads)()
        attention_fn = functools.partial(attend, relative=embeddings)
    return MultiHeadDotProductAttention(
        num_heads=num_heads, dtype=dtype, attention_fn=attention_fn
    )(x)
