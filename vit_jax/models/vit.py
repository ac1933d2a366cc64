"""The Vision Transformer: patches -> class token -> encoder -> representation -> head (fig. 1)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.encoder import Encoder
from vit_jax.models.patches import PatchEmbedding


class VisionTransformer(nn.Module):
    """Images (b, h, w, 3) in [-1, 1] to logits (b, c) float32, or to representations (b, d).

    Call it with `module.apply({"params": params}, images, train=False)`; with `train=True` and
    dropout, pass `rngs={"dropout": key}` too. The parameters are those of the published
    checkpoints, float32 whatever `dtype` is.

    Attributes:
      num_classes: c; 0 leaves the head out and returns the pooled representation (b, d).
      patch_size: the patch's side in pixels, or its (height, width).
      width: d, the size of every token (the paper's D).
      depth: number of encoder blocks (the paper's L).
      mlp_dim: hidden size of the blocks' MLP.
      num_heads: attention heads; `width` must be a multiple of it.
      pool: "token" reads the class token, "gap" averages the patch tokens (paper D.3).
      pre_logits: adds Dense(d) and tanh before the head, as in pre-training (paper 3.1).
      dropout: probability of dropping a unit (paper B.1).
      dtype: the dtype of the computation.
    """

    num_classes: int
    patch_size: int | tuple[int, int]
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    pool: str = "token"
    pre_logits: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        patch_size = self.patch_size
        if isinstance(patch_size, int):
            patch_size = (patch_size, patch_size)
        images = jnp.asarray(images, self.dtype)
        x = PatchEmbedding(
            self.width, patch_size, strides=patch_size, dtype=self.dtype, name="embedding"
        )(images)  # (b, n, d)
        if self.pool == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)  # (b, n + 1, d)
        x = Encoder(
            self.depth, self.mlp_dim, self.num_heads, self.dropout, self.dtype, name="Transformer"
        )(x, train=train)
        x = x[:, 0] if self.pool == "token" else x.mean(axis=1)  # (b, d)
        if self.pre_logits:
            x = nn.tanh(nn.Dense(self.width, dtype=self.dtype, name="pre_logits")(x))
        if self.num_classes:
            head = nn.Dense(
                self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head"
            )
            x = head(x)
        return x.astype(jnp.float32)
