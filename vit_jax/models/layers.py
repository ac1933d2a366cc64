"""LayerNorm, GELU and dense layers of the encoder, in the formulation that suits the backend.

"plain" is Flax's own code and XLA's derivatives of it. "custom_vjp" computes the same with
derivatives written by hand, which keep one array of a layer for the backward pass where automatic
differentiation keeps several: less memory to write and read, which is what a CPU waits for. It
can't be differentiated in forward mode (`jax.jvp`). "cudnn" is plain but for attention, see
`attention.attend_cudnn`; it was compiled for GPUs, but not yet run on one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("plain", "custom_vjp", "cudnn")


def best_implementation() -> str:
    """Returns what was measured to be fastest on JAX's default backend."""
    return "custom_vjp" if jax.default_backend() == "cpu" else "plain"


def fits_cudnn(dtype: Any, depth: int) -> bool:
    """Tells whether cuDNN's flash attention can compute with heads of that depth."""
    return jnp.dtype(dtype) in (jnp.float16, jnp.bfloat16) and depth % 8 == 0 and depth <= 128


# ------------------------------------------------------------------------------------ LayerNorm


class LayerNorm(nn.LayerNorm):
    """Normalises the last axis of (…, d), then scales and shifts it; statistics are float32.

    Ba et al., arXiv 1607.06450. Parameters are Flax's: `scale` and `bias` (d,).
    """

    implementation: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.implementation != "custom_vjp":
            return super().__call__(x)
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", self.bias_init, x.shape[-1:])
        return layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis of (…, d).

    For the backward pass it keeps x, the means and the reciprocal deviations.
    """
    return _layer_norm(x, scale, bias, epsilon)[0]


def _layer_norm(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean)
    factor = jax.lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    y = (wide - mean) * (factor * scale) + bias
    return y.astype(x.dtype), (x, scale, mean, factor)


def _layer_norm_vjp(epsilon, kept, dy):
    x, scale, mean, factor = kept
    dy = dy.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * factor
    scaled = dy * scale
    dx = factor * (
        scaled - scaled.mean(-1, keepdims=True)
        - normed * (scaled * normed).mean(-1, keepdims=True)
    )  # fmt: skip
    others = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), (dy * normed).sum(others), dy.sum(others)


layer_norm.defvjp(_layer_norm, _layer_norm_vjp)


# ----------------------------------------------------------------------------------------- GELU

# Of x in the tanh form: sqrt(2 / pi), and the cube's factor (Hendrycks and Gimpel, 1606.08415).
_SLOPE, _CUBE = math.sqrt(2 / math.pi), 0.044715


@jax.custom_vjp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU, which keeps x alone for the backward pass."""
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
    """GELU, x times the normal distribution's Phi(x), which keeps x alone for the backward pass."""
    return nn.gelu(x, approximate=False)


def _gelu_exact_vjp(x, dy):
    wide = x.astype(jnp.float32)
    phi = 0.5 * jax.lax.erfc(-wide * math.sqrt(0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return ((dy * (phi + wide * density)).astype(x.dtype),)


gelu_exact.defvjp(lambda x: (gelu_exact(x), x), _gelu_exact_vjp)

# Plain, and with derivatives of our own. The published checkpoints were trained with the tanh
# approximation; PyTorch's ViTs are exact.
GELUS = {
    "tanh": (functools.partial(nn.gelu, approximate=True), gelu_tanh),
    "exact": (functools.partial(nn.gelu, approximate=False), gelu_exact),
}


def gelu(x: jax.Array, kind: str, implementation: str) -> jax.Array:
    """GELU of any array; `kind` is one of `GELUS`."""
    plain, own = GELUS[kind]
    return (own if implementation == "custom_vjp" else plain)(x)


# ---------------------------------------------------------------------------------------- dense


def dense_options(implementation: str) -> dict[str, Any]:
    """Returns what tells Flax's dense layers how to multiply with a kernel: `dot_general`."""
    return {"dot_general": _flat_dot_general} if implementation == "custom_vjp" else {}


def _flat_dot_general(x, kernel, dimension_numbers, **options):
    """`lax.dot_general` of x's last and the kernel's first axes, as a product of two matrices."""
    contracted = len(dimension_numbers[0][0])
    inner = math.prod(kernel.shape[:contracted])
    y = jax.lax.dot(x.reshape(-1, inner), kernel.reshape(inner, -1), **options)
    return y.reshape(*x.shape[: x.ndim - contracted], *kernel.shape[contracted:])
