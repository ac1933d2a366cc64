"""Folders of Hugging Face's transformers, written: the class of transformers that computes a model.

`WRITTEN` has the classes with what they compute. A class that gives the same with fewer of its own
settings comes first, so that a plain ViT is written as one, whatever it was read from.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights import folding
from vit_jax.weights.hugging_face import (
    CLASSES,
    CONFIG,
    FAMILIES,
    default_names,
    layouts_of,
    tower_type,
)
from vit_jax.weights.image_processor import PREPROCESSOR, image_processor_config
from vit_jax.weights.parameter_names.rules import BLOCK, TABLE
from vit_jax.weights.recognise import side_or_sides
from vit_jax.weights.safetensors import write_tensors
from vit_jax.weights.tensor_file import CLASSES as ONE_CLASS
from vit_jax.weights.tensor_file import MULTI_LABEL, file_arrays

_ACTS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
_MLP_RATIOS = range(1, 65)  # that are tried for a gated MLP of DINOv2


class Written(NamedTuple):
    """A class that is written, and the models that it computes.

    Attributes:
      name: a key of `hugging_face.CLASSES`.
      head: True if it has a head.
      attributes: the attributes of its models that differ from those of a ViT, with the values that
        they can have.
    """

    name: str
    head: bool
    attributes: Mapping[str, tuple[Any, ...] | range]


_VIT = {
    "stem": (None,),
    "conv_stem": (None,),
    "axial": (False,),
    "positions": ("1d",),
    "num_class_tokens": (1,),
    "registers": (0,),
    "patch_norm": (False,),
    "pre_norm": (False,),
    "norm": ("layer",),
    "mlp": ("plain",),
    "pool": ("token",),
    "final_norm": ("before_pool",),
    "projection": (0,),
    "pre_logits": (False,),
}
_ANY = range(1, 2**31)
_NO_TOKEN = {"num_class_tokens": (0,)}
_MLPS = {"mlp": ("plain", "swiglu")}

WRITTEN = (
    Written("ViTForImageClassification", True, {}),
    Written("ViTModel", False, {"pre_logits": (False, True)}),
    Written("DeiTForImageClassification", True, {"registers": (1,)}),
    Written("DeiTForImageClassificationWithTeacher", True, {"num_class_tokens": (2,)}),
    Written("DeiTModel", False, {"registers": (1,), "pre_logits": (True,)}),
    Written("IJepaForImageClassification", True, {"pool": ("gap",), **_NO_TOKEN}),
    Written("IJepaModel", False, {"pool": ("gap",), **_NO_TOKEN}),
    Written("Dinov2ForImageClassification", True, {"pool": ("token+gap",), **_MLPS}),
    Written("Dinov2Model", False, {"mlp": ("swiglu",)}),
    Written(
        "Dinov2WithRegistersForImageClassification",
        True,
        {"pool": ("token+gap",), "registers": _ANY, **_MLPS},
    ),
    Written("Dinov2WithRegistersModel", False, {"registers": _ANY, **_MLPS}),
    Written("CLIPVisionModel", False, {"pre_norm": (True,)}),
    Written("CLIPVisionModelWithProjection", False, {"pre_norm": (True,), "projection": _ANY}),
    Written(
        "CLIPForImageClassification",
        True,
        {"pre_norm": (True,), "pool": ("gap",), "final_norm": ("none",)},
    ),
    Written("SiglipVisionModel", False, {"pool": ("map",), **_NO_TOKEN}),
)


def class_for(checkpoint: Checkpoint) -> str:
    """Returns the name of the class of transformers that a checkpoint is written for.

    Raises:
      ValueError: no class computes the model; names what is different from the closest one.
    """
    model = checkpoint.model()
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{checkpoint.path} is a ResNet, and no class of transformers computes it."
        )

    def differences(row: Written) -> list[str]:
        allowed = {**_VIT, **row.attributes}
        found = {key: getattr(model, key) for key in allowed}
        return [
            f"{key.removeprefix('num_')}={x!r}" for key, x in found.items() if x not in allowed[key]
        ]

    rows = [row for row in WRITTEN if row.head == bool(checkpoint.num_classes)]
    closest = min(rows, key=lambda row: len(differences(row)))
    if others := differences(closest):
        head = "with" if closest.head else "without"
        raise ValueError(
            f"{checkpoint.path}: no class of transformers {head} a head computes this model. "
            f"{closest.name} would, but for {' and '.join(others)}."
        )
    return closest.name


def write_hugging_face(checkpoint: Checkpoint, folder: str | os.PathLike) -> None:
    """Writes a folder with config.json, preprocessor_config.json and model.safetensors.

    Raises:
      ValueError: no class of transformers computes the model, see `WRITTEN`, or has its sizes; or
        the image size is not known.
    """
    folder = pathlib.Path(folder)
    name = class_for(checkpoint)
    if checkpoint.image_shape is None:
        raise ValueError(
            f"{checkpoint.path}: the image size is not known, and a Hugging Face folder must "
            f"record it: give image_size."
        )
    config = _config(checkpoint, name, checkpoint.image_shape)
    tensors = dict(file_arrays(_unfold(checkpoint, name), layouts_of(name)))
    tensors |= _unused(checkpoint, name)
    if checkpoint.num_classes:
        names = checkpoint.class_names or default_names(checkpoint.num_classes)
        config["problem_type"] = MULTI_LABEL if checkpoint.loss == "sigmoid" else ONE_CLASS
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    preprocessor = image_processor_config(checkpoint)
    for file, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        (folder / file).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _config(checkpoint: Checkpoint, name: str, image_shape: tuple[int, int]) -> dict[str, Any]:
    """Returns what config.json says of a model that is written for a class."""
    model = checkpoint.model()
    model_type, vision_type = CLASSES[name].model_type, tower_type(name)
    style = FAMILIES[vision_type].style
    config = {
        "model_type": vision_type,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": _ACTS[model.gelu],
        "layer_norm_eps": model.norm_epsilon,
        "patch_size": model.patch_size,
        "image_size": side_or_sides(image_shape),
        "num_channels": 3,
    }
    if style == "clip":
        if len(set(image_shape)) > 1 or len(set(model.patch_shape)) > 1:
            raise ValueError(
                f"{checkpoint.path}: {name} has square images and patches, not images of "
                f"{image_shape[0]}x{image_shape[1]} and patches of {model.patch_shape[0]}x"
                f"{model.patch_shape[1]} pixels."
            )
        if model.projection:
            config["projection_dim"] = model.projection
    else:
        config["qkv_bias"] = True
    if style == "vit":
        config["encoder_stride"] = model.stride[0]
    if style == "dinov2":
        del config["intermediate_size"]
        config["mlp_ratio"] = _mlp_ratio(checkpoint, name)
        config["use_swiglu_ffn"] = model.mlp == "swiglu"
        if model.registers:
            config["num_register_tokens"] = model.registers
        else:
            config["use_mask_token"] = False
    if model_type != vision_type:
        config = {"model_type": model_type, "vision_config": config}
    return {"architectures": [name], **config}


def _mlp_ratio(checkpoint: Checkpoint, name: str) -> int:
    """Returns the size of an MLP as DINOv2 records it, from which transformers computes it."""
    model = checkpoint.model()
    for ratio in _MLP_RATIOS:
        hidden = model.width * ratio
        if model.mlp == "swiglu":  # two thirds, rounded up to a multiple of 8
            hidden = -(-(hidden * 2 // 3) // 8) * 8
        if hidden == model.mlp_dim:
            return ratio
    raise ValueError(
        f"{checkpoint.path}: {name} has no MLP of mlp_dim={model.mlp_dim} for the width "
        f"{model.width}: its size follows from a whole number, mlp_ratio."
    )


def _unfold(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Returns a checkpoint with parameters as a class has them, with which it gives the same."""
    model = checkpoint.model()
    style = FAMILIES[tower_type(name)].style
    flat = flatten_dict(checkpoint.params, sep="/")
    if style == "dinov2":
        for i in range(model.depth):
            for n in (0, 1):
                scale = f"{BLOCK.format(i=i)}LayerScale_{n}"
                flat[scale] = np.ones(model.width, np.float32)
    elif name.startswith("DeiT"):
        table = np.asarray(flat[TABLE])
        flat = flatten_dict(folding.unfold(checkpoint).params, sep="/")
        rows = np.zeros((1, model.registers, model.width), np.float32)
        flat[TABLE] = np.concatenate([table[:, :1], rows, table[:, 1:]], axis=1)
    elif name.startswith("CLIP"):  # its patch embedding has no bias, but patches have positions
        bias, table = np.asarray(flat.pop("embedding/bias")), np.array(flat[TABLE])
        table[:, 1:] += bias
        flat[TABLE] = table
    return checkpoint._replace(params=unflatten_dict(flat, sep="/"))


def _unused(checkpoint: Checkpoint, name: str) -> dict[str, np.ndarray]:
    """Returns arrays of a class that it doesn't use for what it gives."""
    width = checkpoint.model().width
    zeros, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    if name == "CLIPForImageClassification":
        norm = "vision_model.post_layernorm"
        return {f"{norm}.weight": ones, f"{norm}.bias": zeros}
    if CLASSES[name].model_type == "dinov2_with_registers":
        prefix = "" if name.endswith("Model") else "dinov2_with_registers."
        return {f"{prefix}embeddings.mask_token": zeros[None]}
    return {}
