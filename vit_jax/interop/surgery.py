"""Fitting loaded parameters to another task and resolution (paper 3.2, B.1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy import ndimage

from vit_jax.checkpoint import check_same
from vit_jax.config import RESIZES
from vit_jax.models import masked

# What belongs to pre-training alone, masked patch prediction's too: fine-tuning starts anew.
HEAD = ("pre_logits", "head", *masked.PARAMETERS)


def resize(array: np.ndarray, shape: tuple[int, ...], method: str = "linear") -> np.ndarray:
    """Interpolates an array of samples on a grid to another shape with as many axes.

    Args:
      array: float32; an axis whose length stays the same is left alone.
      shape: the new one.
      method: "linear" with aligned corners, as in the public JAX loader; or "cubic", which timm
        and Hugging Face use: samples at the centres of their cells, Keys's kernel (a = -0.5),
        widened where the grid gets coarser.

    Raises:
      ValueError: there is no such method.
    """
    if method not in RESIZES:
        raise ValueError(f"There is no way to resize called {method!r}: {' or '.join(RESIZES)}.")
    array = np.asarray(array)
    if method == "linear":
        zoom = [new / old for new, old in zip(shape, array.shape, strict=True)]
        return ndimage.zoom(array, zoom, order=1)
    return np.asarray(jax.image.resize(array, shape, "cubic"))


def resize_positions(
    table: np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    method: str = "linear",
) -> np.ndarray:
    """Interpolates position embeddings in 2-D: (1, t + n, d) -> (1, t + m, d).

    The first t rows (the class token's) stay as they are.

    Args:
      table: one row for each class token, then one for each patch, row by row.
      old_grid, new_grid: (rows, columns) of n and m patches.
      method: see `resize`.
    """
    tokens = table.shape[1] - old_grid[0] * old_grid[1]
    kept, patches = table[:, :tokens], table[0, tokens:].reshape(*old_grid, -1)
    patches = resize(patches, (*new_grid, table.shape[-1]), method)
    return np.concatenate([kept, patches.reshape(1, -1, table.shape[-1])], axis=1)


def adapt(
    params: Any,
    wanted: Any,
    *,
    old_grid: tuple[int, int] | None,
    new_grid: tuple[int, int],
    where: str,
    head: Mapping[str, Any] | None = None,
    method: str = "linear",
) -> Any:
    """Returns `params` as the parameters of another model of the same variant.

    Position embeddings are resized to its grid. Where only one of the two models has a class
    token, the token and its position are dropped, or start at zero.

    Args:
      params: loaded parameters, a tree of arrays.
      wanted: the other model's parameters, or their shapes.
      old_grid, new_grid: (rows, columns) of patches of the two; None where it is not known.
      where: what `params` are, for the message.
      head: takes the place of what `HEAD` names; None keeps it.
      method: how positions are interpolated, see `resize`.

    Raises:
      ValueError: another parameter is missing, unexpected or of another shape; each is named.
    """
    flat, wanted_flat = flatten_dict(params, sep="/"), flatten_dict(wanted, sep="/")
    if head is not None:
        flat = {name: x for name, x in flat.items() if name.split("/")[0] not in HEAD}
        flat |= flatten_dict(dict(head), sep="/")
    flat = _with_class_token(flat, wanted_flat)
    for name, table in flat.items():
        old, new = table.shape, getattr(wanted_flat.get(name), "shape", table.shape)
        if old == new and old_grid in (None, new_grid):
            continue
        kind = name.rsplit("/", 1)[-1]
        if kind == "pos_embedding" and len(old) == len(new) == 3:
            if old_grid is None:
                raise ValueError(
                    f"{where}: {name} has {old[1]} rows, of patches in a grid that is not square, "
                    f"and nothing says which. It can't be resized to {new_grid[0]}x{new_grid[1]}."
                )
            flat[name] = resize_positions(np.asarray(table), old_grid, new_grid, method)
        elif kind in ("x_embedding", "y_embedding"):
            flat[name] = resize(np.asarray(table), new, method)
        elif kind == "offset_embedding" and old != new:
            raise ValueError(
                f"{where}: {name} has embeddings of {old[0]} offsets, the model needs {new[0]}. "
                f"Relative positions can't be resized: keep the image size they were trained at."
            )
    params = unflatten_dict(flat, sep="/")
    check_same(params, wanted, where)
    return params


def _with_class_token(flat: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Adds or drops the class token and the first row of every table, as `wanted` has one."""
    if ("cls" in flat) == ("cls" in wanted):
        return flat
    flat = dict(flat)
    adds = "cls" in wanted
    if adds:
        flat["cls"] = np.zeros(wanted["cls"].shape, np.float32)
    else:
        del flat["cls"]
    for name in [name for name in flat if name.endswith("/pos_embedding")]:
        table = np.asarray(flat[name])
        zero = np.zeros_like(table[:, :1])
        flat[name] = np.concatenate([zero, table], axis=1) if adds else table[:, 1:]
    for name in [name for name in {**flat, **wanted} if name.endswith("/token_embedding")]:
        if adds:
            flat[name] = np.zeros(wanted[name].shape, np.float32)
        else:
            flat.pop(name, None)
    return flat
