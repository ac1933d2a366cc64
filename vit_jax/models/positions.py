"""Position embeddings (paper equation 1 and appendix D.4), and how they are resized."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("1d", "2d", "relative", "sincos", "none")
PLACES = ("stem", "layers", "shared")  # where absolute positions are added, see `VisionTransformer`
_INIT = nn.initializers.normal(stddev=0.02)


class LearnedPositions(nn.Module):
    """1-D: adds one learned vector to each of n tokens: (b, n, d) -> (b, n, d), paper equation 1.

    The parameter is `pos_embedding` (1, n, d).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.param("pos_embedding", _INIT, (1, *x.shape[1:]))
        return x + jnp.asarray(table, x.dtype)


class GridPositions(nn.Module):
    """2-D: adds the vector [X(column), Y(row)] to each patch: (b, n, d) -> (b, n, d), paper D.4.

    The parameters are `x_embedding` (columns, d/2) and `y_embedding` (rows, d/2). If there are
    tokens before the patches, they have `token_embedding` (n - rows * columns, d).

    Attributes:
      grid: (rows, columns) of the patches, which are numbered row by row.
    """

    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (rows, columns), d = self.grid, x.shape[-1]
        along_x = self.param("x_embedding", _INIT, (columns, d // 2))
        along_y = self.param("y_embedding", _INIT, (rows, d // 2))
        table = jnp.concatenate(
            [
                jnp.broadcast_to(along_x[None, :], (rows, columns, d // 2)),
                jnp.broadcast_to(along_y[:, None], (rows, columns, d // 2)),
            ],
            axis=-1,
        ).reshape(rows * columns, d)
        if tokens := x.shape[1] - rows * columns:
            table = jnp.concatenate([self.param("token_embedding", _INIT, (tokens, d)), table])
        return x + jnp.asarray(table, x.dtype)


def sincos_table(grid: tuple[int, int], width: int, tokens: int = 0) -> jax.Array:
    """Returns the fixed 2-D embeddings of tokens and patches: (tokens + n, d) float32.

    The embedding of a patch at (x, y), counted from 0, is sin(w x), cos(w x), sin(w y), cos(w y):
    d/4 numbers each, for frequencies w that fall from 1 to 1/10,000 in geometric progression.
    Beyer et al., arXiv 2205.01580, use it, in the form of MoCo v3, arXiv 2104.02057.

    Args:
      grid: (rows, columns) of the n patches, which are numbered row by row.
      width: d, a multiple of 4 and at least 8.
      tokens: number of tokens before the patches. Their embeddings are zero.
    """
    frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, width // 4)
    y, x = jnp.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1) * frequencies
    table = jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)
    return jnp.pad(table, ((tokens, 0), (0, 0)))


class SincosPositions(nn.Module):
    """Adds `sincos_table` to tokens: (b, n, d) -> (b, n, d). It has no parameters.

    Attributes:
      grid: (rows, columns) of the patches, which are numbered row by row.
    """

    grid: tuple[int, int]

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = x.shape[1] - self.grid[0] * self.grid[1]
        table = sincos_table(self.grid, x.shape[-1], tokens)
        return x + jnp.asarray(table, x.dtype)


def absolute_positions(kind: str, grid: tuple[int, int]) -> Callable[..., nn.Module] | None:
    """Returns the class of a module (b, n, d) -> (b, n, d) that adds positions to tokens.

    The class takes the module's name. None if the kind adds nothing to tokens.

    Args:
      kind: one of `KINDS`. "relative" and "none" add nothing.
      grid: (rows, columns) of the patches.
    """
    classes: dict[str, Callable[..., nn.Module]] = {
        "1d": LearnedPositions,
        "2d": functools.partial(GridPositions, grid),
        "sincos": functools.partial(SincosPositions, grid),
    }
    return classes.get(kind)


class RelativePositions(nn.Module):
    """Returns the embeddings of the offsets between n tokens: () -> (n, n, depth), paper D.4.

    Entry [q, k] is the embedding of the offset p_q - p_k of query q and key k. All heads share it,
    as in Shaw et al. (arXiv 1803.02155). The parameter is `offset_embedding` (2n - 1, depth); its
    middle row belongs to offset 0. `attention.attend` takes the embeddings as additional keys.

    Attributes:
      tokens: n.
      depth: size of an attention head.
    """

    tokens: int
    depth: int

    @nn.compact
    def __call__(self) -> jax.Array:
        table = self.param("offset_embedding", _INIT, (2 * self.tokens - 1, self.depth))
        at = jnp.arange(self.tokens)
        return table[at[:, None] - at[None, :] + self.tokens - 1]


# ------------------------------------------------------------------------------- resizing


def resize_linear(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolates linearly with aligned corners, as the public JAX loader does.

    The public loader makes the last row and column zero for some pairs of sizes, such as 28 and 48:
    their place is rounded to one beyond the grid. Here they are the last ones of the old grid. For
    all other pairs, the results are the same to the last bit.
    """
    from scipy import ndimage  # not at the start of each command: it takes long

    zoom = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array, zoom, order=1, mode="nearest")


def resize_cubic(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolates by Keys's cubic kernel (a = -0.5), as timm and Hugging Face do.

    Samples lie at the centres of their cells. The kernel is widened where the grid gets coarser.
    """
    return np.asarray(jax.image.resize(array, shape, "cubic"))


RESIZES = {"linear": resize_linear, "cubic": resize_cubic}  # by the value of config.init_resize


def resize(array: np.ndarray, shape: tuple[int, ...], method: str = "linear") -> np.ndarray:
    """Returns samples on a grid, interpolated on a grid of another shape; float32.

    Args:
      array: float32, one sample for each point of the grid.
      shape: the new shape, with as many axes. An axis whose length stays the same is not changed.
      method: a key of `RESIZES`.

    Raises:
      ValueError: there is no such method.
    """
    if method not in RESIZES:
        raise ValueError(f"There is no way to resize called {method!r}: {' or '.join(RESIZES)}.")
    return RESIZES[method](np.asarray(array), shape)


def resize_positions(
    table: np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    method: str = "linear",
) -> np.ndarray:
    """Returns position embeddings, interpolated in 2-D: (1, t + n, d) -> (1, t + m, d).

    The first t rows, the class token's, don't change (paper 3.2).

    Args:
      table: float32, one row for each class token, then one for each patch, row by row.
      old_grid: (rows, columns) of the n patches.
      new_grid: (rows, columns) of the m patches.
      method: a key of `RESIZES`.

    Raises:
      ValueError: there is no such method.
    """
    tokens = table.shape[1] - old_grid[0] * old_grid[1]
    kept, patches = table[:, :tokens], table[0, tokens:].reshape(*old_grid, -1)
    patches = resize(patches, (*new_grid, table.shape[-1]), method)
    return np.concatenate([kept, patches.reshape(1, -1, table.shape[-1])], axis=1)
