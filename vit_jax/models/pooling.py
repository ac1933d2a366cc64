"""From the encoder's tokens to what the head reads (paper D.3)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.encoder import MlpBlock
from vit_jax.models.layers import dense, norm_layer

POOLS = ("token", "gap", "token+gap", "map")


def pool_tokens(class_tokens: jax.Array, patches: jax.Array, pool: str) -> jax.Array:
    """Returns the class tokens, the mean of the patches, or both, as one vector: (b, e).

    e is k*d with "token", d with "gap", (k + 1)*d with "token+gap".

    Args:
      class_tokens: (b, k, d).
      patches: (b, n, d).
      pool: one of `POOLS` other than "map".
    """
    parts = []
    if "token" in pool:
        parts.append(class_tokens.reshape(class_tokens.shape[0], -1))
    if "gap" in pool:
        parts.append(patches.mean(axis=1))
    return jnp.concatenate(parts, axis=-1)


class MAPHead(nn.Module):
    """Multi-head attention pooling: y = MHA(probe, patches), then MLP(LN(y)) + y: (b, d).

    The probe is a learned query, which reads the patches (b, n, d). Lee et al., arXiv 1810.00825;
    Zhai et al., arXiv 2106.04560. Names and shapes of parameters are those of big_vision's
    checkpoints. Attributes are `VisionTransformer`'s.
    """

    mlp_dim: int
    num_heads: int
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    implementation: str = "plain"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        b, _, width = patches.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(probe.astype(patches.dtype), (b, 1, width))
        layer = dense(self.implementation)
        y = MultiHeadDotProductAttention(self.num_heads, dense=layer, dtype=self.dtype)(
            probe, patches
        )
        how = dict(implementation=self.implementation, dtype=self.dtype)
        z = norm_layer(self.norm, self.norm_epsilon, **how)(name="LayerNorm_0")(y)
        mlp = MlpBlock(self.mlp_dim, gelu=self.gelu, **how)
        return (y + mlp(z, train=False))[:, 0]
