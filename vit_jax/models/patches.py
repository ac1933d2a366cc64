"""Images as a model reads them: pixels in [-1, 1], cut into patches, each of which is projected."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.experimental.layout import Layout, with_layout_constraint


def to_float(images: Any) -> Any:
    """Returns uint8 images of any shape as float32 in [-1, 1]. It may run inside `jax.jit`."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_patches(images: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Returns images (b, h, w, c), cut into patches row by row: (b, n, ph, pw, c).

    Args:
      images: pixels, of any dtype.
      patch: (ph, pw) in pixels. Pixels at the bottom and on the right that make no whole patch
        are left out.
    """
    rows, columns = images.shape[1] // patch[0], images.shape[2] // patch[1]
    b, *_, channels = images.shape
    whole = images[:, : rows * patch[0], : columns * patch[1]]
    blocks = whole.reshape(b, rows, patch[0], columns, patch[1], channels)
    return jnp.moveaxis(blocks, 3, 2).reshape(b, -1, *patch, channels)


def grid_shape(
    image_size: tuple[int, int], patch_size: tuple[int, int], *, crop: bool = False
) -> tuple[int, int]:
    """Returns the (rows, columns) of patches that an image is cut into.

    Args:
      image_size: (h, w) in pixels.
      patch_size: (height, width) in pixels.
      crop: True allows pixels at the bottom and on the right that make no whole patch.

    Raises:
      ValueError: a side of the image is not a multiple of the patch's side, or, with `crop`, is
        shorter.
    """
    rows, extra_h = divmod(image_size[0], patch_size[0])
    columns, extra_w = divmod(image_size[1], patch_size[1])
    if ((extra_h or extra_w) and not crop) or not rows or not columns:
        raise ValueError(
            f"An image of {image_size[0]}x{image_size[1]} pixels can't be cut into patches of "
            f"{patch_size[0]}x{patch_size[1]}: each side of the image must be a multiple of the "
            f"patch's."
        )
    return rows, columns


class ConvStem(nn.Module):
    """A small convolutional stem: images (b, h, w, 3) -> features (b, h', w', c).

    The first layer cuts the image into patches of 4x4 pixels. Each other one is a convolution of
    3x3 and the maximum of every 2x2 of its results. A GELU follows each layer. So n layers make one
    position of 4 * 2^(n - 1) pixels, and neighbours share what they see. Layers of a convolution
    and a maximum are those of CCT (Hassani et al., arXiv 2104.05704), which learns from few images.
    CCT has no patches before them; with these, a stem takes less time.

    Attributes:
      channels: of each layer, at least one; c is the last.
      dtype: dtype of the computation.
    """

    channels: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for i, channels in enumerate(self.channels):
            window, stride = ((4, 4), 4) if i == 0 else ((3, 3), 1)
            x = nn.Conv(channels, window, stride, dtype=self.dtype, name=f"conv_{i}")(x)
            x = nn.gelu(x if i == 0 else nn.max_pool(x, (2, 2), (2, 2), padding="SAME"))
        return x


class PatchEmbedding(nn.Conv):
    """Cuts images (b, h, w, 3) into patches and projects each to `features`: (b, n, d).

    A convolution whose `strides` are its `kernel_size` is the linear projection E of the paper's
    equation 1. Patches are numbered row by row.

    Attributes:
      as_matmul: True computes that projection as a matmul of the patches, for NVIDIA GPUs. cuDNN
        copies images to arrays with more channels before it convolves them. For 256 images of 224
        pixels on an H200, that took 2.0 ms in bfloat16, 33 times what reading and writing them
        takes at the chip's peak.
      others: as in Flax.

    Pixels at the bottom and on the right that make no whole patch are left out.
    """

    kernel_size: tuple[int, int]
    padding: str = "VALID"
    as_matmul: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        if self.as_matmul:
            shape = (*self.kernel_size, images.shape[-1], self.features)
            kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
            bias = self.param("bias", self.bias_init, shape[-1:], self.param_dtype)
            x, kernel, bias = promote_dtype(images, kernel, bias, dtype=self.dtype)
            x = to_patches(x, self.kernel_size)
            x = x.reshape(*x.shape[:2], -1)  # (b, n, values of a patch)
            tokens = x @ kernel.reshape(-1, self.features) + bias
            # A convolution's result has this layout. Of a matmul's, XLA for GPUs made the batch
            # the innermost axis, in all blocks: their arrays were read and written more often.
            return with_layout_constraint(tokens, Layout(major_to_minor=(0, 1, 2)))
        x = super().__call__(images)  # (b, rows, columns, d)
        return jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))
