"""Lines of Python that load a written file: by timm, transformers or this package.

They end with the logits, or the representation, of a photo that is cut as evaluation cuts it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.models.resnet import ResNet
from vit_jax.weights.formats import BIT_EPSILON, FORMATS
from vit_jax.weights.recognise import side_or_sides

# timm's models by our variants. Others are the first one of the same kind, with other sizes.
_TIMM_NAMES = {
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
_TIMM_SIZE = 224  # pixels that all of these are for
_NOTE = (
    "# Photos are smoothed as they shrink, which vit_jax doesn't do: probabilities differ a little."
)


def loading_lines(checkpoint: Checkpoint, path: str | os.PathLike, format: str) -> str:
    """Returns lines of Python that load what `save` has written, and run it on PHOTO.jpg.

    Args:
      checkpoint: what was written.
      path: where.
      format: a key of `FORMATS`.

    Returns:
      The lines. Where no other program can load the file, a comment says why.
    """
    return _LINES[format](checkpoint, os.fspath(path))


def _result(checkpoint: Checkpoint) -> str:
    return "logits" if checkpoint.num_classes else "representation"


def _call(name: str, *arguments: str, **keywords: Any) -> str:
    """Returns a call as Python writes it; values are texts of Python."""
    texts = [*arguments, *(f"{key}={value}" for key, value in keywords.items())]
    line = f"{name}({', '.join(texts)})"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + ")"


# ------------------------------------------------------------------------------------------ timm


def _timm(checkpoint: Checkpoint, path: str) -> str:
    model, data = checkpoint.model(), checkpoint.config.data
    if getattr(model, "pre_logits", False):
        return "# timm has no pre_logits any more: convert with --num_classes=0, which drops them."
    if isinstance(model, ResNet):
        create, side = _timm_resnet(model), checkpoint.image_shape or (_TIMM_SIZE, _TIMM_SIZE)
    elif checkpoint.image_shape is None:
        return "# timm needs the size of the images, which is not known: convert with --image_size."
    else:
        create, side = _timm_vit(checkpoint, checkpoint.image_shape), checkpoint.image_shape
    if not create:
        return "# timm has no model with this stem."
    is_central = data.eval_crop == "central"
    transform = _call(
        "create_transform",
        f"(3, {side[0]}, {side[1]})",
        crop_pct=data.crop_fraction if is_central else 1.0,
        **{} if is_central else {"crop_mode": "'squash'"},
        interpolation="'bilinear'",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    functools = ["import functools", ""] if "functools" in create else []
    return "\n".join(
        [
            *functools,
            "import timm",
            "import torch",
            "from PIL import Image",
            "from timm.data import create_transform",
            "",
            f"model = {create}",
            f"model.load_state_dict(timm.models.load_state_dict({path!r}))",
            _NOTE,
            f"transform = {transform}",
            'image = transform(Image.open("PHOTO.jpg").convert("RGB"))',
            "with torch.inference_mode():",
            f"    {_result(checkpoint)} = model.eval()(image[None])",
        ]
    )


def _timm_vit(checkpoint: Checkpoint, image_shape: tuple[int, int]) -> str:
    """Returns the call that makes a ViT or a hybrid; "" if timm has no such stem."""
    model, variant = checkpoint.model(), checkpoint.config.model.variant
    alike = [v for v in _TIMM_NAMES if models.build(v, num_classes=0).stem == model.stem]
    if not alike:
        return ""
    base = variant if variant in alike else alike[0]
    known = models.build(base, num_classes=0)
    keywords: dict[str, Any] = {"num_classes": checkpoint.num_classes}
    if image_shape != (_TIMM_SIZE, _TIMM_SIZE):
        keywords["img_size"] = side_or_sides(image_shape)
    names = dict(patch_size="patch_size", width="embed_dim", depth="depth", num_heads="num_heads")
    for ours, theirs in names.items():
        if (value := getattr(model, ours)) != getattr(known, ours):
            keywords[theirs] = value
    if model.mlp_dim * known.width != known.mlp_dim * model.width:
        ratio = model.mlp_dim / model.width
        rounds_down = int(model.width * ratio) < model.mlp_dim  # timm's width of the MLP
        keywords["mlp_ratio"] = math.nextafter(ratio, math.inf) if rounds_down else ratio
    if model.pool == "gap":
        keywords |= {"class_token": False, "global_pool": "'avg'", "fc_norm": False}
    if model.gelu == "tanh":
        keywords["act_layer"] = "'gelu_tanh'"
    if model.norm_epsilon != FORMATS["timm"].assumed["norm_epsilon"]:
        norm = f"functools.partial(torch.nn.LayerNorm, eps={model.norm_epsilon})"
        keywords["norm_layer"] = norm
    return _call("timm.create_model", repr(_TIMM_NAMES[base]), **keywords)


def _timm_resnet(model: Any) -> str:
    """Returns the call that makes a BiT ResNet of any size."""
    epsilon = BIT_EPSILON if model.kernel_epsilon is None else model.kernel_epsilon
    return _call(
        "timm.models.ResNetV2",
        layers=model.layers,
        width_factor=model.width_factor,
        num_classes=model.num_classes,
        stem_type="'fixed'",
        conv_layer=f"functools.partial(timm.layers.StdConv2d, eps={epsilon})",
    )


# ---------------------------------------------------------------------------------- Hugging Face


def _hugging_face(checkpoint: Checkpoint, path: str) -> str:
    kind = "ViTForImageClassification" if checkpoint.num_classes else "ViTModel"
    attribute = "logits" if checkpoint.num_classes else "last_hidden_state[:, 0]"
    if checkpoint.model().pre_logits:
        attribute = "pooler_output"
    data, crop = checkpoint.config.data, []
    if data.eval_crop == "central":  # the processor resizes the whole image
        width_and_height = (checkpoint.image_shape or ())[::-1]
        bleed = (1 - data.crop_fraction) / 2  # what is cut off at each border
        arguments = ["image", f"{width_and_height}", "Image.Resampling.BILINEAR"]
        crop = [f"image = {_call('ImageOps.fit', *arguments, bleed=bleed)}"]
    pillow = "Image, ImageOps" if crop else "Image"
    return "\n".join(
        [
            "import torch",
            f"from PIL import {pillow}",
            f"from transformers import {kind}, ViTImageProcessor",
            "",
            f"model = {kind}.from_pretrained({path!r})",
            _NOTE,
            f"processor = ViTImageProcessor.from_pretrained({path!r})",
            'image = Image.open("PHOTO.jpg").convert("RGB")',
            *crop,
            "with torch.inference_mode():",
            '    outputs = model.eval()(**processor(image, return_tensors="pt"))',
            f"{_result(checkpoint)} = outputs.{attribute}",
        ]
    )


# ---------------------------------------------------------------------------------- this package


def _npz(checkpoint: Checkpoint, path: str) -> str:
    """An .npz file has no place for the crop: the lines give it."""
    data = checkpoint.config.data
    view = {"eval_crop": repr(data.eval_crop), "crop_fraction": data.crop_fraction}
    crop = _call("checkpoint.config.data.update", **view)
    return _run_here(checkpoint, _call("vit_jax.load", repr(path)), [crop])


def _orbax(checkpoint: Checkpoint, path: str) -> str:
    return _run_here(checkpoint, _call("vit_jax.load", repr(path)), [])


def _run_here(checkpoint: Checkpoint, load: str, changes: list[str]) -> str:
    size = {} if checkpoint.image_shape else {"image_size": _TIMM_SIZE}
    run = (
        "predictions = classifier.predict"
        if checkpoint.num_classes
        else "features = classifier.features"
    )
    return "\n".join(
        [
            "import vit_jax",
            "",
            f"checkpoint = {load}",
            *changes,
            f"classifier = {_call('vit_jax.Classifier', 'checkpoint', **size)}",
            f"{run}(['PHOTO.jpg'])",
        ]
    )


_LINES: Mapping[str, Callable[[Checkpoint, str], str]] = MappingProxyType(
    {"hf": _hugging_face, "timm": _timm, "npz": _npz, "orbax": _orbax}
)
