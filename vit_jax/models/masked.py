"""The model of masked patch prediction (paper B.1.2): a ViT on corrupted patches, and its head."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.vit import VisionTransformer

PARAMETERS = ("mask_token", "patch_head")  # of a predictor, besides those of its `vit`


class Corruption(NamedTuple):
    """How the embeddings of n patches are corrupted; arrays (b, n).

    Attributes:
      selected: bool, True if the patch must be predicted.
      masked: bool, True if the learned [mask] embedding replaces the patch's.
      source: int32, number of the patch whose embedding a patch gets that isn't masked. It is the
        patch's own number, or that of another patch of the image.
    """

    selected: jax.Array
    masked: jax.Array
    source: jax.Array


class MaskedPatchPredictor(nn.Module):
    """Images (b, h, w, 3) in [-1, 1] to a prediction for each patch: (b, n, outputs) float32.

    The parameters are those of `vit`, under the same names, `mask_token` (1, 1, d) and
    `patch_head` (d, outputs). `patch_head` starts at zero, as a new `head` does.

    Attributes:
      vit: a model without `pre_logits` and without a head.
      outputs: number of values predicted for each patch.
      dtype: dtype of the computation.
    """

    vit: VisionTransformer
    outputs: int
    dtype: Any = jnp.float32

    def setup(self):
        nn.share_scope(self, self.vit)

    @nn.compact
    def __call__(
        self, images: jax.Array, corruption: Corruption | None = None, *, train: bool = False
    ) -> jax.Array:
        """Returns predictions (b, n, outputs) float32; `corruption` None corrupts nothing."""
        mask = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.vit.width))

        def corrupt(x):
            if corruption is None:
                return x
            x = jnp.take_along_axis(x, corruption.source[..., None], axis=1)
            return jnp.where(corruption.masked[..., None], mask.astype(x.dtype), x)

        x = self.vit(images, train=train, corrupt=corrupt)
        init = nn.initializers.zeros
        x = nn.Dense(self.outputs, kernel_init=init, dtype=self.dtype, name="patch_head")(x)
        return x.astype(jnp.float32)
