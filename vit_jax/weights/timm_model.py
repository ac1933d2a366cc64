"""timm's model for a checkpoint: what `timm.create_model` takes, and a folder of timm's hub."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.data.transforms import View, view_of
from vit_jax.models.resnet import BIT_EPSILON, STEM_EPSILON, ResNet
from vit_jax.weights import architectures, timm
from vit_jax.weights.recognise import side_or_sides
from vit_jax.weights.safetensors import SUFFIXES
from vit_jax.weights.tensor_file import UNCHANGED

# timm's models by our variants. Others are the first one of the same kind, with other sizes.
_NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/32": "vit_small_patch32_224",
    "S/16": "vit_small_patch16_224",
    "B/32": "vit_base_patch32_224",
    "B/16": "vit_base_patch16_224",
    "B/8": "vit_base_patch8_224",
    "L/32": "vit_large_patch32_224",
    "L/16": "vit_large_patch16_224",
    "H/14": "vit_huge_patch14_224",
    "R+Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+S/32": "vit_small_r26_s32_224",
    "R50+B/16": "vit_base_r50_s16_224",
    "R50+L/32": "vit_large_r50_s32_224",
}
_DISTILLED = "deit_base_distilled_patch16_224"  # B/16 with a second class token and head
_GATED = "vit_giant_patch14_dinov2"  # with SwiGLU, and LayerScale, which is switched off
# BiT ResNets by the units of their stages and their width factor.
_BIT: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit",
    ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit",
    ((3, 4, 23, 3), 3): "resnetv2_101x3_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit",
    ((3, 8, 36, 3), 4): "resnetv2_152x4_bit",
}
SIZE = 224  # pixels that all of these are for, and that are taken where any size fits
_GATED_SIZES = dict(patch_size=14, width=1536, depth=40, num_heads=24, mlp_dim=4096)
_SIZES = dict(patch_size="patch_size", width="embed_dim", depth="depth", num_heads="num_heads")
_EPSILON = 1e-6  # of normalisation, in all of these
KERNEL_EPSILON = 1e-8  # of standardised kernels
_POOLS = {ours: theirs for theirs, ours in architectures.POOLS.items()}
_ACTIVATIONS = {"tanh": "gelu_tanh", "quick": "quick_gelu"}


class TimmModel(NamedTuple):
    """What `timm.create_model` makes a model of.

    Attributes:
      name: of the architecture. "" for a BiT ResNet of sizes that none has.
      arguments: those that are not the architecture's own: JSON's types.
      norm_epsilon: added to the variance, if that is not timm's number. Else None.
      kernel_epsilon: the same, of standardised kernels.
    """

    name: str
    arguments: dict[str, Any]
    norm_epsilon: float | None = None
    kernel_epsilon: float | None = None


def timm_model(checkpoint: Checkpoint) -> TimmModel:
    """Returns the model of timm that computes what a checkpoint does.

    Args:
      checkpoint: its arrays are not read, but for the positions of class tokens.

    Raises:
      ValueError: timm has no such model, or needs the size of the images, which is not known.
    """
    model, image_shape = checkpoint.model(), checkpoint.image_shape
    if getattr(model, "pre_logits", False):
        raise ValueError(
            "timm has no pre_logits any more: convert with --num_classes=0, which drops them."
        )
    if isinstance(model, ResNet):
        is_usual = model.kernel_epsilon == KERNEL_EPSILON
        epsilon = None if is_usual else model.kernel_epsilon or BIT_EPSILON
        name = _BIT.get((tuple(model.layers), model.width_factor), "")
        return TimmModel(name, {}, kernel_epsilon=epsilon)
    if image_shape is None:
        raise ValueError(
            "timm needs the size of the images, which is not known: convert with --image_size."
        )
    name, known = _base(model, checkpoint.config.model.variant)
    found: dict[str, Any] = {}
    if image_shape != (SIZE, SIZE) or name == _GATED:
        found["img_size"] = side_or_sides(image_shape)
    for ours, theirs in _SIZES.items():
        if (value := getattr(model, ours)) != known[ours]:
            found[theirs] = value
    hidden = model.mlp_dim * (2 if name == _GATED else 1)  # timm counts the gate, too
    if hidden * known["width"] != known["mlp_dim"] * model.width or name == _GATED:
        ratio = hidden / model.width
        rounds_down = int(model.width * ratio) < hidden  # timm's width of the MLP
        found["mlp_ratio"] = math.nextafter(ratio, math.inf) if rounds_down else ratio
    if name == _GATED:
        found["init_values"] = 0.0  # timm drops None
    else:
        found |= {"act_layer": _ACTIVATIONS[model.gelu]} if model.gelu in _ACTIVATIONS else {}
    found |= _token_arguments(model, checkpoint)
    return TimmModel(
        name,
        found,
        None if model.norm_epsilon == _EPSILON else model.norm_epsilon,
        None
        if model.stem is None or model.kernel_epsilon == KERNEL_EPSILON
        else model.kernel_epsilon or STEM_EPSILON,
    )


def _base(model: nn.Module, variant: str) -> tuple[str, dict[str, Any]]:
    """Returns the architecture of timm that is closest to a ViT or a hybrid, and its sizes.

    Raises:
      ValueError: there is none.
    """
    alike = [v for v in _NAMES if models.build(v, num_classes=0).stem == model.stem]
    if not alike:
        raise ValueError("timm has no model with this stem.")
    odd = {
        "positions": model.positions == "1d",
        "pool": model.pool in _POOLS,
        "norm": model.norm == "layer",
        "projection": not model.projection,
        "class_tokens": model.num_class_tokens < (3 if model.pool == "token" else 2),
        "axial": not model.axial,
        "patch_norm": not model.patch_norm,
        "registers": not model.registers or model.num_class_tokens < 2,
        "final_norm": model.final_norm != "after_pool" or model.num_class_tokens < 2,
        "mlp": model.mlp == "plain" or model.pool != "map",
    }
    if not all(odd.values()):
        keys = [f"{key}={getattr(model, key)!r}" for key, fits in odd.items() if not fits]
        raise ValueError(f"timm's ViTs have no {' and '.join(keys)}.")
    base = variant if variant in alike else alike[0]
    row = models.build("B/16" if model.num_class_tokens == 2 else base, num_classes=0)
    if model.mlp == "swiglu":
        return _GATED, _GATED_SIZES
    sizes = {key: getattr(row, key) for key in (*_SIZES, "mlp_dim")}
    return (_DISTILLED if model.num_class_tokens == 2 else _NAMES[base]), sizes


def _token_arguments(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the arguments that say which tokens there are, and what is made of them."""
    found: dict[str, Any] = {}
    tokens = model.num_class_tokens
    if not tokens:
        found["class_token"] = False
        if model.registers:  # whose positions would be in the table, too
            found["no_embed_class"] = True
    elif not np.asarray(_positions(checkpoint))[:, :tokens].any():
        found["no_embed_class"] = True
    if model.registers:
        found["reg_tokens"] = model.registers
    if model.pre_norm:
        found["pre_norm"] = True
    if model.pool != "token":
        found["global_pool"] = _POOLS[model.pool]
    if model.final_norm == "none":
        found["final_norm"] = False
    elif (model.pool == "gap") != (model.final_norm == "after_pool"):  # timm's own choice
        found["fc_norm"] = model.final_norm == "after_pool"
    return found


def _positions(checkpoint: Checkpoint) -> Any:
    return checkpoint.params["Transformer"]["posembed_input"]["pos_embedding"]


def timm_view(view: View) -> dict[str, Any]:
    """Returns how timm's `create_transform` cuts images as evaluation does."""
    return {
        "crop_pct": 1.0 if view.eval_crop == "whole" else view.crop_fraction,
        **({} if view.eval_crop.startswith("central") else {"crop_mode": "squash"}),
        "interpolation": view.eval_resize.removesuffix("_antialias"),
        "mean": UNCHANGED,
        "std": UNCHANGED,
    }


def write_timm(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Writes a state dict of timm; to a path without the suffix of one, a folder of timm's hub.

    Raises:
      ValueError: timm has no such model, or has no place for some parameters.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() in SUFFIXES:
        timm.write_timm(checkpoint, path)
        return
    try:
        found = timm_model(checkpoint)
        if not found.name:
            raise ValueError("timm has no name for a BiT ResNet of these sizes.")
        if found.arguments.get("pre_norm"):  # timm leaves the bias out then
            raise ValueError(
                "timm's config.json has no place for a bias of the patch embedding beside "
                "pre_norm: write a file, as x.safetensors, or --format=hf."
            )
        for key in ("norm_epsilon", "kernel_epsilon"):
            if (value := getattr(found, key)) is not None:
                raise ValueError(f"timm's config.json has no place for {key}={value}.")
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None
    is_resnet = isinstance(checkpoint.model(), ResNet)
    shape = checkpoint.image_shape or (SIZE, SIZE)
    config = {
        "architecture": found.name,
        "num_classes": checkpoint.num_classes,
        "global_pool": "avg" if is_resnet else found.arguments.get("global_pool", "token"),
        **({"label_names": checkpoint.class_names} if checkpoint.class_names else {}),
        "model_args": found.arguments,
        "pretrained_cfg": {
            **timm_view(view_of(checkpoint.config.data)),
            "input_size": [3, *shape],
            "num_classes": checkpoint.num_classes,
            "fixed_input_size": not is_resnet,
            "first_conv": "stem.conv" if is_resnet else "patch_embed.proj",
            "classifier": "head.fc" if is_resnet else "head",
        },
    }
    path.mkdir(parents=True, exist_ok=True)
    timm.write_timm(checkpoint, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
