"""Folders of Hugging Face's transformers: the weights of a ViT, and the config.json beside them.

These classes are read. What a model of ours gives is what the class gives, as named here:

| class | what it gives |
|---|---|
| `…ForImageClassification`, `…WithTeacher` | `logits` |
| `ViTModel`, `DeiTModel` | `pooler_output`; without a pooler, the class token |
| `Dinov2Model`, `Dinov2WithRegistersModel` | `pooler_output`: the class token |
| `ViTMSNModel` | the class token |
| `ViTMAEModel`, `ViTMAEForPreTraining` | the encoder's class token, of an image without a mask |
| `IJepaModel` | the mean of the tokens |
| `CLIPVisionModel` | `pooler_output` |
| `CLIPVisionModelWithProjection`, `CLIPModel` | `image_embeds`, before their norm is made 1 |
| `SiglipVisionModel`, `SiglipModel` | `pooler_output`; without a head, the mean of the tokens |

The heads don't all read the same: that of DeiT the class token alone, `…WithTeacher` the mean of
two heads, DINOv2's the class token and the mean of the patches, those of CLIP and SigLIP the mean
of the patches, CLIP's without the last LayerNorm.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vit_jax.common.names import printable
from vit_jax.weights.checked_json import get_typed, parse_json, two_sides
from vit_jax.weights.image_processor import read_images
from vit_jax.weights.layout import Layout
from vit_jax.weights.parameter_names.hugging_face import layouts
from vit_jax.weights.recognise import side_or_sides
from vit_jax.weights.safetensors import Tensors, open_tensors
from vit_jax.weights.tensor_file import TensorFile

logger = logging.getLogger(__name__)

CONFIG = "config.json"

# What transformers' `hidden_act` means as our `gelu`.
_GELUS = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_accurate": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "quick_gelu": "quick",
}
# The settings that our models have; a config.json may leave them out.
_REQUIRED = {"num_channels": 3, "pooler_act": "tanh"}
# Sizes, which the arrays show, too.
_SIZES = {
    "num_hidden_layers": "depth",
    "hidden_size": "width",
    "intermediate_size": "mlp_dim",
    "num_register_tokens": "registers",
}


class Family(NamedTuple):
    """The classes that have a `model_type` in config.json.

    Attributes:
      style: how arrays are named, see `parameter_names.hugging_face.layouts`.
      prefix: begins the encoder's names in a class with a head.
      epsilon: the default of `layer_norm_eps`.
      act: the default of `hidden_act`.
      class_token: True if there is a class token.
    """

    style: str
    prefix: str
    epsilon: float
    act: str = "gelu"
    class_token: bool = True


FAMILIES: Mapping[str, Family] = {
    "vit": Family("vit", "vit.", 1e-12),
    "deit": Family("vit", "deit.", 1e-12),
    "vit_mae": Family("vit", "vit.", 1e-12),
    "vit_msn": Family("vit", "vit.", 1e-6),
    "ijepa": Family("vit", "ijepa.", 1e-12, class_token=False),
    "dinov2": Family("dinov2", "dinov2.", 1e-6),
    "dinov2_with_registers": Family("dinov2", "dinov2_with_registers.", 1e-6),
    "clip_vision_model": Family("clip", "vision_model.", 1e-5, "quick_gelu"),
    "siglip_vision_model": Family(
        "clip", "vision_model.", 1e-6, "gelu_pytorch_tanh", class_token=False
    ),
}
# A model of images and text has the settings of its image tower in `vision_config`.
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}

# Arrays that are no part of the encoder, by names without a prefix.
_IGNORED = (
    r"embeddings\.(mask_token|position_ids)|decoder\..*|text_model\..*|text_projection\.weight"
    r"|logit_(scale|bias)"
)
_POOLER = r"pooler\.dense\.(weight|bias)"


class Kind(NamedTuple):
    """A class of transformers.

    Attributes:
      model_type: in its config.json.
      pool: what its head reads, or what it gives without one.
      ignored: arrays that it has, but doesn't use for what it gives: a regular expression.
    """

    model_type: str
    pool: str = "token"
    ignored: str = ""


CLASSES: Mapping[str, Kind] = {
    "ViTForImageClassification": Kind("vit", ignored=_POOLER),
    "ViTModel": Kind("vit"),
    "DeiTForImageClassification": Kind("deit", ignored=_POOLER),
    "DeiTForImageClassificationWithTeacher": Kind("deit", ignored=_POOLER),
    "DeiTModel": Kind("deit"),
    "ViTMAEModel": Kind("vit_mae"),
    "ViTMAEForPreTraining": Kind("vit_mae"),
    "ViTMSNForImageClassification": Kind("vit_msn"),
    "ViTMSNModel": Kind("vit_msn"),
    "IJepaForImageClassification": Kind("ijepa", "gap"),
    "IJepaModel": Kind("ijepa", "gap"),
    "Dinov2ForImageClassification": Kind("dinov2", "token+gap"),
    "Dinov2Model": Kind("dinov2"),
    "Dinov2WithRegistersForImageClassification": Kind("dinov2_with_registers", "token+gap"),
    "Dinov2WithRegistersModel": Kind("dinov2_with_registers"),
    "CLIPForImageClassification": Kind("clip", "gap", r"post_layernorm\.(weight|bias)"),
    "CLIPModel": Kind("clip"),
    "CLIPVisionModelWithProjection": Kind("clip_vision_model"),
    "CLIPVisionModel": Kind("clip_vision_model"),
    "SiglipForImageClassification": Kind("siglip", "gap", r"head\..*"),
    "SiglipModel": Kind("siglip", "map"),
    "SiglipVisionModel": Kind("siglip_vision_model", "map"),
}


def tower_type(kind_name: str) -> str:
    """Returns the `model_type` of a class, or of its image tower: a key of `FAMILIES`.

    Args:
      kind_name: a key of `CLASSES`.
    """
    model_type = CLASSES[kind_name].model_type
    return _TOWERS.get(model_type, model_type)


def has_names(names: Iterable[str]) -> bool:
    """Returns True if arrays of these names come from transformers."""
    return any("embeddings.patch_embedding" in name for name in names)


def read_hugging_face(path: str | os.PathLike, tensors: Tensors | None = None) -> TensorFile:
    """Opens a file of weights that has transformers' config.json beside it.

    The model's attention heads, GELU and layer-norm epsilon, the image size and the class names are
    those of config.json; mean, standard deviation and view those of the image processor, see
    `image_processor`.

    Args:
      path: `model.safetensors` or `pytorch_model.bin`.
      tensors: the same file, if it is open already.

    Raises:
      ValueError: config.json is not that of a ViT, or asks for something that our models don't
        compute; or a file can't be read.
    """
    path = pathlib.Path(path)
    tensors = tensors or open_tensors(path)
    shapes = tensors.shapes
    beside = path.with_name(CONFIG)
    config = _without_nulls(parse_json(beside, beside.read_bytes()))
    try:
        kind_name = _find_class(config, shapes)
        model_type, tower = tower_type(kind_name), config
        if model_type != CLASSES[kind_name].model_type:
            tower = _without_nulls(get_typed(config, "vision_config", {}))
            tower["projection_dim"] = config.get("projection_dim", 512)
        model, image_size = _read_config(tower, kind_name, model_type)
        class_names = _read_names(config)
        if "ForImageClassification" in kind_name and not any("classifier" in x for x in shapes):
            raise ValueError(
                f"architectures has {kind_name!r}, but the file has no classifier. For an encoder "
                f"alone, leave architectures out."
            )
    except ValueError as error:
        raise ValueError(f"{beside}: {error}") from None
    images = read_images(path.parent, model_type)
    if images.size not in (None, image_size):
        logger.warning(
            "%s: its image processor makes images of %dx%d pixels, but positions are for %dx%d, "
            "which is taken. To use the former: image_size.",
            printable(path.parent),
            *images.size,
            *image_size,
        )
    return TensorFile(
        str(path),
        {name: shape for name, shape in shapes.items() if 0 not in shape},  # of no registers
        tensors.read,
        layouts_of(kind_name, tower.get("qkv_bias", True)),
        model,
        image_size,
        class_names,
        config.get("problem_type"),
        images.mean,
        images.std,
        images.view,
        changes=tensors.changes,
    )


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _find_class(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the class that a config.json names, or else that which has arrays of these names."""
    model_type = get_typed(config, "model_type", "")
    of_type = [name for name, kind in CLASSES.items() if kind.model_type == model_type]
    if not of_type:
        known = dict.fromkeys(kind.model_type for kind in CLASSES.values())
        raise ValueError(f"model_type is {model_type!r}; known are {', '.join(known)}.")
    named = get_typed(config, "architectures", [])
    for name in named:
        if name not in of_type:
            raise ValueError(
                f"architectures has {name!r}; known with model_type={model_type!r} are "
                f"{', '.join(of_type)}."
            )
    if named:
        return named[0]
    starts = {name.split(".")[0] for name in names}
    if "cls_classifier" in starts:
        return "DeiTForImageClassificationWithTeacher"
    return of_type[0 if "classifier" in starts else -1]


def _read_config(
    config: Mapping[str, Any], kind_name: str, model_type: str
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Returns the attributes of the model, and (height, width) of images in pixels.

    Args:
      config: the settings of the image tower.
      kind_name: a key of `CLASSES`.
      model_type: a key of `FAMILIES`.
    """
    family, pool = FAMILIES[model_type], CLASSES[kind_name].pool
    for key, required in _REQUIRED.items():
        if (value := config.get(key, required)) != required:
            raise ValueError(f"{key} is {value!r}, and only {required!r} can be loaded.")
    if "quantization_config" in config:
        raise ValueError("quantization_config: weights must be numbers, and these are quantised.")
    act = str(config.get("hidden_act", family.act))
    if act not in _GELUS:
        raise ValueError(f"hidden_act is {act!r}; known are {', '.join(_GELUS)}.")
    get_typed(config, "qkv_bias", True)
    model: dict[str, Any] = {
        "num_heads": config.get("num_attention_heads", 12),
        "norm_epsilon": config.get("layer_norm_eps", family.epsilon),
        "gelu": _GELUS[act],
        "pool": pool if get_typed(config, "vision_use_head", True) else "gap",
        # What each class has, whether or not the file has its arrays.
        "positions": "1d",
        "pre_norm": model_type == "clip_vision_model",
        "final_norm": "none" if kind_name == "CLIPForImageClassification" else "before_pool",
    }
    if kind_name in ("CLIPModel", "CLIPVisionModelWithProjection"):
        model["projection"] = config.get("projection_dim", 512)
    if pool == "gap" and family.class_token:
        model["class_tokens"] = 1
    sizes = {ours: config[theirs] for theirs, ours in _SIZES.items() if theirs in config}
    if family.style == "dinov2":  # the size of its MLP follows from mlp_ratio
        sizes.pop("mlp_dim", None)
        if get_typed(config, "use_swiglu_ffn", False):
            model["mlp"] = "swiglu"
    if "patch_size" in config:
        sizes["patch_size"] = side_or_sides(two_sides("patch_size", config["patch_size"]))
    return model | sizes, two_sides("image_size", config.get("image_size", 224))


def _read_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the classes, () if nobody gave any."""
    labels = get_typed(config, "id2label", {})
    if missing := [i for i in range(len(labels)) if str(i) not in labels]:
        raise ValueError(
            f"id2label has {len(labels)} names, but none for {missing[0]}: its keys must be the "
            f"numbers of the logits, counted from 0."
        )
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    return () if names == default_names(len(names)) else names


def default_names(num_classes: int) -> tuple[str, ...]:
    """Returns the class names that transformers writes if nobody gave any."""
    return tuple(f"LABEL_{i}" for i in range(num_classes))


def layouts_of(kind_name: str, qkv_bias: bool = True) -> tuple[Layout, ...]:
    """Returns the layouts of the files of a class; the names of the first ones are written.

    Args:
      kind_name: a key of `CLASSES`.
      qkv_bias: False if queries, keys and values have no biases.
    """
    model_type = tower_type(kind_name)
    family = FAMILIES[model_type]
    prefixes = [(family.prefix, family.prefix), ("", "")]
    if kind_name == "ViTMSNForImageClassification":  # transformers 5 writes its blocks so
        prefixes.append((family.prefix, ""))
    if kind_name.endswith("Model") and family.style != "clip":
        prefixes.reverse()
    zeros = [] if qkv_bias else [r"Transformer/.*/(query|key|value)/bias"]
    if model_type == "clip_vision_model":
        zeros.append("embedding/bias")
    return layouts(
        family.style,
        prefixes,
        distilled=kind_name.endswith("WithTeacher"),
        ignored="|".join(filter(None, [_IGNORED, CLASSES[kind_name].ignored])),
        zeros="|".join(zeros),
    )
