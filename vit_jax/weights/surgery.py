"""surgery"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.models import masked
from vit_jax.models.params import check_same
from vit_jax.models.positions import resize, resize_positions

# What belongs to pre-training alone, masked patch prediction's too: fine-tuning starts anew.
HEAD = ("pre_logits", "head", *masked.PARAMETERS)


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
