"""timm"""

from __future__ import annotations

import json
import os
import pathlib

import ml_dtypes  # noqa: F401 (gives NumPy the bfloat16 that safetensors asks it for)

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.weights import layout, tables
from vit_jax.weights.hugging_face import read_hugging_face
from vit_jax.weights.recognise import TensorFile, file_arrays
from vit_jax.weights.safetensors import (
    METADATA,
    PICKLED,
    open_tensors,
    parse_json,
    sides,
    typed,
    write_tensors,
)


def read_state_dict(path: str | os.PathLike) -> TensorFile:
    """Opens a `.safetensors` file, or a pickled state dict (which needs PyTorch), of timm.

    timm computes the exact GELU and adds 1e-8 to the variance of standardised kernels, so that is
    what such weights are for, unless we wrote the file and noted something else. Pickled files
    can't run code: PyTorch loads them with `weights_only=True`.

    Raises:
      ValueError: it can't be read, or is a file of a Hugging Face folder without its config.json.
    """
    path = pathlib.Path(path)
    shapes, read_one, metadata = open_tensors(path)
    spelling = layout.recognise_layout(tables.TIMM + tables.HUGGING_FACE, shapes)
    if spelling in tables.HUGGING_FACE:
        if (path.parent / "config.json").is_file():
            return read_hugging_face(path)
        raise ValueError(
            f"{path} has Hugging Face's names, but no config.json beside it, which tells its GELU "
            f"and layer-norm epsilon: give the model's whole folder."
        )
    noted = parse_json(path, metadata.get(METADATA, "{}"))
    model = {"kernel_epsilon": 1e-8} if any("conv" in name for name in shapes) else {}
    if "patch_embed.proj.weight" in shapes:
        model["gelu"] = "exact"
    try:
        for key, value in typed(dict, noted, "model", {}).items():
            model[key] = tuple(value) if isinstance(value, list) else value
        image_size = noted.get("image_size")
        image_size = None if image_size is None else sides("image_size", image_size)
        class_names = tuple(map(str, typed(list, noted, "class_names", [])))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return TensorFile(str(path), shapes, read_one, tables.TIMM, model, image_size, class_names)


def write_timm(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Writes timm's state dict, as safetensors or, for the suffixes of pickled files, by PyTorch.

    A safetensors file also notes what timm's names and shapes don't tell (variant, GELU, image
    size), where `read_state_dict` finds it.

    Raises:
      ValueError: timm has no such parameters, or PyTorch is missing.
    """
    path = pathlib.Path(path)
    tensors = dict(file_arrays(checkpoint, tables.TIMM))
    if path.suffix in PICKLED:
        try:
            import torch
        except ImportError:
            raise ValueError(
                f"Writing {path} needs PyTorch: take the suffix .safetensors."
            ) from None
        torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
        return
    model = checkpoint.model()
    settings = {k: v for k, v in checkpoint.config.model.items() if v is not None}
    settings.pop("dropout", None)
    mathematics = ("gelu", "norm_epsilon", "kernel_epsilon")
    settings |= {k: getattr(model, k) for k in mathematics if hasattr(model, k)}
    noted = {
        "model": settings,
        "image_size": checkpoint.image_shape,
        "class_names": checkpoint.class_names,
    }
    metadata = {"format": "pt", METADATA: json.dumps(noted)}
    write_tensors(tensors, path, metadata)


def read_folder(folder: str | os.PathLike) -> TensorFile:
    """Opens a Hugging Face folder: config.json beside the weights, of transformers or timm.

    Sizes, GELU, layer-norm epsilon, image size and class names are config.json's.

    Raises:
      ValueError: it is not a ViT's, computes something that we don't, or can't be read.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    config = parse_json(path, path.read_bytes())
    weights = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    found = [file for file in weights if file.is_file()]
    if not found:
        names = " nor ".join(file.name for file in weights)
        raise ValueError(f"{folder} has a config.json, but neither {names}.")
    if "architecture" in config:  # a model of timm's
        return read_state_dict(found[0])
    return read_hugging_face(found[0])
