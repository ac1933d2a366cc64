"""Which parameters are trained, and at which learning rate each.

The layers of a ViT are numbered as in BEiT (Bao et al., arXiv 2106.08254) and MAE (He et al., arXiv
2111.06377): 0 is the stem, i + 1 is block i of L, and L + 1 is what follows the blocks.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from vit_jax.models.lora import is_lora
from vit_jax.models.params import HEAD_LAYERS

_AFTER_THE_BLOCKS = ("MAPHead_0", "fc_norm", "patch_head", *HEAD_LAYERS)


def split_params(params: Any, freeze: str | int) -> tuple[Any, Any]:
    """Returns the trained and the frozen parameters: two trees, each with a part of the arrays.

    Args:
      params: tree of arrays, with Linen names. If those of LoRA are among them, all but these and
        `HEAD_LAYERS` are frozen, whatever `freeze` says.
      freeze: "none" freezes nothing; "encoder" all but `HEAD_LAYERS`; a number n the stem and the
        first n blocks, of a ViT. Positions that are added before a block belong to it.
    """
    flat = flatten_dict(params)
    has_lora = any(map(is_lora, flat))
    if freeze == "none" and not has_lora:
        return params, {}

    def is_frozen(path):
        if freeze == "encoder" or (has_lora and not is_lora(path)):
            return path[0] not in HEAD_LAYERS
        layer = _layer(path)
        return isinstance(freeze, int) and layer is not None and layer <= freeze

    frozen = {path: x for path, x in flat.items() if is_frozen(path)}
    trained = {path: x for path, x in flat.items() if path not in frozen}
    return unflatten_dict(trained), unflatten_dict(frozen)


def join_params(trained: Any, frozen: Any) -> Any:
    """Returns the tree that `split_params` made two of."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen)) if frozen else trained


def rate_factors(trained: Any, optim: ConfigDict) -> Any:
    """Returns what the learning rate of each parameter is multiplied by: a tree of floats.

    It is `layer_decay` to the power of L + 1 - layer, with the layers that this file begins with.
    So it is 1 after the blocks. With `head_lr`, that of `HEAD_LAYERS` is `head_lr` / `lr`, whatever
    `layer_decay` is.

    Args:
      trained: tree of anything, with Linen names; the trained parameters of `split_params`.
      optim: `config.optim`; reads `lr`, `layer_decay` and `head_lr`.
    """
    # The last block is never frozen without all blocks, so the highest number is L if one is left.
    depth = max((_layer(path) or 0 for path in flatten_dict(trained)), default=0)

    def factor(path, _):
        names = tuple(part.key for part in path)
        if optim.head_lr is not None and names[0] in HEAD_LAYERS:
            return optim.head_lr / optim.lr
        layer = _layer(names)
        return 1.0 if layer is None else optim.layer_decay ** (depth + 1 - layer)

    return jax.tree.map_with_path(factor, trained)


def _layer(path: tuple[str, ...]) -> int | None:
    """Returns the layer of a parameter of a ViT, by its name; None after the blocks."""
    if path[0] in _AFTER_THE_BLOCKS or path[:2] == ("Transformer", "encoder_norm"):
        return None
    block = re.fullmatch(r"Transformer/(?:encoderblock|posembed)_(\d+)", "/".join(path[:2]))
    return int(block[1]) + 1 if block else 0
