"""Multi-head self-attention (paper appendix A) with the published checkpoints' parameter tree."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dense_options
from vit_jax.models.positions import RelativePositions


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    relative: jax.Array | None = None,
    **unused: Any,
) -> jax.Array:
    """softmax(q k^T / sqrt(depth)) v for q, k, v of shape (b, n, heads, depth); same shape out.

    The sum of the exponentials divides the product with the values, not the (n, n) weights:
    the same function of equation 6 and 7 with depth instead of n divisions a row, which is
    faster on a CPU. Scores and sums are float32 whatever the dtype of the inputs.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      relative: embeddings (n, n, depth) that are each query's additional keys: their scores are
        added to the others before the softmax (paper D.4).
      **unused: what `flax.linen.MultiHeadDotProductAttention` passes besides (masks, dropout);
        ViT uses none of it.
    """
    scores = _scores(query, key, relative)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)  # (b, heads, n)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value,
                   preferred_element_type=jnp.float32)
    return (y / jnp.swapaxes(total, 1, 2)[..., None]).astype(value.dtype)


def attention_weights(
    query: jax.Array, key: jax.Array, *, relative: jax.Array | None = None
) -> jax.Array:
    """Returns the weights softmax(q k^T / sqrt(depth)) (b, heads, n, n) [query, key], float32.

    Equation 6: what `attend` multiplies the values with. Arguments are those of `attend`.
    """
    return jax.nn.softmax(_scores(query, key, relative))


def _scores(query: jax.Array, key: jax.Array, relative: jax.Array | None) -> jax.Array:
    query = query * (query.shape[-1] ** -0.5)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    if relative is not None:
        scores += jnp.einsum("bqhd,qkd->bhqk", query, relative.astype(query.dtype),
                             preferred_element_type=jnp.float32)
    return scores


@jax.custom_vjp
def attend_custom_vjp(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attend` without relative positions, with a derivative of its own.

    It multiplies arrays (b, heads, n, depth), and keeps of the weights the exponentials alone.
    """
    return _attend(query, key, value)[0]


def _attend(query, key, value):
    query = query * (query.shape[-1] ** -0.5)
    q, k, v = (_heads_first(x) for x in (query, key, value))
    scores = _product("bhqd,bhkd->bhqk", q, k)
    exps = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = exps.sum(axis=-1, keepdims=True)
    exps = exps.astype(v.dtype)
    y = (_product("bhqk,bhkd->bhqd", exps, v) / total).astype(v.dtype)
    return jnp.swapaxes(y, 1, 2), (q, k, v, exps, total, y)


def _attend_vjp(kept, dy):
    q, k, v, exps, total, y = kept
    dy = _heads_first(dy) / total  # the division that the exponentials were spared
    dots = (dy * y).sum(-1, keepdims=True)
    dy = dy.astype(v.dtype)
    dv = _product("bhqk,bhqd->bhkd", exps, dy)
    scores = (exps * (_product("bhqd,bhkd->bhqk", dy, v) - dots)).astype(v.dtype)
    dq = _product("bhqk,bhkd->bhqd", scores, k) * (q.shape[-1] ** -0.5)
    dk = _product("bhqk,bhqd->bhkd", scores, q)
    return tuple(jnp.swapaxes(x, 1, 2).astype(v.dtype) for x in (dq, dk, dv))


attend_custom_vjp.defvjp(_attend, _attend_vjp)


def _heads_first(x: jax.Array) -> jax.Array:
    """Copies (b, n, heads, depth) to (b, heads, n, depth), so that no product has to."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, 1, 2))


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def attend_cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attend` by cuDNN's flash attention, which never writes the (n, n) weights to memory.

    For float16 and bfloat16 on NVIDIA GPUs (Dao et al., arXiv 2205.14135); `depth` is a multiple
    of 8, at most 128. JAX refuses to differentiate it at an odd n, which ViTs have: there, one
    token is added that nothing attends to.
    """
    (b, n), lengths = query.shape[:2], None
    if n % 2:
        lengths = jnp.full(b, n)
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value)
        )
    y = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        implementation="cudnn",
    )  # fmt: skip
    return y[:, :n]


ATTENDS = {"plain": attend, "custom_vjp": attend_custom_vjp, "cudnn": attend_cudnn}


class MultiHeadDotProductAttention(nn.MultiHeadDotProductAttention):
    """Self-attention of `num_heads` heads over tokens (b, n, d) -> (b, n, d).

    Flax's module gives the parameters (query, key, value: (d, heads, depth); out: (heads,
    depth, d)) and `attend` the mathematics. Kernels start Xavier-uniform, biases at zero.
    """

    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    attention_fn: Any = attend


def self_attention(
    x: jax.Array,
    num_heads: int,
    *,
    relative: bool = False,
    implementation: str = "plain",
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Self-attention over (b, n, d), with or without relative positions; (b, n, d) out.

    To be called in a module's compact method: that module gets the parameters, as
    `MultiHeadDotProductAttention_0` and, with `relative`, `RelativePositions_0`. Relative
    positions are always computed by the plain `attend`.
    """
    attend_ = ATTENDS[implementation]
    if relative:
        embeddings = RelativePositions(x.shape[1], x.shape[2] // num_heads)()
        attention_fn = functools.partial(attend, relative=embeddings)
    else:
        def attention_fn(query, key, value, **unused):
            return attend_(query, key, value)
    dots = {f"{part}_{name}": function for part in ("qkv", "out")
            for name, function in dense_options(implementation).items()}
    return MultiHeadDotProductAttention(
        num_heads=num_heads, dtype=dtype, attention_fn=attention_fn, **dots
    )(x)
