"""timm's state dicts, read and written. `parameter_names.py` has the names of their arrays."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.weights import parameter_names
from vit_jax.weights.record import KEY, read_record, write_comment, write_record
from vit_jax.weights.safetensors import (
    PICKLED,
    Tensors,
    open_tensors,
    write_pickled,
    write_tensors,
)
from vit_jax.weights.tensor_file import TensorFile, file_arrays


def read_timm(path: str | os.PathLike, tensors: Tensors | None = None) -> TensorFile:
    """Opens a state dict of timm; its arrays are read when they are used.

    timm computes the exact GELU, and adds 1e-8 to the variance of standardised kernels. Weights are
    taken to be for this, unless we wrote the file and recorded something else in it.

    Args:
      path: a `.safetensors` file, or one that PyTorch pickled, which needs PyTorch.
      tensors: the same file, if it is open already.

    Raises:
      ValueError: the file can't be read.
    """
    path = pathlib.Path(path)
    shapes, read_array, text = tensors or open_tensors(path)
    record = read_record(path, text)
    model: dict[str, Any] = {}
    if any("conv" in name for name in shapes):
        model["kernel_epsilon"] = 1e-8
    if "patch_embed.proj.weight" in shapes:
        model["gelu"] = "exact"
    return TensorFile(
        str(path),
        shapes,
        read_array,
        parameter_names.TIMM,
        model | record.model,
        *record[1:],
    )


def write_timm(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Writes a state dict of timm: by PyTorch for the suffixes of its files, else as safetensors.

    The file also gets a record of what timm's names and shapes don't show, see `record`.

    Raises:
      ValueError: timm has no place for some parameters, or PyTorch is needed and not installed.
    """
    path = pathlib.Path(path)
    tensors = dict(file_arrays(checkpoint, parameter_names.TIMM))
    if path.suffix.lower() in PICKLED:
        write_pickled(tensors, path, write_comment(checkpoint))
    else:
        write_tensors(tensors, path, {"format": "pt", KEY: write_record(checkpoint)})
