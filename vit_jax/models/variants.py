"""Every model that has a name is one row of `VARIANTS`; `build` makes the Flax module of a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import attributes
from vit_jax.models.layers import fits_cudnn
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import VisionTransformer


def _vit(
    depth: int, width: int, mlp_dim: int, num_heads: int, patch_size: int, **more: Any
) -> dict[str, Any]:
    return dict(
        depth=depth,
        width=width,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        patch_size=patch_size,
        **more,
    )


def _resnet(layers: tuple[int, ...], width_factor: int, **more: Any) -> dict[str, Any]:
    return dict(layers=layers, width_factor=width_factor, **more)


# B, L, H: paper table 1. Ti, S: sizes that were published later with the same code. Nano: our own,
# small enough to train from scratch on a laptop in minutes; Conv+: with a small convolutional stem.
# R…+…: hybrids (paper 4.1), with the number of units in each stage of the stem. R…x…: BiT ResNets,
# the paper's baselines. Axial: paper D.6.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    #                    depth width   mlp heads patch
    "Nano/8":        _vit(   4,   96,  384,    3,    8),
    "Conv+Nano/16":  _vit(   4,   96,  384,    3,    1, conv_stem=(32, 64, 96)),
    "Ti/16":         _vit(  12,  192,  768,    3,   16),
    "S/32":          _vit(  12,  384, 1536,    6,   32),
    "S/16":          _vit(  12,  384, 1536,    6,   16),
    "B/32":          _vit(  12,  768, 3072,   12,   32),
    "B/16":          _vit(  12,  768, 3072,   12,   16),
    "B/8":           _vit(  12,  768, 3072,   12,    8),
    "L/32":          _vit(  24, 1024, 4096,   16,   32),
    "L/16":          _vit(  24, 1024, 4096,   16,   16),
    "H/14":          _vit(  32, 1280, 5120,   16,   14),
    "R+Ti/16":       _vit(  12,  192,  768,    3,    8, stem=()),
    "R26+S/32":      _vit(  12,  384, 1536,    6,    1, stem=(2, 2, 2, 2)),
    "R50+B/32":      _vit(  12,  768, 3072,   12,    1, stem=(3, 4, 6, 3)),
    "R50+B/16":      _vit(  12,  768, 3072,   12,    1, stem=(3, 4, 9)),
    "R50+L/32":      _vit(  24, 1024, 4096,   16,    1, stem=(3, 4, 6, 3)),
    "R50+L/16":      _vit(  24, 1024, 4096,   16,    1, stem=(3, 4, 9)),
    "Axial-B/32":    _vit(  12,  768, 3072,   12,   32, axial=True, pool="gap"),
    "Axial-B/16":    _vit(  12,  768, 3072,   12,   16, axial=True, pool="gap"),
    #                        units a stage, width factor
    "R50x1":         _resnet((3,  4,  6, 3), 1),
    "R50x2":         _resnet((3,  4,  6, 3), 2),
    "R50x3":         _resnet((3,  4,  6, 3), 3),
    "R101x1":        _resnet((3,  4, 23, 3), 1),
    "R101x3":        _resnet((3,  4, 23, 3), 3),
    "R152x1":        _resnet((3,  8, 36, 3), 1),
    "R152x2":        _resnet((3,  8, 36, 3), 2),
    "R152x4":        _resnet((3,  8, 36, 3), 4),
    "R200x3":        _resnet((3, 24, 36, 3), 3),
    "AxialResNet50": _resnet((3,  4,  6, 3), 1, axial=True),
})  # fmt: skip


def _key(name: str) -> str:
    """Returns what all spellings of a variant have in common: "b16"."""
    name = re.sub(r"resnet(?=\d+x)", "r", name.lower())  # ResNet50x1
    name = re.sub(r"x1(?=\+)", "", name)  # R50x1+ViT-B/16
    return re.sub(r"vit|[^a-z0-9]", "", name)


def canonical(name: str) -> str:
    """Returns the paper's spelling of a variant: "B/16" for "b16", "B_16", "ViT-B/16", "vit_b16".

    Raises:
      ValueError: there is no such variant; lists the closest names.
    """
    names = {_key(variant): variant for variant in VARIANTS}
    key = _key(name)
    if key not in names:
        close = [names[k] for k in difflib.get_close_matches(key, names, n=3, cutoff=0.3)]
        hint = f"closest: {', '.join(close)}; all: " if close else "known: "
        raise ValueError(f"There is no model variant {name!r} ({hint}{', '.join(VARIANTS)}).")
    return names[key]


def build(variant: str, *, num_classes: int, **overrides: Any) -> nn.Module:
    """Returns a variant's module: a `VisionTransformer`, or a `ResNet` for the baselines.

    Args:
      variant: a key of `VARIANTS`, or another spelling that `canonical` knows.
      num_classes: size of the head; 0 leaves it out, so that the module returns the pooled
        representation.
      **overrides: attributes that replace the row's (`width`, `dropout`, `pool`…), and `dtype`.

    Raises:
      ValueError: there is no such variant, the module doesn't have an attribute, or an attribute
        has a value that doesn't fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = vit_jax.build("S/16", num_classes=10)
      >>> images = jnp.zeros((1, 224, 224, 3))  # float, in [-1, 1]
      >>> params = model.init(jax.random.key(0), images)["params"]
      >>> model.apply({"params": params}, images, train=False).shape
      (1, 10)
    """
    row = VARIANTS[canonical(variant)]
    module = ResNet if "layers" in row else VisionTransformer
    row = {**row, **overrides}
    row = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}  # as JSON gives them
    known = {"dtype", *attributes.ATTRIBUTES} & set(module.__dataclass_fields__)
    if unknown := sorted(set(row) - known):
        raise ValueError(
            f"Variant {variant} has no {', '.join(unknown)}; it takes {', '.join(sorted(known))}."
        )
    attributes.check(row)
    model = module(num_classes=num_classes, **row)
    if isinstance(model, VisionTransformer):
        _check_combinations(model)
    return model


def has_encoder(variant: str) -> bool:
    """Returns True if a variant is a ViT, a hybrid or axial: not a ResNet.

    An encoder has attributes that say how its blocks are computed: `remat`, `implementation`.
    """
    return "width" in VARIANTS[canonical(variant)]


def plain(model: nn.Module) -> nn.Module:
    """Returns the module in the implementation "plain", the same on every device, see `layers`."""
    return model.clone(implementation="plain") if hasattr(model, "implementation") else model


def _check_combinations(model: VisionTransformer) -> None:
    """Raises ValueError if values that fit one by one don't fit together."""
    if model.width % model.num_heads:
        raise ValueError(
            f"width={model.width} is not a multiple of num_heads={model.num_heads}, so the "
            f"attention heads can't share it evenly."
        )
    if model.stem is not None and model.conv_stem is not None:
        raise ValueError(
            f"stem={model.stem} is a hybrid's ResNet and conv_stem={model.conv_stem} a smaller "
            f"stem: a model has one of them."
        )
    if model.implementation == "cudnn" and not fits_cudnn(
        model.dtype, depth := model.width // model.num_heads
    ):
        raise ValueError(
            f"implementation='cudnn' computes in bfloat16, with heads of a depth that is a "
            f"multiple of 8 up to 128, not in {jnp.dtype(model.dtype)} with a depth of {depth}."
        )
    if model.residual_dtype == "bfloat16" and jnp.dtype(model.dtype) == jnp.float32:
        raise ValueError(
            "residual_dtype='bfloat16' would round what is computed in float32: it is for "
            "dtype='bfloat16'."
        )
    if model.positions == "2d" and model.width % 2:
        raise ValueError(f"positions='2d' needs an even width, not {model.width}.")
    if model.positions == "sincos" and (model.width % 4 or model.width < 8):
        raise ValueError(f"positions='sincos' needs a width that 4 divides, not {model.width}.")
    if model.positions in ("none", "relative") and model.positions_at != "stem":
        raise ValueError(
            f"positions_at={model.positions_at!r} is for positions='1d', '2d' or 'sincos': "
            f"there is nothing to add with {model.positions!r}."
        )
    if model.scan and (model.stochastic_depth or model.positions_at != "stem"):
        raise ValueError(
            "scan=True makes one loop of blocks that are all alike: stochastic_depth must be 0 and "
            "positions_at='stem'."
        )
    at_stem = model.positions_at == "stem" and model.positions != "relative" and not model.axial
    if (model.registers or model.pre_norm) and not at_stem:
        raise ValueError(
            "registers and pre_norm are for models whose positions are added before the encoder: "
            "positions_at must be 'stem', positions not 'relative', and axial False."
        )
    if model.lora_rank > (largest := min(model.width, model.mlp_dim)):
        raise ValueError(
            f"lora_rank={model.lora_rank} is more than the rank of the kernels, {largest}: LoRA "
            f"takes far smaller ranks, such as 8."
        )
    if "token" in model.pool and not model.num_class_tokens:
        raise ValueError(f"pool={model.pool!r} reads a class token: class_tokens must not be 0.")
    if model.axial and model.num_class_tokens:
        raise ValueError(
            "axial=True: the blocks work on the grid of patches, which has no place for a class "
            "token: take pool='gap' or 'map', and class_tokens=0."
        )
