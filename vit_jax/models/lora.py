"""LoRA: updates of low rank to the kernels of dense layers (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

_A, _B = NAMES = ("lora_a", "lora_b")  # of the parameters, beside the kernel and the bias


class Lora(NamedTuple):
    """The update of a kernel W: it becomes W + alpha / rank * A B.

    Attributes:
      rank: number of columns of A, and of rows of B.
      alpha: says how much the update counts.
    """

    rank: int
    alpha: float


@jax.custom_vjp
def lora_matmul(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns x (kernel + a b): (n, outer), of the dtype of x.

    The sum is one matrix, so a forward pass takes as long as without an update. The derivatives of
    a and b are computed without that of the kernel, which is large. XLA leaves the latter out if
    nothing reads it, as when the kernel is frozen.

    Args:
      x: (n, inner).
      kernel: (inner, outer) float32.
      a: (inner, rank) float32.
      b: (rank, outer) float32.
    """
    return x @ (kernel + a @ b).astype(x.dtype)


def _lora_matmul_vjp(kept, dy):
    x, kernel, a, b = kept
    narrow_a, narrow_b = a.astype(x.dtype), b.astype(x.dtype)
    dx = dy @ (kernel + a @ b).astype(x.dtype).T
    dkernel, da, db = (
        jnp.matmul(left.T, right, preferred_element_type=jnp.float32)
        for left, right in ((x, dy), (x, dy @ narrow_b.T), (x @ narrow_a, dy))
    )
    return dx, dkernel, da, db


lora_matmul.defvjp(lambda *inputs: (lora_matmul(*inputs), inputs), _lora_matmul_vjp)


def is_lora(path: tuple[str, ...]) -> bool:
    """Returns True if a parameter, by its path in a tree, is an A or a B."""
    return path[-1] in NAMES


def split_lora(params: Any) -> tuple[Any, Any]:
    """Returns the parameters of the model without LoRA, and LoRA's: two trees.

    Args:
      params: tree of anything, with Linen names.
    """
    flat = flatten_dict(params)
    lora = {path: x for path, x in flat.items() if is_lora(path)}
    return unflatten_dict({k: x for k, x in flat.items() if k not in lora}), unflatten_dict(lora)


def merge_lora(params: Any, alpha: float | None = None) -> Any:
    """Returns the parameters of the model without LoRA that computes the same, up to rounding.

    Kernels become W + alpha / rank * A B, float32. All other parameters stay as they are.

    Args:
      params: tree of arrays, with Linen names.
      alpha: the model's `lora_alpha`; None for the rank.
    """
    if not isinstance(params, Mapping):
        return params
    if _A not in params:
        return {name: merge_lora(tree, alpha) for name, tree in params.items()}
    kernel, a, b = (np.asarray(params[name], np.float32) for name in ("kernel", _A, _B))
    scale = np.float32(1 if alpha is None else alpha / len(b))
    others = {name: x for name, x in params.items() if name not in NAMES}
    return {**others, "kernel": kernel + np.tensordot(scale * a, b, 1)}
