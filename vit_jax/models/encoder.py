"""The Transformer encoder (paper 3.1, equations 2 and 3, and figure 1 right)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.positions import LearnedPositions


class MlpBlock(nn.Module):
    """Dense(mlp_dim), GELU (tanh form), dropout, Dense(d), dropout: (b, n, d) -> (b, n, d)."""

    mlp_dim: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        init = dict(
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(stddev=1e-6),
            dtype=self.dtype,
        )
        x = nn.Dense(self.mlp_dim, **init)(x)
        x = nn.gelu(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(width, **init)(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z, then MLP(LN(z')) + z': (b, n, d) -> (b, n, d)."""

    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        y = nn.LayerNorm(dtype=self.dtype)(z)
        y = MultiHeadDotProductAttention(num_heads=self.num_heads, dtype=self.dtype)(y)
        z = z + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.LayerNorm(dtype=self.dtype)(z)
        return z + MlpBlock(self.mlp_dim, self.dropout, self.dtype)(y, train=train)


class Encoder(nn.Module):
    """Adds positions, applies `depth` blocks and a last LayerNorm: (b, n, d) -> (b, n, d).

    Dropout comes right after the position embeddings and after every dense layer but the
    query, key and value projections (paper B.1).
    """

    depth: int
    mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        z = LearnedPositions(name="posembed_input")(x)
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        for i in range(self.depth):
            z = EncoderBlock(
                self.mlp_dim, self.num_heads, self.dropout, self.dtype, name=f"encoderblock_{i}"
            )(z, train=train)
        return nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(z)
