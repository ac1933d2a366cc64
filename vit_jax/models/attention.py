"""Multi-head self-attention (paper appendix A) with the published checkpoints' parameter tree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dense
from vit_jax.models.positions import RelativePositions


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    relative: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(depth)) v for q, k, v of shape (b, n, heads, depth); same shape out.

    The sum of the exponentials divides the product with the values, not the (n, n) weights:
    the same function of equation 6 and 7 with depth instead of n divisions a row, which is
    faster on a CPU. Scores and sums are float32 whatever the dtype of the inputs.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      relative: embeddings (n, n, depth) that are each query's additional keys: their scores are
        added to the others before the softmax (paper D.4).
    """
    scores = _scores(query, key, relative)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1)  # (b, heads, n)
    y = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
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
        scores += jnp.einsum(
            "bqhd,qkd->bhqk",
            query,
            relative.astype(query.dtype),
            preferred_element_type=jnp.float32,
        )
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


def attend_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, *, tokens: int | None = None
) -> jax.Array:
    """`attend` by cuDNN's flash attention, which never writes the (n, n) weights to memory.

    For float16 and bfloat16 on NVIDIA GPUs (Dao et al., arXiv 2205.14135); `depth` is a multiple
    of 8, at most 128. JAX refuses to differentiate it at an odd n: there, one token is added.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      tokens: nothing attends to those after so many; None where all n count.
    """
    b, n = query.shape[:2]
    tokens = tokens or n
    if n % 2:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value)
        )
    lengths = None if tokens == query.shape[1] else jnp.full(b, tokens)
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return y[:, :n]


ATTENDS = {"plain": attend, "custom_vjp": attend_custom_vjp, "cudnn": attend_cudnn}


class MultiHeadDotProductAttention(nn.Module):
    """Self-attention of `num_heads` heads over tokens (b, n, d) -> (b, n, d).

    The parameters are those of Flax's module of this name: query, key, value: (d, heads, depth);
    out: (heads, depth, d), and their biases. Kernels start Xavier-uniform, biases at zero.

    Attributes:
      attention_fn: (query, key, value) -> weighted values, all (b, n, heads, depth).
      dense: the class of the projections, see `layers.dense`.
    """

    num_heads: int
    attention_fn: Callable[..., jax.Array] = attend
    dense: type[nn.DenseGeneral] = nn.DenseGeneral
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        how = dict(kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (self.dense(heads, name=name, **how)(x) for name in ("query", "key", "value"))
        y = self.attention_fn(q, k, v)
        return self.dense(x.shape[-1], axis=(-2, -1), name="out", **how)(y)


def self_attention(
    x: jax.Array,
    num_heads: int,
    *,
    relative: bool = False,
    tokens: int | None = None,
    implementation: str = "plain",
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Self-attention over (b, n, d), with or without relative positions; (b, n, d) out.

    To be called in a module's compact method: that module gets the parameters, as
    `MultiHeadDotProductAttention_0` and, with `relative`, `RelativePositions_0`. Relative
    positions are always computed by the plain `attend`. `tokens` is `attend_cudnn`'s.
    """
    attention_fn = ATTENDS[implementation]
    if relative:
        embeddings = RelativePositions(x.shape[1], x.shape[2] // num_heads)()
        attention_fn = functools.partial(attend, relative=embeddings)
    elif tokens is not None:
        attention_fn = functools.partial(attention_fn, tokens=tokens)
    return MultiHeadDotProductAttention(num_heads, attention_fn, dense(implementation), dtype)(x)
