"""Position embeddings (paper 3.1, D.4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class LearnedPositions(nn.Module):
    """Adds one learned vector to each of n tokens: (b, n, d) -> (b, n, d), paper equation 1.

    The table's shape is (1, n, d) and float32 whatever the compute dtype; it starts at
    N(0, 0.02^2), as the published checkpoints did.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, *x.shape[1:])
        table = self.param("pos_embedding", nn.initializers.normal(stddev=0.02), shape)
        return x + jnp.asarray(table, x.dtype)
