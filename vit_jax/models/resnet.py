"""BiT ResNets, the paper's baselines, and the ResNet stem of its hybrids (paper 4.1).

Both have GroupNorm in the place of BatchNorm, and standardised convolutions. But they are not the
same network: the stem of the hybrids is post-activation with SAME padding, the baselines are
pre-activation with symmetric padding, and they compute the deviation of a kernel differently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.axial import AxialAttention
from vit_jax.models.layers import head_layer

# What standardising a kernel adds: in BiT to the variance, in stems to the standard deviation.
BIT_EPSILON, STEM_EPSILON = 1e-10, 1e-5
# Of BiT. The mean is subtracted before squares are summed, as in big_vision: E[x^2] - E[x]^2 loses
# digits where a mean is large beside the deviation, as it is in published BiT ResNets.
bit_norm = functools.partial(nn.GroupNorm, epsilon=1e-5, use_fast_variance=False)


class StdConv(nn.Module):
    """A convolution whose kernel is standardised: (b, h, w, c) -> (b, h', w', features), no bias.

    The weights of each output channel are brought to mean 0 and deviation 1 before use, in float32
    (Qiao et al., arXiv 1903.10520).

    Attributes:
      features: number of output channels.
      size: the kernel's side in pixels.
      stride: step of the window, in pixels.
      bit: True for symmetric padding and (w - mean) / sqrt(var + 1e-10), as in the published BiT
        ResNets; False for SAME padding and (w - mean) / (std + 1e-5), as in the published hybrids.
      epsilon: makes it (w - mean) / sqrt(var + epsilon) in both. None for the formulas above.
      dtype: dtype of the computation.
    """

    features: int
    size: int = 1
    stride: int = 1
    bit: bool = False
    epsilon: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - kernel.mean((0, 1, 2))
        variance = jnp.square(kernel).mean((0, 1, 2))
        if self.bit or self.epsilon is not None:
            kernel /= jnp.sqrt(variance + (BIT_EPSILON if self.epsilon is None else self.epsilon))
        else:
            kernel /= jnp.sqrt(variance) + STEM_EPSILON
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.size // 2, self.size // 2)] * 2 if self.bit else "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class PostActivationUnit(nn.Module):
    """A hybrid's bottleneck: (b, h, w, c) -> (b, h/stride, w/stride, 4 features).

    Three convolutions, 1x1, 3x3 (strided) and 1x1, each followed by a norm. ReLU comes after the
    first two and after the sum with the input. The input is projected if its shape must change.
    The scale of the last norm starts at zero, so that the unit starts as the identity.
    """

    features: int
    stride: int = 1
    kernel_epsilon: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(StdConv, epsilon=self.kernel_epsilon, dtype=self.dtype)
        norm = functools.partial(nn.GroupNorm, epsilon=1e-6, dtype=self.dtype)
        y = conv(self.features, name="conv1")(x)
        y = nn.relu(norm(name="gn1")(y))
        y = conv(self.features, size=3, stride=self.stride, name="conv2")(y)
        y = nn.relu(norm(name="gn2")(y))
        y = conv(4 * self.features, name="conv3")(y)
        y = norm(name="gn3", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(4 * self.features, stride=self.stride, name="conv_proj")(x)
            x = norm(name="gn_proj")(x)
        return nn.relu(x + y)


class PreActivationUnit(nn.Module):
    """A BiT bottleneck: (b, h, w, c) -> (b, h/stride, w/stride, 4 features).

    Norm and ReLU come before each convolution. The projection of the input, which is needed if its
    shape must change, reads the output of the first norm and ReLU.

    Attributes:
      axial: True puts row and column attention with 8 heads in the place of the 3x3 convolution,
        and strides by averaging (AxialResNet, paper D.6).
    """

    features: int
    stride: int = 1
    axial: bool = False
    kernel_epsilon: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(StdConv, bit=True, epsilon=self.kernel_epsilon, dtype=self.dtype)
        norm = functools.partial(bit_norm, dtype=self.dtype)
        z = nn.relu(norm(name="gn1")(x))
        y = conv(self.features, name="conv1")(z)
        y = nn.relu(norm(name="gn2")(y))
        if self.axial:
            y = AxialAttention(num_heads=8, dtype=self.dtype, name="attention")(y)
            if self.stride > 1:
                window = (self.stride, self.stride)
                y = nn.avg_pool(
                    y, window_shape=window, strides=window, padding="SAME", count_include_pad=False
                )
        else:
            y = conv(self.features, size=3, stride=self.stride, name="conv2")(y)
        y = nn.relu(norm(name="gn3")(y))
        y = conv(4 * self.features, name="conv3")(y)
        if x.shape != y.shape:
            x = conv(4 * self.features, stride=self.stride, name="conv_proj")(z)
        return x + y


class Stage(nn.Module):
    """Units of one width, the first of which may stride: (b, h, w, c) -> (b, h', w', c').

    Attributes:
      units: number of units.
      unit: (stride=, name=) -> the module of one unit.
      stride: stride of the first unit; that of the others is 1.
    """

    units: int
    unit: Callable[..., nn.Module]
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.units):
            x = self.unit(stride=1 if i else self.stride, name=f"unit{i + 1}")(x)
        return x


def _stages(
    x: jax.Array, layers: Sequence[int], width: int, unit: Callable[..., nn.Module]
) -> jax.Array:
    """Returns features after all stages: (b, h, w, c) -> (b, h', w', c').

    Each stage after the first halves the sides and doubles the width.

    Args:
      x: (b, h, w, c).
      layers: number of units of each stage.
      width: width of the first stage.
      unit: (width, stride=, name=) -> the module of one unit.
    """
    for i, units in enumerate(layers):
        of_width = functools.partial(unit, width * 2**i)
        x = Stage(units, of_width, stride=2 if i else 1, name=f"block{i + 1}")(x)
    return x


def hybrid_stem(
    images: jax.Array, layers: Sequence[int], kernel_epsilon: float | None, dtype: Any
) -> jax.Array:
    """Returns the feature map of a hybrid's ResNet: images (b, h, w, 3) -> (b, h', w', c).

    c is 256 after one stage, 512 after two, and so on; 64 if there is no stage. Call it in a
    module's compact method. That module gets the parameters, under the names of the published
    hybrids: `conv_root`, `gn_root`, `block1/unit1/conv1`…

    Args:
      images: pixels in [-1, 1].
      layers: number of units of each stage; () for the root alone.
      kernel_epsilon: see `StdConv.epsilon`.
      dtype: dtype of the computation.
    """
    options = dict(epsilon=kernel_epsilon, dtype=dtype)
    x = StdConv(64, size=7, stride=2, **options, name="conv_root")(images)
    x = nn.relu(nn.GroupNorm(epsilon=1e-6, dtype=dtype, name="gn_root")(x))
    x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
    unit = functools.partial(PostActivationUnit, kernel_epsilon=kernel_epsilon, dtype=dtype)
    return _stages(x, layers, 64, unit)


def feature_stride(stages: int) -> int:
    """Returns how many pixels of an image's side become one of the feature map's.

    Args:
      stages: number of stages after the root.
    """
    return 4 * 2 ** max(0, stages - 1)


class ResNet(nn.Module):
    """A BiT ResNet: images (b, h, w, 3) in [-1, 1] to logits (b, c) or features (b, d), float32.

    Call it with `module.apply({"params": params}, images)` (Kolesnikov et al., arXiv 1912.11370;
    the baselines of the paper's section 4.1).

    Attributes:
      num_classes: c; 0 leaves the head out and returns the mean of the last feature map (b, d).
      layers: number of units of each stage; (3, 4, 6, 3) is a ResNet50.
      width_factor: multiplies every width; 1 gives d = 2048.
      axial: True puts row and column attention in the place of the 3x3 convolutions (paper D.6).
      kernel_epsilon: see `StdConv.epsilon`.
      head_bias: initial value of the head's bias.
      dtype: dtype of the computation; parameters are always float32.
    """

    num_classes: int
    layers: tuple[int, ...]
    width_factor: int = 1
    axial: bool = False
    kernel_epsilon: float | None = None
    head_bias: float = 0.0
    dtype: Any = jnp.float32

    @property
    def stride(self) -> tuple[int, int]:
        """(Height, width) in pixels of one position of the last feature map."""
        stride = feature_stride(len(self.layers))
        return stride, stride

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (rows, columns) of the last feature map for images of (h, w) pixels."""
        rows, columns = (-(-side // self.stride[0]) for side in image_size)
        return rows, columns

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns logits or features, float32; `train` changes nothing."""
        width = 64 * self.width_factor
        options = dict(bit=True, epsilon=self.kernel_epsilon, dtype=self.dtype)
        x = StdConv(width, size=7, stride=2, **options, name="conv_root")(images)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        unit = functools.partial(
            PreActivationUnit,
            axial=self.axial,
            kernel_epsilon=self.kernel_epsilon,
            dtype=self.dtype,
        )
        x = _stages(x, self.layers, width, unit)
        x = nn.relu(bit_norm(dtype=self.dtype, name="gn_pre_head")(x))
        x = x.mean((1, 2))
        if self.num_classes:
            x = head_layer(self.num_classes, self.head_bias)(x)
        return x.astype(jnp.float32)
