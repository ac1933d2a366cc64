"""hf"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy the bfloat16 that safetensors asks it for)

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.weights import tables
from vit_jax.weights.recognise import TensorFile, file_arrays, side_or_sides
from vit_jax.weights.safetensors import open_tensors, parse_json, sides, typed, write_tensors

_GELUS = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}


def read_hugging_face(path: pathlib.Path) -> TensorFile:
    """Opens a file of weights with Hugging Face's config.json beside it."""
    beside = path.with_name("config.json")
    config = parse_json(beside, beside.read_bytes())
    try:
        model, image_size, class_names = _described(config)
    except KeyError as error:
        raise ValueError(f"{beside} lacks the key {error}, so it isn't that of a ViT.") from None
    except ValueError as error:
        raise ValueError(f"{beside}: {error}") from None
    shapes, read_one, _ = open_tensors(path)
    return TensorFile(
        str(path), shapes, read_one, tables.HUGGING_FACE, model, image_size, class_names
    )


def _described(config: Mapping[str, Any]) -> tuple[dict, tuple[int, int], tuple[str, ...]]:
    """Returns attributes of the model, image size and class names that a config.json tells."""
    for key, fits in (
        ("model_type", "vit"),
        ("num_channels", 3),
        ("qkv_bias", True),
        ("pooler_act", "tanh"),
    ):
        if (value := config.get(key, fits)) != fits:
            raise ValueError(f"{key} is {value!r}, and only {fits!r} can be loaded.")
    if (act := str(config["hidden_act"])) not in _GELUS:
        raise ValueError(f"hidden_act is {act!r}; known are {', '.join(_GELUS)}.")
    model = {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "mlp_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "patch_size": side_or_sides(sides("patch_size", config["patch_size"])),
        "norm_epsilon": config["layer_norm_eps"],
        "gelu": _GELUS[act],
    }
    labels = {
        int(number): str(name) for number, name in typed(dict, config, "id2label", {}).items()
    }
    names = tuple(labels[i] for i in sorted(labels))
    if names == tuple(f"LABEL_{i}" for i in range(len(names))):
        names = ()  # what transformers fills in where nobody gave names
    return model, sides("image_size", config["image_size"]), names


def write_hugging_face(folder: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors.

    With a head, they are a `ViTForImageClassification`'s; without, a `ViTModel`'s, whose pooler
    is our `pre_logits`.

    Raises:
      ValueError: Hugging Face's ViT has no such parameters, or the image size is not known.
    """
    folder = pathlib.Path(folder)
    tensors = dict(file_arrays(checkpoint, tables.HUGGING_FACE))
    model, image_shape = checkpoint.model(), checkpoint.image_shape
    if (model.pool, model.positions) != ("token", "1d"):
        raise ValueError(
            f"{checkpoint.path} has pool={model.pool!r} and positions={model.positions!r}, but "
            f"Hugging Face's ViT reads a class token and adds 1-D positions."
        )
    if image_shape is None:
        raise ValueError(
            f"{checkpoint.path}: the image size is not known, and a Hugging Face folder must tell "
            f"it: give image_size."
        )
    config = {
        "architectures": ["ViTForImageClassification" if checkpoint.num_classes else "ViTModel"],
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
        names = checkpoint.class_names or [f"LABEL_{i}" for i in range(checkpoint.num_classes)]
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
    for name, content in (("config", config), ("preprocessor_config", preprocessor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
