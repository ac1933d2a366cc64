"""Multi-head self-attention (paper appendix A) with the published checkpoints' parameter tree."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array, **unused: Any) -> jax.Array:
    """softmax(q k^T / sqrt(depth)) v for q, k, v of shape (b, n, heads, depth); same shape out.

    The sum of the exponentials divides the product with the values, not the (n, n) weights:
    the same function of equation 6 and 7 with depth instead of n divisions a row, which is
    faster on a CPU. Scores and sums are float32 whatever the dtype of the inputs.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      **unused: what `flax.linen.MultiHeadDotProductAttention` passes besides (masks, dropout);
        ViT uses none of it.
    """
    query = query * (query.shape[-1] ** -0.5)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)  # (b, heads, n)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value,
                   preferred_element_type=jnp.float32)
    return (y / jnp.swapaxes(total, 1, 2)[..., None]).astype(value.dtype)


class MultiHeadDotProductAttention(nn.MultiHeadDotProductAttention):
    """Self-attention of `num_heads` heads over tokens (b, n, d) -> (b, n, d).

    Flax's module gives the parameters (query, key, value: (d, heads, depth); out: (heads,
    depth, d)) and `attend` the mathematics. Kernels start Xavier-uniform, biases at zero.
    """

    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    attention_fn: Any = attend
