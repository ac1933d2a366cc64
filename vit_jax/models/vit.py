"""The Vision Transformer (figure 1): patches, class token, encoder, representation, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.encoder import Encoder
from vit_jax.models.layers import best_implementation, head_layer, norm_layer
from vit_jax.models.lora import Lora
from vit_jax.models.patches import ConvStem, PatchEmbedding, grid_shape
from vit_jax.models.pooling import MAPHead, pool_tokens
from vit_jax.models.resnet import feature_stride, hybrid_stem

FINAL_NORMS = ("before_pool", "after_pool", "none")


class VisionTransformer(nn.Module):
    """Images (b, h, w, 3) in [-1, 1] to logits (b, c) or representations (b, d), float32.

    Call it with `module.apply({"params": params}, images, train=False)`; with `train=True` and
    dropout, pass `rngs={"dropout": key}` too. The parameters are those of the published
    checkpoints, float32 for every `dtype`.

    Attributes:
      num_classes: c; 0 leaves the head out and returns what it would read, the representation. Its
        size is d, or what `pool` and `projection` say.
      head_bias: initial value of the head's bias.
      patch_size: side of a patch in pixels, or its (height, width). With a stem, pixels are those
        of the feature map.
      crop_to_patches: True leaves out pixels at the bottom and on the right that make no whole
        patch, as the convolutions of timm and transformers do. False takes no such images.
      width: d, the size of every token (the paper's D).
      depth: number of encoder blocks (the paper's L).
      mlp_dim: hidden size of the MLP in each block.
      num_heads: number of attention heads, which must divide `width`.
      stem: number of units in each stage of a hybrid's ResNet (paper 4.1), () for its root alone.
        None cuts the image itself into patches.
      conv_stem: channels of each layer of a small convolutional stem in the place of `stem`, see
        `patches.ConvStem`; None for none.
      axial: True if blocks attend along the rows of the grid of patches, then along its columns
        (paper D.6).
      positions: "1d", "2d", "relative" or "none" (paper D.4), or "sincos", which isn't learned.
      positions_at: where positions are added, if they aren't relative. "stem": before the encoder;
        "layers": before every block, from a table each; "shared": before every block, from one
        table.
      class_tokens: k, the number of class tokens. None: 1 if `pool` reads it, else 0.
      registers: number of learned tokens that the encoder adds to class tokens and patches. They
        have no positions, and pooling doesn't read them (Darcet et al., arXiv 2309.16588).
      pool: what is made of the encoder's result (paper D.3). "token": the class tokens, one after
        the other (b, k*d). "gap": the mean of the patches (b, d). "token+gap": both, one after the
        other (b, (k + 1)*d). "map": what a learned query reads in the patches (b, d), see
        `pooling.MAPHead`.
      projection: size to which a matrix takes the pooled representation, as in CLIP (Radford et
        al., arXiv 2103.00020). 0 for no matrix.
      pre_logits: True adds Dense(d) and tanh before the head, as in pre-training (paper 3.1).
      dropout: probability of dropping a unit (paper B.1).
      stochastic_depth: probability of dropping a residual branch of the last block. It falls
        linearly to 0 at the first block (Huang et al., arXiv 1603.09382).
      mlp: of the blocks. "plain": Dense, GELU, Dense (paper equation 3). "swiglu": GELU's place has
        the product of the first layer and SiLU(Gate), of a second layer beside it (Shazeer, arXiv
        2002.05202). Both layers have the size `mlp_dim`.
      norm: "layer", or "rms", see `layers.norm_layer`. The attributes of LayerNorms are theirs.
      patch_norm: True normalises the patch embeddings before positions are added, as in AIMv2
        (Fini et al., arXiv 2411.14402).
      pre_norm: True normalises the tokens before the first block, too, as in CLIP.
      final_norm: where the encoder's result is normalised: "before_pool" (paper equation 4),
        "after_pool" or "none".
      norm_epsilon: added to the variance in LayerNorm.
      gelu: "tanh", the approximation that the published checkpoints were trained with; "exact",
        which PyTorch's ViTs compute; or "quick", x * sigmoid(1.702 x), which CLIP's do.
      kernel_epsilon: see `resnet.StdConv.epsilon`; timm's stems were trained with 1e-8.
      lora_rank: rank of LoRA's updates of queries, values and MLP in every block, see
        `layers.FlatDense`. 0 for none.
      lora_alpha: each update is multiplied by `lora_alpha / lora_rank`; None for 1.
      remat: what the blocks compute again in the backward pass, to save memory: "none" nothing,
        "dots" all but matmuls with parameters, "full" everything from each block's input.
      scan: True trains the blocks as one loop over their stacked parameters. A block is then
        compiled once instead of `depth` times. Evaluation and stored parameters don't change.
      implementation: how the encoder computes, see `layers`. None for the fastest implementation
        known for this process's first device.
      residual_dtype: dtype of the tokens between the blocks: None for "float32", or "bfloat16".
        Half the bytes make a step faster, and add to the error that bfloat16 makes in the logits.
      dtype: dtype of the stem's and the blocks' computation. The patch embedding, the last norm and
        all that follows but `pooling.MAPHead` are float32, as in the public code.
    """

    num_classes: int
    patch_size: int | tuple[int, int]
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    crop_to_patches: bool = False
    stem: tuple[int, ...] | None = None
    conv_stem: tuple[int, ...] | None = None
    axial: bool = False
    positions: str = "1d"
    positions_at: str = "stem"
    class_tokens: int | None = None
    registers: int = 0
    pool: str = "token"
    projection: int = 0
    pre_logits: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    mlp: str = "plain"
    norm: str = "layer"
    patch_norm: bool = False
    pre_norm: bool = False
    final_norm: str = "before_pool"
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    kernel_epsilon: float | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None
    remat: str = "none"
    head_bias: float = 0.0
    scan: bool = False
    implementation: str | None = None
    residual_dtype: str | None = None
    dtype: Any = jnp.float32

    @property
    def patch_shape(self) -> tuple[int, int]:
        """The patch's (height, width)."""
        size = self.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    @property
    def num_class_tokens(self) -> int:
        """Number of class tokens, which come before the patches."""
        return int("token" in self.pool) if self.class_tokens is None else self.class_tokens

    @property
    def feature_stride(self) -> int:
        """Number of pixels of an image's side that become one of a stem's features; 1 without."""
        layers = self.stem if self.conv_stem is None else self.conv_stem
        return 1 if layers is None else feature_stride(len(layers))

    @property
    def stride(self) -> tuple[int, int]:
        """(Height, width) in pixels of the part of an image that becomes one patch token."""
        height, width = self.patch_shape
        return height * self.feature_stride, width * self.feature_stride

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (rows, columns) of patches that images are cut into.

        Args:
          image_size: (h, w) in pixels.

        Raises:
          ValueError: they can't be cut into whole patches.
        """
        stride = self.feature_stride
        if stride == 1:
            return grid_shape(image_size, self.patch_shape, crop=self.crop_to_patches)
        features = (-(-image_size[0] // stride), -(-image_size[1] // stride))
        try:
            return grid_shape(features, self.patch_shape, crop=self.crop_to_patches)
        except ValueError as error:
            raise ValueError(
                f"Of an image of {image_size[0]}x{image_size[1]} pixels the stem makes features "
                f"of {features[0]}x{features[1]}. {error}"
            ) from None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        corrupt: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Returns logits (b, c) or representations (b, d), float32.

        Args:
          images: (b, h, w, 3) in [-1, 1].
          train: True applies dropout, and what else differs in training.
          corrupt: patch embeddings (b, n, d) -> patch embeddings, for
            `masked.MaskedPatchPredictor`. The result is then the encoder's output for the patches,
            (b, n, d). None corrupts nothing.

        Raises:
          ValueError: the images can't be cut into whole patches.
        """
        _, height, width, _ = images.shape
        grid = self.grid((height, width))
        x = images
        if self.stem is not None:
            x = hybrid_stem(jnp.asarray(x, self.dtype), self.stem, self.kernel_epsilon, self.dtype)
        elif self.conv_stem is not None:
            x = ConvStem(self.conv_stem, self.dtype, name="conv_stem")(x)
        implementation = self.implementation or best_implementation(
            self.dtype, self.width // self.num_heads
        )
        patch = self.patch_shape
        embedding = PatchEmbedding(
            self.width,
            patch,
            strides=patch,
            as_matmul=implementation == "cudnn",
            dtype=jnp.float32,
            name="embedding",
        )
        x = embedding(x)  # (b, n, d)
        norm = norm_layer(
            self.norm, self.norm_epsilon, implementation=implementation, dtype=jnp.float32
        )
        if self.patch_norm:
            x = norm(name="patch_norm")(x)
        if corrupt is not None:
            x = corrupt(x)
        if k := self.num_class_tokens:
            # Without positions, several would stay equal if they all started at zero.
            init = nn.initializers.normal(0.02) if k > 1 else nn.initializers.zeros
            cls = self.param("cls", init, (1, k, self.width))
            cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], k, self.width))
            x = jnp.concatenate([cls, x], axis=1)  # (b, k + n, d)
        how = dict(
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            gelu=self.gelu,
            implementation=implementation,
            dtype=self.dtype,
        )
        rank, alpha = self.lora_rank, self.lora_alpha
        lora = Lora(rank, alpha or rank) if rank else None
        encoder = Encoder(
            grid,
            self.depth,
            self.mlp_dim,
            self.num_heads,
            positions=self.positions,
            positions_at=self.positions_at,
            axial=self.axial,
            registers=self.registers,
            dropout=self.dropout,
            stochastic_depth=self.stochastic_depth,
            mlp=self.mlp,
            pre_norm=self.pre_norm,
            final_norm=self.final_norm == "before_pool",
            remat=self.remat,
            scan=self.scan,
            residual_dtype=self.residual_dtype or jnp.float32,
            lora=lora,
            name="Transformer",
            **how,
        )
        x = encoder(x, train=train)
        if corrupt is not None:
            return x[:, k:]
        if self.pool == "map":
            x = MAPHead(self.mlp_dim, self.num_heads, **how)(x[:, k:])
        else:
            x = pool_tokens(x[:, :k], x[:, k:], self.pool)
        if self.final_norm == "after_pool":
            x = norm(name="fc_norm")(x)
        if self.projection:
            x = nn.Dense(self.projection, use_bias=False, name="projection")(x)
        if self.pre_logits:
            x = nn.tanh(nn.Dense(self.width, name="pre_logits")(x))
        if self.num_classes:
            x = head_layer(self.num_classes, self.head_bias)(x)
        return x.astype(jnp.float32)
