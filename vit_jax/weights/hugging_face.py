"""Folders of Hugging Face's transformers: a ViT's weights and its config.json."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.weights import parameter_names
from vit_jax.weights.checked_json import get_typed, parse_json, two_sides
from vit_jax.weights.recognise import side_or_sides
from vit_jax.weights.safetensors import Tensors, open_tensors, write_tensors
from vit_jax.weights.tensor_file import CLASSES, TensorFile, file_arrays

CONFIG = "config.json"

# What transformers' `hidden_act` means as our `gelu`.
_GELUS = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}
# The settings that our models have; a config.json may leave them out.
_REQUIRED = {"model_type": "vit", "num_channels": 3, "qkv_bias": True, "pooler_act": "tanh"}
_ARCHITECTURES = ("ViTForImageClassification", "ViTModel")  # with a head, and without one


def read_hugging_face(path: str | os.PathLike, tensors: Tensors | None = None) -> TensorFile:
    """Opens a file of weights that has transformers' config.json beside it.

    The model's sizes, GELU and layer-norm epsilon, the image size and the class names are those of
    config.json.

    Args:
      path: `model.safetensors` or `pytorch_model.bin`.
      tensors: the same file, if it is open already.

    Raises:
      ValueError: config.json is not that of a ViT, or asks for something that our models don't
        compute; or a file can't be read.
    """
    path = pathlib.Path(path)
    beside = path.with_name(CONFIG)
    config = parse_json(beside, beside.read_bytes())
    config = {key: value for key, value in config.items() if value is not None}
    try:
        model, image_size, class_names = _read_config(config)
    except KeyError as error:
        raise ValueError(f"{beside} lacks the key {error}, so it isn't that of a ViT.") from None
    except ValueError as error:
        raise ValueError(f"{beside}: {error}") from None
    shapes, read_array, _ = tensors or open_tensors(path)
    return TensorFile(
        str(path),
        shapes,
        read_array,
        parameter_names.HUGGING_FACE,
        model,
        image_size,
        class_names,
        config.get("problem_type"),
    )


def _read_config(
    config: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[int, int], tuple[str, ...]]:
    """Returns the attributes of the model, (height, width) in pixels, and the class names."""
    for key, required in _REQUIRED.items():
        if (value := config.get(key, required)) != required:
            raise ValueError(f"{key} is {value!r}, and only {required!r} can be loaded.")
    if (act := str(config["hidden_act"])) not in _GELUS:
        raise ValueError(f"hidden_act is {act!r}; known are {', '.join(_GELUS)}.")
    for architecture in get_typed(config, "architectures", []):
        if architecture not in _ARCHITECTURES:
            raise ValueError(
                f"architectures has {architecture!r}; known are {' and '.join(_ARCHITECTURES)}."
            )
    model = {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "mlp_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "patch_size": side_or_sides(two_sides("patch_size", config["patch_size"])),
        "norm_epsilon": config["layer_norm_eps"],
        "gelu": _GELUS[act],
    }
    labels = get_typed(config, "id2label", {})
    if missing := [i for i in range(len(labels)) if str(i) not in labels]:
        raise ValueError(
            f"id2label has {len(labels)} names, but none for {missing[0]}: its keys must be the "
            f"numbers of the logits, counted from 0."
        )
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    if names == _default_names(len(names)):
        names = ()
    return model, two_sides("image_size", config["image_size"]), names


def _default_names(num_classes: int) -> tuple[str, ...]:
    """Returns the class names that transformers writes if nobody gave any."""
    return tuple(f"LABEL_{i}" for i in range(num_classes))


def write_hugging_face(checkpoint: Checkpoint, folder: str | os.PathLike) -> None:
    """Writes a folder with config.json, preprocessor_config.json and model.safetensors.

    With a head, the model is a `ViTForImageClassification`; without one, a `ViTModel`, whose pooler
    is our `pre_logits`.

    Raises:
      ValueError: transformers' ViT has no place for some parameters or computes something else, or
        the image size is not known.
    """
    folder = pathlib.Path(folder)
    tensors = dict(file_arrays(checkpoint, parameter_names.HUGGING_FACE))
    model, image_shape = checkpoint.model(), checkpoint.image_shape
    if (model.pool, model.positions) != ("token", "1d"):
        raise ValueError(
            f"{checkpoint.path} has pool={model.pool!r} and positions={model.positions!r}, but "
            f"Hugging Face's ViT reads a class token and adds 1-D positions."
        )
    if image_shape is None:
        raise ValueError(
            f"{checkpoint.path}: the image size is not known, and a Hugging Face folder must "
            f"record it: give image_size."
        )
    config = {
        "architectures": [_ARCHITECTURES[not checkpoint.num_classes]],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}[model.gelu],
        "layer_norm_eps": model.norm_epsilon,
        "patch_size": model.patch_size,
        "image_size": side_or_sides(image_shape),
        "num_channels": 3,
        "qkv_bias": True,
        "encoder_stride": model.stride[0],
    }
    if checkpoint.num_classes:
        names = checkpoint.class_names or _default_names(checkpoint.num_classes)
        config["problem_type"] = CLASSES
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_shape[0], "width": image_shape[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, content in ((CONFIG, config), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
