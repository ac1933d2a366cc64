"""Every named model is one row of `VARIANTS`; `build` makes the Flax module of a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from vit_jax.models.vit import VisionTransformer


def _vit(depth: int, width: int, mlp_dim: int, num_heads: int, patch_size: int) -> dict[str, Any]:
    return dict(
        depth=depth, width=width, mlp_dim=mlp_dim, num_heads=num_heads, patch_size=patch_size
    )


# B, L, H: paper table 1. Ti and S: the sizes published since for the same code. Nano: ours,
# small enough to be trained from scratch on a laptop in minutes.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    #                 depth width   mlp heads patch
    "Nano/8":     _vit(   4,   96,  384,    3,    8),
    "Ti/16":      _vit(  12,  192,  768,    3,   16),
    "S/32":       _vit(  12,  384, 1536,    6,   32),
    "S/16":       _vit(  12,  384, 1536,    6,   16),
    "B/32":       _vit(  12,  768, 3072,   12,   32),
    "B/16":       _vit(  12,  768, 3072,   12,   16),
    "L/32":       _vit(  24, 1024, 4096,   16,   32),
    "L/16":       _vit(  24, 1024, 4096,   16,   16),
    "H/14":       _vit(  32, 1280, 5120,   16,   14),
})  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"^vit|[^a-z0-9+]", "", name.lower())


def canonical(name: str) -> str:
    """Returns the paper's spelling of a variant: "B/16" for "b16", "B_16", "ViT-B/16", "vit_b16".

    Raises:
      ValueError: no variant is called so; the closest names are listed.
    """
    names = {_key(variant): variant for variant in VARIANTS}
    key = _key(name)
    if key not in names:
        close = [names[k] for k in difflib.get_close_matches(key, names, n=3, cutoff=0.3)]
        hint = f"closest: {', '.join(close)}; all: " if close else "known: "
        raise ValueError(f"There is no model variant {name!r} ({hint}{', '.join(VARIANTS)}).")
    return names[key]


def build(variant: str, *, num_classes: int, **overrides: Any) -> nn.Module:
    """Returns the Flax module of a variant; see `VisionTransformer` for what it computes.

    Args:
      variant: a key of `VARIANTS`, or another spelling that `canonical` knows.
      num_classes: size of the head; 0 for the pooled representation.
      **overrides: attributes of the module that replace the row's (`dropout`, `pool`, `width`…).

    Raises:
      ValueError: unknown variant, or attributes that the module does not have or can't take.
    """
    row = {**VARIANTS[canonical(variant)], **overrides}
    known = {name for name in VisionTransformer.__dataclass_fields__ if name not in _INTERNAL}
    if unknown := sorted(set(row) - known):
        raise ValueError(
            f"Variant {variant} has no {', '.join(unknown)}; it takes {', '.join(sorted(known))}."
        )
    if row["width"] % row["num_heads"]:
        raise ValueError(
            f"width={row['width']} is not a multiple of num_heads={row['num_heads']}, so the "
            f"attention heads can't share it evenly."
        )
    if row.get("pool", "token") not in ("token", "gap"):
        raise ValueError(f'pool={row["pool"]!r} is unknown: "token" or "gap".')
    return VisionTransformer(num_classes=num_classes, **row)


_INTERNAL = ("parent", "name", "num_classes")
