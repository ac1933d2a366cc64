"""Fitting loaded parameters to another task and resolution (paper 3.2, B.1.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from vit_jax.checkpoint import check_same

_HEAD = ("pre_logits", "head")  # the pre-training head: fine-tuning starts with a new one


def resize_positions(
    table: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
    """Interpolates position embeddings in 2-D: (1, t + n, d) -> (1, t + m, d).

    The first t rows (the class token's) stay as they are. Interpolation is linear with aligned
    corners, as in the public checkpoint loader.

    Args:
      table: one row for each class token, then one for each patch, row by row.
      old_grid, new_grid: (rows, columns) of n and m patches.
    """
    tokens = table.shape[1] - old_grid[0] * old_grid[1]
    kept, patches = table[:, :tokens], table[0, tokens:].reshape(*old_grid, -1)
    zoom = (new_grid[0] / old_grid[0], new_grid[1] / old_grid[1], 1)
    patches = ndimage.zoom(patches, zoom, order=1)
    return np.concatenate([kept, patches.reshape(1, -1, table.shape[-1])], axis=1)


def adapt(
    params: Any,
    fresh: Any,
    *,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    where: str,
) -> Any:
    """Returns `params` with the head of `fresh` and positions resized to its grid.

    Args:
      params: loaded parameters, a tree of NumPy arrays.
      fresh: newly initialised parameters of the model to train; left as they are.
      old_grid, new_grid: (rows, columns) of patches of the two.
      where: what `params` are, for the message.

    Raises:
      ValueError: another parameter is missing, unexpected or of another shape; each is named.
    """
    params = {name: value for name, value in params.items() if name not in _HEAD}
    params |= {name: fresh[name] for name in _HEAD if name in fresh}
    if old_grid != new_grid:
        encoder = dict(params["Transformer"])
        table = encoder["posembed_input"]["pos_embedding"]
        table = resize_positions(table, old_grid, new_grid)
        encoder["posembed_input"] = {"pos_embedding": table}
        params["Transformer"] = encoder
    check_same(params, fresh, where)
    return params
