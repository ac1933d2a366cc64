"""Axial attention (paper D.6): rows of a 2-D grid attend to themselves, then its columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import self_attention


def along_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns a grid after a function of tokens is applied to each of its rows.

    Args:
      function: (b, n, d) -> (b, n, e).
      x: (b, rows, columns, d); the result is (b, rows, columns, e).
    """
    y = function(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def along_columns(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns a grid after a function of tokens is applied to each of its columns.

    Arguments and result are those of `along_rows`.
    """
    return jnp.swapaxes(along_rows(function, jnp.swapaxes(x, 1, 2)), 1, 2)


class _LineAttention(nn.Module):
    """Self-attention with relative positions: (b, n, d) -> (b, n, d)."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self_attention(x, self.num_heads, relative=True, dtype=self.dtype)


class AxialAttention(nn.Module):
    """Row attention, then column attention: (b, h, w, d) -> (b, h, w, d).

    AxialResNet has it in the place of a 3x3 convolution (paper D.6; Wang et al., arXiv
    2003.07853). Both attentions have relative positions, so the shapes of their parameters depend
    on w and h.

    Attributes:
      num_heads: number of heads of each attention, which must divide d.
      dtype: dtype of the computation.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = along_rows(_LineAttention(self.num_heads, self.dtype, name="row"), x)
        return along_columns(_LineAttention(self.num_heads, self.dtype, name="column"), x)
