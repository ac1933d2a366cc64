"""LayerNorm, GELU and dense layers of the encoder, in the implementation that suits the device.

All implementations compute the same, up to rounding:

- "plain" is Flax's code with the derivatives that JAX finds. The others are tested against it.
- "custom_vjp" is for CPUs. Its derivatives are written by hand. They keep one array of a layer for
  the backward pass, where automatic differentiation keeps several. A CPU waits for memory, and so
  has less to wait for. It can't be differentiated in forward mode (`jax.jvp`).
- "cudnn" is for NVIDIA GPUs. Attention is `attention.attend_cudnn`, GELU and dense layers are
  those of "custom_vjp", LayerNorm is plain. The embedding of patches is a matmul. On an H200, a
  training step of B/16 in bfloat16 was 1.39 times as fast as with "plain" (benchmarks/README.md).
- "tpu" is for TPUs: attention's scores have their keys before their queries, and the rest is plain.
  Of B/16's train step, compiled for a v5e, a block then moves 7 to 13 % fewer bytes. Its speed is
  unmeasured.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from vit_jax.models.lora import NAMES, Lora, lora_matmul

IMPLEMENTATIONS = ("plain", "custom_vjp", "cudnn", "tpu")
_BY_HAND = ("custom_vjp", "cudnn")  # have derivatives written by hand, and flat matmuls
NORMS = ("layer", "rms")


def best_implementation(dtype: Any, depth: int, device: jax.Device | None = None) -> str:
    """Returns the fastest implementation known for a computation on a device.

    Args:
      dtype: dtype of the computation.
      depth: size of an attention head, width / num_heads.
      device: None for this process's first device.
    """
    device = device or jax.local_devices()[0]
    if device.platform == "cpu":
        return "custom_vjp"
    if device.platform == "tpu":
        return "tpu"
    if device.platform == "gpu" and fits_cudnn(dtype, depth):
        capability = str(getattr(device, "compute_capability", ""))
        # NVIDIA's are numbers such as 9.0, AMD's are not. Ampere, 8.0, is the first GPU that
        # cuDNN's flash attention runs on.
        if re.fullmatch(r"\d+\.\d+", capability) and float(capability) >= 8:
            return "cudnn"
    return "plain"


def fits_cudnn(dtype: Any, depth: int) -> bool:
    """Returns True if cuDNN's flash attention can compute in a dtype with heads of this depth."""
    return jnp.dtype(dtype) in (jnp.float16, jnp.bfloat16) and depth % 8 == 0 and depth <= 128


# ------------------------------------------------------------------------------------ LayerNorm


class LayerNorm(nn.LayerNorm):
    """Normalises the last axis of (…, d), then scales and shifts it: (…, d) -> (…, d).

    Ba et al., arXiv 1607.06450. Mean and variance are computed in float32. Parameters are Flax's:
    `scale` and `bias` (d,).

    Attributes:
      implementation: one of `IMPLEMENTATIONS`.
      others: as in Flax.
    """

    implementation: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]  # has no mask
        if self.implementation != "custom_vjp":
            return super().__call__(x)
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", self.bias_init, x.shape[-1:])
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias: (…, d).

    Mean and variance are those of the last axis. For the backward pass, x, the means and the
    reciprocals of the standard deviations are kept.

    Args:
      x: (…, d).
      scale, bias: (d,) float32.
      epsilon: added to the variance.
      dtype: of the result.
    """
    return _layer_norm(x, scale, bias, epsilon, dtype)[0]


def _layer_norm(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    y = (wide - mean) * (factor * scale) + bias
    return y.astype(dtype), (x, scale, mean, factor)


def _layer_norm_vjp(epsilon, dtype, kept, dy):
    del dtype  # dy has it
    x, scale, mean, factor = kept
    dy = dy.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * factor
    scaled = dy * scale
    dx = factor * (
        scaled - scaled.mean(-1, keepdims=True) - normed * (scaled * normed).mean(-1, keepdims=True)
    )
    others = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * normed).sum(others), dy.sum(others)


layer_norm.defvjp(_layer_norm, _layer_norm_vjp)


def norm_layer(
    kind: str, epsilon: float, *, implementation: str, dtype: Any
) -> Callable[..., nn.Module]:
    """Returns the class of a normalisation (…, d) -> (…, d), which takes the module's name.

    Args:
      kind: "layer" for `LayerNorm`, or "rms" for x / sqrt(mean of x squared + epsilon) * scale
        (Zhang and Sennrich, arXiv 1910.07467), which has no bias.
      epsilon: added to the variance, or to the mean of squares.
      implementation: one of `IMPLEMENTATIONS`.
      dtype: dtype of the result. Means are computed in float32.
    """
    if kind == "rms":
        return functools.partial(nn.RMSNorm, epsilon, dtype=dtype)
    return functools.partial(LayerNorm, epsilon, implementation=implementation, dtype=dtype)


# ----------------------------------------------------------------------------------------- GELU

# In the tanh approximation, the factors of x, sqrt(2 / pi), and of x cubed (arXiv 1606.08415).
_SLOPE, _CUBE = math.sqrt(2 / math.pi), 0.044715


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """Returns the tanh approximation of GELU; only x is kept for the backward pass."""
    return nn.gelu(x, approximate=True)


def _gelu_tanh_vjp(x, dy):
    wide = x.astype(jnp.float32)
    square = jnp.square(wide)
    t = jnp.tanh(_SLOPE * wide * (1 + _CUBE * square))
    inner = _SLOPE * (1 + 3 * _CUBE * square)
    return ((dy * 0.5 * (1 + t + wide * (1 - jnp.square(t)) * inner)).astype(x.dtype),)


gelu_tanh.defvjp(lambda x: (gelu_tanh(x), x), _gelu_tanh_vjp)


@jax.custom_vjp
def gelu_exact(x: jax.Array) -> jax.Array:
    """Returns GELU, x times the normal distribution's Phi(x); only x is kept for its derivative."""
    return nn.gelu(x, approximate=False)


def _gelu_exact_vjp(x, dy):
    wide = x.astype(jnp.float32)
    phi = 0.5 * jax.lax.erfc(-wide * math.sqrt(0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return ((dy * (phi + wide * density)).astype(x.dtype),)


gelu_exact.defvjp(lambda x: (gelu_exact(x), x), _gelu_exact_vjp)


_QUICK = 1.702  # sigmoid(1.702 x) is close to Phi(x) (arXiv 1606.08415)


def _gelu_quick(x):
    return x * nn.sigmoid(_QUICK * x)


@jax.custom_vjp
def gelu_quick(x: jax.Array) -> jax.Array:
    """Returns x * sigmoid(1.702 x); only x is kept for the backward pass."""
    return _gelu_quick(x)


def _gelu_quick_vjp(x, dy):
    wide = x.astype(jnp.float32)
    s = nn.sigmoid(_QUICK * wide)
    return ((dy * s * (1 + _QUICK * wide * (1 - s))).astype(x.dtype),)


gelu_quick.defvjp(lambda x: (gelu_quick(x), x), _gelu_quick_vjp)

# For each kind the plain function, and the one with a derivative written by hand. The published
# checkpoints were trained with the tanh approximation; PyTorch's ViTs use the exact function, and
# those of CLIP (arXiv 2103.00020) the quick one.
GELUS: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array]]] = {
    "tanh": (functools.partial(nn.gelu, approximate=True), gelu_tanh),
    "exact": (functools.partial(nn.gelu, approximate=False), gelu_exact),
    "quick": (_gelu_quick, gelu_quick),
}


def gelu(x: jax.Array, kind: str, implementation: str) -> jax.Array:
    """Returns the GELU of an array of any shape, of the same dtype.

    Args:
      x: the array.
      kind: a key of `GELUS`.
      implementation: one of `IMPLEMENTATIONS`.
    """
    plain, by_hand = GELUS[kind]
    return (by_hand if implementation in _BY_HAND else plain)(x)


# ---------------------------------------------------------------------------------------- dense


def head_layer(num_classes: int, bias: float) -> nn.Dense:
    """Returns the layer of the logits, `head`: (b, d) -> (b, num_classes), in a compact module.

    Its kernel starts with zeros (paper B.1.1), its bias with `bias`.
    """
    return nn.Dense(
        num_classes,
        kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(bias),
        name="head",
    )


class FlatDense(nn.DenseGeneral):
    """Flax's layer over the last axes of x, as one matmul of matrices and the sum with a vector.

    Libraries compute both in one call. Names, shapes and initial values of parameters are Flax's.
    With LoRA, there are also `lora_a` (d, rank), which starts uniform in ±1 / sqrt(d) as in its
    authors' code, and `lora_b` (rank, *features), which starts at zero.

    Attributes:
      lora: the update of the kernel; None for none.
      others: as in Flax.
    """

    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        count = len(self.axis) if isinstance(self.axis, tuple) else 1
        shape = x.shape[-count:]
        inner, outer = math.prod(shape), math.prod(features)

        def parameter(name, init, flat, shape):
            return self.param(name, lambda key: init(key, flat, self.param_dtype).reshape(shape))

        kernel = parameter("kernel", self.kernel_init, (inner, outer), (*shape, *features))
        bias = parameter("bias", self.bias_init, (outer,), features)
        whole = kernel.reshape(inner, outer)
        x, kernel, bias = promote_dtype(x, whole, bias, dtype=self.dtype)
        rows, flat = x.shape[:-count], x.reshape(-1, inner)
        if self.lora is None:
            y = flat @ kernel
        else:
            rank, alpha = self.lora
            uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            a = self.param(NAMES[0], uniform, (inner, rank), self.param_dtype)
            b = self.param(NAMES[1], nn.initializers.zeros, (rank, *features), self.param_dtype)
            y = lora_matmul(flat, whole, alpha / rank * a, b.reshape(rank, outer))
        y = y.reshape(*rows, outer)
        return (y + bias.reshape(outer)).reshape(*rows, *features)


def dense(implementation: str, lora: Lora | None = None) -> Callable[..., nn.DenseGeneral]:
    """Returns the class of an implementation's dense layers, or a function that makes one.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      lora: the update of the layers' kernels; None for none.
    """
    if lora is not None:
        return functools.partial(FlatDense, lora=lora)
    return FlatDense if implementation in _BY_HAND else nn.DenseGeneral
