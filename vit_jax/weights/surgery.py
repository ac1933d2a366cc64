"""Parameters of one model turned into those of another: new head, grid of patches, class token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.models import masked
from vit_jax.models.params import HEAD_LAYERS, check_same
from vit_jax.models.positions import resize, resize_positions, sincos_table
from vit_jax.weights.patch_resize import resize_kernel

# What belongs to pre-training only, also by masked patch prediction: a new task gets a new head.
HEAD = (*HEAD_LAYERS, *masked.PARAMETERS)
WITHOUT = {
    "pre_logits": False,
    "projection": 0,
}  # attributes of a model without its layers of these


def adapt_params(
    params: Any,
    wanted: Any,
    *,
    old_grid: tuple[int, int] | None,
    new_grid: tuple[int, int],
    where: str,
    head: Mapping[str, Any] | None = None,
    method: str = "linear",
) -> Any:
    """Returns `params` as parameters of another model of the same variant.

    Position embeddings are resized to the grid of the other model. If only one of the two models
    has a class token, the token and its position are dropped, or are added as zeros.

    Args:
      params: a tree of arrays, with Linen names.
      wanted: the tree of the other model's parameters, or of their shapes.
      old_grid: (rows, columns) of patches that `params` are for. None if it is not known.
      new_grid: (rows, columns) of patches of the other model.
      where: what `params` are, for the message.
      head: takes the place of everything that `HEAD` names. None if that is kept.
      method: how positions are interpolated: a key of `positions.RESIZES`.

    Raises:
      ValueError: positions can't be resized, or another parameter is missing, unexpected or of
        another shape; each is named.
    """
    flat, wanted_flat = flatten_dict(params, sep="/"), flatten_dict(wanted, sep="/")
    if head is not None:
        flat = {name: x for name, x in flat.items() if name.split("/")[0] not in HEAD}
        flat |= flatten_dict(dict(head), sep="/")
    flat = _with_class_token(flat, wanted_flat)
    if "embedding/kernel" in flat and "embedding/kernel" in wanted_flat:
        kernel, shape = flat["embedding/kernel"], wanted_flat["embedding/kernel"].shape
        if kernel.shape[:2] != shape[:2] and kernel.shape[2:] == shape[2:]:
            flat["embedding/kernel"] = resize_kernel(np.asarray(kernel), shape)
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
    """Adds or drops the class token and its row in every table of positions, as in `wanted`."""
    if ("cls" in flat) == ("cls" in wanted):
        return flat
    flat = dict(flat)
    adds = "cls" in wanted
    tokens = (wanted if adds else flat)["cls"].shape[1]
    if adds:
        flat["cls"] = np.zeros(wanted["cls"].shape, np.float32)
    else:
        del flat["cls"]
    for name in [name for name in flat if name.endswith("/pos_embedding")]:
        table = np.asarray(flat[name])
        zeros = np.zeros_like(table, shape=(1, tokens, table.shape[-1]))
        flat[name] = np.concatenate([zeros, table], axis=1) if adds else table[:, tokens:]
    for name in [name for name in {**flat, **wanted} if name.endswith("/token_embedding")]:
        if adds:
            flat[name] = np.zeros(wanted[name].shape, np.float32)
        else:
            flat.pop(name, None)
    return flat


def with_learned_positions(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint whose fixed positions are a learned table, with which logits are equal.

    Args:
      checkpoint: its model has positions="sincos".

    Raises:
      ValueError: the image size is not known, on which the positions depend.
    """
    if checkpoint.grid is None:
        raise ValueError(f"{checkpoint.path} has positions='sincos': give its image_size.")
    model = checkpoint.model()
    places = ["input"] if model.positions_at != "layers" else range(model.depth)
    tokens = checkpoint.params["cls"].shape[1] if "cls" in checkpoint.params else 0
    table = np.asarray(sincos_table(checkpoint.grid, model.width, tokens))[None]
    learned = {f"posembed_{place}": {"pos_embedding": table} for place in places}
    params = {**checkpoint.params, "Transformer": {**checkpoint.params["Transformer"], **learned}}
    config = checkpoint.config.copy_and_resolve_references()
    config.model.positions = "1d"
    return checkpoint._replace(params=params, config=config)
