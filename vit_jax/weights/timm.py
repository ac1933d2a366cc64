"""timm's state dicts, read and written. `parameter_names.py` has the names of their arrays."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.keys import model_attributes
from vit_jax.models import attributes
from vit_jax.weights import parameter_names
from vit_jax.weights.checked_json import get_typed, parse_json, two_sides
from vit_jax.weights.safetensors import PICKLED, open_tensors, write_pickled, write_tensors
from vit_jax.weights.tensor_file import TensorFile, file_arrays

_METADATA = "vit_jax"  # the key of our record in the metadata of a safetensors file


def read_timm(path: str | os.PathLike) -> TensorFile:
    """Opens a state dict of timm; its arrays are read when they are used.

    timm computes the exact GELU, and adds 1e-8 to the variance of standardised kernels. Weights are
    taken to be for this, unless we wrote the file and recorded something else in it.

    Args:
      path: a `.safetensors` file, or one that PyTorch pickled, which needs PyTorch.

    Raises:
      ValueError: the file can't be read.
    """
    path = pathlib.Path(path)
    shapes, read_array, metadata = open_tensors(path)
    record = parse_json(path, metadata.get(_METADATA, "{}"))
    model: dict[str, Any] = {}
    if any("conv" in name for name in shapes):
        model["kernel_epsilon"] = 1e-8
    if "patch_embed.proj.weight" in shapes:
        model["gelu"] = "exact"
    try:
        for key, value in get_typed(record, "model", {}).items():
            model[key] = tuple(value) if isinstance(value, list) else value
        image_size = record.get("image_size")
        image_size = None if image_size is None else two_sides("image_size", image_size)
        class_names = tuple(map(str, get_typed(record, "class_names", [])))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return TensorFile(
        str(path), shapes, read_array, parameter_names.TIMM, model, image_size, class_names
    )


def write_timm(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Writes a state dict of timm: by PyTorch for the suffixes of its files, else as safetensors.

    A safetensors file also gets a record of what timm's names and shapes don't show: the variant,
    the GELU, the image size and the class names.

    Raises:
      ValueError: timm has no place for some parameters, or PyTorch is needed and not installed.
    """
    path = pathlib.Path(path)
    tensors = dict(file_arrays(checkpoint, parameter_names.TIMM))
    if path.suffix in PICKLED:
        write_pickled(tensors, path)
        return
    model = checkpoint.model()
    recorded = {"variant": checkpoint.config.model.variant}
    recorded |= attributes.of_kind(model_attributes(checkpoint.config), "size", "weights")
    recorded |= {k: getattr(model, k) for k in attributes.names("mathematics") if hasattr(model, k)}
    record = {
        "model": recorded,
        "image_size": checkpoint.image_shape,
        "class_names": checkpoint.class_names,
    }
    write_tensors(tensors, path, {"format": "pt", _METADATA: json.dumps(record)})
