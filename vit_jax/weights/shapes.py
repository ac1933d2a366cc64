"""What the names and shapes of parameters show: the model's attributes, variant and image size.

In all functions, `shapes` has the shapes of parameters by our names, such as "head/kernel". They
may come from a damaged file. A missing name or axis counts as length 0; that it is missing is
reported later, when the parameters are compared with those of the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vit_jax import models
from vit_jax.models.attributes import of_kind
from vit_jax.weights.layout import Shape

_TABLES = r"Transformer/posembed_\w+/pos_embedding"
_POSITIONS = {"x_embedding": "2d", "pos_embedding": "1d", "offset_embedding": "relative"}


def num_classes_of(shapes: Mapping[str, Shape]) -> int:
    """Returns the number of logits. 0 if there is no head."""
    return _length(shapes, r"head/bias|head/kernel", -1)


def attributes_of(
    shapes: Mapping[str, Shape], *, pool: str | None = None, assumed_pool: str = "token"
) -> dict[str, Any]:
    """Returns the attributes of the model that has these parameters, as `models.build` takes them.

    Args:
      shapes: see the top of this file. If attention heads are not separated, the result lacks
        `num_heads`.
      pool: the pooling, if something else than the arrays says it.
      assumed_pool: the result's `pool` if there is no class token, and the length of the table of
        positions is no square, so that a class token may be missing.
    """
    stages = _stages(shapes)
    if not any(name.startswith(("Transformer/", "embedding/")) for name in shapes):
        return {
            "layers": stages,
            "width_factor": _length(shapes, r"conv_root/kernel", 3) // 64,
            "axial": any("/attention/" in name for name in shapes),
        }
    pool = pool or _pool(shapes, assumed_pool)
    patch = tuple(_length(shapes, r"embedding/kernel", axis) for axis in (0, 1))
    positions = [kind for name, kind in _POSITIONS.items() if any(n.endswith(name) for n in shapes)]
    blocks = [re.match(r"Transformer/encoderblock_(\d{1,4})/", name) for name in shapes]
    attributes = {
        "depth": 1 + max((int(match[1]) for match in blocks if match), default=-1),
        "width": _length(shapes, r"embedding/bias|Transformer/encoder_norm/scale|cls", -1),
        "mlp_dim": _length(shapes, r"Transformer/.*/Dense_0/bias", -1),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "stem": stages if any(name.startswith("conv_root/") for name in shapes) else None,
        "conv_stem": _conv_stem(shapes),
        "axial": any("/row/" in name for name in shapes),
        "registers": _length(shapes, "Transformer/registers", 1),
        "patch_norm": "patch_norm/scale" in shapes,
        "pre_norm": "Transformer/pre_norm/scale" in shapes,
        "final_norm": _final_norm(shapes),
        "mlp": "swiglu" if any("/Gate/" in name for name in shapes) else "plain",
        "norm": _norm(shapes),
        "positions": positions[0] if positions else "none",
        "positions_at": "layers" if any("posembed_0/" in name for name in shapes) else "stem",
        "pool": pool,
        "pre_logits": any(name.startswith("pre_logits/") for name in shapes),
        "projection": _length(shapes, "projection/kernel", 1),
    }
    if (tokens := _length(shapes, "cls", 1)) and (tokens > 1 or "token" not in pool):
        attributes["class_tokens"] = tokens  # not as many as models have if they aren't told
    if _length(shapes, r".*/query/kernel", 2):
        attributes["num_heads"] = _length(shapes, r".*/query/kernel", 1)
    return attributes


def _pool(shapes: Mapping[str, Shape], assumed: str) -> str:
    if "MAPHead_0/probe" in shapes:
        return "map"
    if "cls" in shapes:
        tokens, width = _length(shapes, "cls", 1), _length(shapes, "cls", 2)
        readers = ("fc_norm/scale", "projection/kernel", "pre_logits/kernel", "head/kernel")
        pooled = next((shapes[name][0] for name in readers if shapes.get(name)), tokens * width)
        if pooled == (tokens + 1) * width:
            return "token+gap"
        # timm has this norm for means alone.
        mean = pooled == width and (tokens > 1 or "fc_norm/scale" in shapes)
        return "gap" if mean else "token"
    tokens = _length(shapes, _TABLES, 1)
    return "gap" if math.isqrt(tokens) ** 2 == tokens else assumed


def _final_norm(shapes: Mapping[str, Shape]) -> str:
    if "fc_norm/scale" in shapes:
        return "after_pool"
    is_there = any(name.startswith("Transformer/encoder_norm/") for name in shapes)
    return "before_pool" if is_there else "none"


def _norm(shapes: Mapping[str, Shape]) -> str:
    """Returns "rms" if no normalisation has a bias."""
    pattern = r"Transformer/.*(Norm_0|norm)/(scale|bias)"
    norms = [name for name in shapes if re.fullmatch(pattern, name)]
    return "rms" if norms and all(name.endswith("/scale") for name in norms) else "layer"


def closest_variant(attributes: Mapping[str, Any]) -> str:
    """Returns the variant that agrees with most sizes, then with most stages of a ResNet.

    Of variants that agree as much, it is the one whose patches have the nearest size.
    """
    patch = attributes.get("patch_size")

    def agreement(variant: str) -> tuple[int, int, int]:
        row = {"stem": None, "axial": False, **models.VARIANTS[variant]}
        equal = sum(row.get(k, ...) == v for k, v in of_kind(attributes, "size").items())
        stages = [(row.get(k) or (), attributes.get(k) or ()) for k in ("stem", "layers")]
        alike = sum(a == b for pair in stages for a, b in zip(*pair, strict=False))
        is_known = isinstance(patch, int) and "patch_size" in row
        return equal, alike, -abs(patch - row["patch_size"]) if is_known else 0

    def kind(row: Mapping[str, Any]) -> str:
        return next((key for key in ("layers", "conv_stem") if row.get(key)), "")

    same_kind = [name for name, row in models.VARIANTS.items() if kind(row) == kind(attributes)]
    return max(same_kind, key=agreement)


def image_shape_of(shapes: Mapping[str, Shape], model: nn.Module) -> tuple[tuple[int, int], bool]:
    """Returns an image size for which a model has these parameters, and whether it is the only one.

    The number of tokens shows the size of square images only. If it is no square, the result has
    all patches in one row.

    Args:
      shapes: see the top of this file.
      model: the module that has the parameters.

    Returns:
      (height, width) in pixels, and True if images must have this size.
    """
    offsets = {  # number of tokens, by the name of each table of relative positions
        name: (shape[0] + 1) // 2 if shape else 0
        for name, shape in shapes.items()
        if name.endswith("/offset_embedding")
    }
    if model.axial and offsets:
        is_resnet = hasattr(model, "layers")  # its first stage has one token for 4 x 4 pixels
        part, stride = ("block1/unit1/attention", (4, 4)) if is_resnet else ("", model.stride)
        rows, columns = (  # attention within a row is among as many tokens as there are columns
            max((n for name, n in offsets.items() if f"{part}/{line}/" in name), default=1)
            for line in ("column", "row")
        )
        return (rows * stride[0], columns * stride[1]), True
    grid, known = (1, 1), False
    tokens = max([_length(shapes, _TABLES, 1), *offsets.values()])
    patches = tokens - (_length(shapes, "cls", 1) or "token" in getattr(model, "pool", ""))
    if rows := _length(shapes, r".*/y_embedding", 0):
        grid, known = (rows, _length(shapes, r".*/x_embedding", 0)), True
    elif patches > 0:
        side = math.isqrt(patches)
        known = side**2 == patches
        grid = (side, side) if known else (1, patches)
    return (grid[0] * model.stride[0], grid[1] * model.stride[1]), known


def _length(shapes: Mapping[str, Shape], pattern: str, axis: int) -> int:
    """Returns the length of an axis of the first parameter whose whole name matches, or 0."""
    shape = next((s for name, s in shapes.items() if re.fullmatch(pattern, name)), ())
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _conv_stem(shapes: Mapping[str, Shape]) -> tuple[int, ...] | None:
    """Returns the channels of each layer of a `ConvStem`, or None if there is none."""
    channels: list[int] = []
    while (name := f"conv_stem/conv_{len(channels)}/bias") in shapes:
        channels.append(_length(shapes, re.escape(name), 0))
    return tuple(channels) or None


def _stages(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Returns the number of units in each stage of a ResNet, which is the highest in a name."""
    units: dict[int, int] = {}
    for match in filter(None, (re.match(r"block(\d{1,3})/unit(\d{1,4})/", n) for n in shapes)):
        stage, unit = int(match[1]), int(match[2])
        units[stage] = max(unit, units.get(stage, 0))
    return tuple(units.get(stage, 0) for stage in range(1, max(units, default=0) + 1))
