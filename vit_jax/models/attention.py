"""Multi-head self-attention (paper appendix A) with the published checkpoints' parameter tree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import dense
from vit_jax.models.lora import Lora
from vit_jax.models.positions import RelativePositions


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    relative: jax.Array | None = None,
    keys_first: bool = False,
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(depth)) v: (b, n, heads, depth), of the dtype of `value`.

    It divides after the matmul: depth instead of n divisions per query, which is faster on a CPU.
    The result is that of the paper's equations 6 and 7. Scores and sums are float32 for every dtype
    of the inputs.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      relative: embeddings (n, n, depth), which give each query n more keys. The scores of these
        keys are added to those of `key` before the softmax (paper D.4). None for no such keys.
      keys_first: True computes the scores as [key, query] in place of [query, key].
    """
    axes, of_keys = ("bhkq", -2) if keys_first else ("bhqk", -1)
    scores = _scores(query, key, relative, axes)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=of_keys, keepdims=True)))
    total = weights.sum(axis=of_keys)  # (b, heads, n)
    y = _matmul(f"{axes},bkhd->bqhd", weights.astype(value.dtype), value)
    return (y / jnp.swapaxes(total, 1, 2)[..., None]).astype(value.dtype)


def attention_weights(
    query: jax.Array, key: jax.Array, *, relative: jax.Array | None = None
) -> jax.Array:
    """Returns the weights softmax(q k^T / sqrt(depth)) (b, heads, n, n) [query, key], float32.

    `attend` multiplies the values by these weights (equation 6). Arguments are those of `attend`.
    """
    return jax.nn.softmax(_scores(query, key, relative))


def _scores(
    query: jax.Array, key: jax.Array, relative: jax.Array | None, axes: str = "bhqk"
) -> jax.Array:
    """Returns q k^T / sqrt(depth), float32 (b, heads, n, n), with axes in the order of `axes`."""
    query = query * (query.shape[-1] ** -0.5)
    scores = _matmul(f"bqhd,bkhd->{axes}", query, key)
    if relative is not None:
        scores += _matmul(f"bqhd,qkd->{axes}", query, relative.astype(query.dtype))
    return scores


@jax.custom_vjp
def attend_custom_vjp(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Returns what `attend` returns without relative positions; its derivative is written by hand.

    The matmuls are of arrays (b, heads, n, depth). Of the arrays (n, n), only the exponentials are
    kept for the backward pass.
    """
    return _attend(query, key, value)[0]


def _attend(query, key, value):
    query = query * (query.shape[-1] ** -0.5)
    q, k, v = (_heads_first(x) for x in (query, key, value))
    scores = _matmul("bhqd,bhkd->bhqk", q, k)
    exps = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = exps.sum(axis=-1, keepdims=True)
    exps = exps.astype(v.dtype)
    y = (_matmul("bhqk,bhkd->bhqd", exps, v) / total).astype(v.dtype)
    return jnp.swapaxes(y, 1, 2), (q, k, v, exps, total, y)


def _attend_vjp(kept, dy):
    q, k, v, exps, total, y = kept
    dy = _heads_first(dy) / total  # as the forward pass divides the values, not the exponentials
    dots = (dy * y).sum(-1, keepdims=True)
    dy = dy.astype(v.dtype)
    dv = _matmul("bhqk,bhqd->bhkd", exps, dy)
    dscores = (exps * (_matmul("bhqd,bhkd->bhqk", dy, v) - dots)).astype(v.dtype)
    dq = _matmul("bhqk,bhkd->bhqd", dscores, k) * (q.shape[-1] ** -0.5)
    dk = _matmul("bhqk,bhqd->bhkd", dscores, q)
    return tuple(jnp.swapaxes(x, 1, 2).astype(v.dtype) for x in (dq, dk, dv))


attend_custom_vjp.defvjp(_attend, _attend_vjp)


def _heads_first(x: jax.Array) -> jax.Array:
    """Returns a copy of (b, n, heads, depth) as (b, heads, n, depth), the layout of the matmuls.

    The barrier keeps XLA from moving the transposition into each of them.
    """
    return jax.lax.optimization_barrier(jnp.swapaxes(x, 1, 2))


def _matmul(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `jnp.einsum` with sums in float32."""
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def attend_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, *, tokens: int | None = None
) -> jax.Array:
    """Returns what `attend` returns, computed by cuDNN's flash attention (arXiv 2205.14135).

    It never writes the (n, n) weights to memory. It needs an NVIDIA GPU, float16 or bfloat16, and
    a depth that is a multiple of 8 up to 128. JAX can't differentiate it for an odd n, so one
    token is added then, which nothing attends to, and left out of the result.

    Args:
      query, key, value: arrays (b, n, heads, depth).
      tokens: number of tokens that are attended to, the first of the n. None for all.
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


ATTENTION_FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "plain": attend,
    "custom_vjp": attend_custom_vjp,
    "cudnn": attend_cudnn,
    "tpu": functools.partial(attend, keys_first=True),
}


class MultiHeadDotProductAttention(nn.Module):
    """Attention of tokens to themselves or to others: (b, n, d) -> (b, n, d).

    Parameters have the names and shapes of Flax's module of this name: the kernels of `query`,
    `key` and `value` are (d, heads, depth), that of `out` is (heads, depth, d), each with a bias.
    Kernels start Xavier-uniform, biases at zero.

    Attributes:
      num_heads: number of heads, which must divide d; depth = d / num_heads.
      attention_fn: (query, key, value) -> weighted values, all (b, n, heads, depth).
      dense: makes the projections, see `layers.dense`.
      updated: makes those of queries and values, if they have LoRA; None for `dense`.
      dtype: dtype of the computation.
    """

    num_heads: int
    attention_fn: Callable[..., jax.Array] = attend
    dense: Callable[..., nn.DenseGeneral] = nn.DenseGeneral
    updated: Callable[..., nn.DenseGeneral] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, others: jax.Array | None = None) -> jax.Array:
        """Returns what tokens x (b, n, d) read in `others` (b, m, d), or in x if that is None."""
        how = dict(kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        others = x if others is None else others
        updated = self.updated or self.dense
        q = updated(heads, name="query", **how)(x)
        k = self.dense(heads, name="key", **how)(others)
        v = updated(heads, name="value", **how)(others)
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
    lora: Lora | None = None,
) -> jax.Array:
    """Returns tokens after self-attention: (b, n, d) -> (b, n, d).

    Call it in a module's compact method. That module gets the parameters, as
    `MultiHeadDotProductAttention_0` and, with `relative`, `RelativePositions_0`.

    Args:
      x: tokens (b, n, d).
      num_heads: number of heads, which must divide d.
      relative: True adds relative positions (paper D.4), always by the plain `attend`.
      tokens: number of tokens that are attended to, for `attend_cudnn`. None for all.
      implementation: a key of `ATTENTION_FUNCTIONS`.
      dtype: dtype of the computation.
      lora: the update of the kernels of queries and values; None for none.
    """
    attention_fn = ATTENTION_FUNCTIONS[implementation]
    if relative:
        embeddings = RelativePositions(x.shape[1], x.shape[2] // num_heads)()
        attention_fn = functools.partial(attend, relative=embeddings)
    elif tokens is not None:
        attention_fn = functools.partial(attention_fn, tokens=tokens)
    layers = dense(implementation), dense(implementation, lora)
    return MultiHeadDotProductAttention(num_heads, attention_fn, *layers, dtype)(x)
