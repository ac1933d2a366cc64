"""Names in `.npz` files of big_vision, which are ours but for the table of positions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from vit_jax.weights.layout import Layout, Rule, Shape, check_alone
from vit_jax.weights.parameter_names.rules import ATTENTION, BLOCK, TABLE, same_rules

# What may begin every name: the parameters are part of an optimizer's or a training state; they are
# those of the image tower of a pair of towers (LiT, SigLIP).
_STATES, TOWER = ("opt/target/", "params/"), "img/"
TOWER_VIEW = {"eval_crop": "whole", "eval_resize": "bilinear"}  # how LiT and SigLIP see images
_STACKED = "Transformer/encoderblock/"  # begins the names of blocks in one loop, nn.scan
_MOST_BLOCKS = 9_999


def _rules() -> list[Rule]:
    layers = ("kernel", "bias")
    rules = same_rules("cls", *(f"Transformer/encoder_norm/{x}" for x in ("scale", "bias")))
    for name in ("embedding", "pre_logits", "head"):
        rules += same_rules(*(f"{name}/{x}" for x in layers))
    for block in (BLOCK, "MAPHead_0/"):
        attention = ATTENTION.removeprefix(BLOCK)
        for name in (
            *(f"{attention}{x}" for x in ("query", "key", "value", "out")),
            *(f"MlpBlock_0/Dense_{n}" for n in (0, 1)),
        ):
            rules += same_rules(*(f"{block}{name}/{x}" for x in layers))
        for n in (0, 1):
            rules += same_rules(*(f"{block}LayerNorm_{n}/{x}" for x in ("scale", "bias")))
    rules += same_rules("MAPHead_0/probe")
    return [*rules, Rule((TABLE,), "pos_embedding")]


BIG_VISION = Layout("big_vision", _rules(), class_rows=False)


def prefix_of(names: Iterable[str]) -> str:
    """Returns what begins the names of a model's parameters in a file, "" if nothing does."""
    names = list(names)
    state = next((p for p in _STATES if any(name.startswith(p) for name in names)), "")
    tower = state + TOWER
    return tower if any(name.startswith(tower) for name in names) else state


def usual_name(name: str) -> str:
    """Returns the name that an array has in most files.

    Some files of BiT number their convolutions, and files of big_vision before 2022 have the table
    of positions in another module.
    """
    if name == "Transformer/pos_embedding":
        return "pos_embedding"
    return re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name)


def has_no_positions(names: Iterable[str]) -> bool:
    """Returns True if a file of big_vision is of a ViT, but has no table of positions."""
    names = list(names)
    return any("/MlpBlock_0/" in name for name in names) and not any(
        name.endswith("_embedding") for name in names
    )


def unstack(
    path: str, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray]
) -> tuple[dict[str, Shape], Callable[[str], np.ndarray]]:
    """Returns the arrays of a file by the names of single blocks, where it has those of all in one.

    Such files come from big_vision's `scan=True`: all arrays of `Transformer/encoderblock/` have a
    first axis for the blocks. An array is read once for all blocks: what later blocks need of it
    stays in memory until they are read.

    Args:
      path: the file's, for messages.
      shapes: shapes of its arrays, by name.
      read: returns the array of a name.

    Returns:
      The same for the new names.

    Raises:
      ValueError: there are two arrays for one parameter.
    """
    parts = {
        f"Transformer/encoderblock_{i}/{name.removeprefix(_STACKED)}": (name, i)
        for name, shape in shapes.items()
        if name.startswith(_STACKED) and shape and shape[0] <= _MOST_BLOCKS
        for i in range(shape[0])
    }
    stacked = {name for name, _ in parts.values()}
    waiting: dict[str, np.ndarray] = {}

    def read_part(name: str) -> np.ndarray:
        if name not in parts:
            return read(name)
        if name not in waiting:
            array = read(parts[name][0])
            waiting.update(
                {k: array[i] for k, (whole, i) in parts.items() if whole == parts[name][0]}
            )
        return waiting.pop(name)

    others = {name: shape for name, shape in shapes.items() if name not in stacked}
    for name, (whole, _) in parts.items():
        check_alone(path, whole, name if name in others else None)
    return others | {new: shapes[name][1:] for new, (name, _) in parts.items()}, read_part
