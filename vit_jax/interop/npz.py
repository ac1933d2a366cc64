"""The published JAX checkpoints: one `.npz` with flat names, of ViTs, hybrids or BiT ResNets."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from vit_jax.interop import layouts
from vit_jax.interop.weights import TensorFile

logger = logging.getLogger(__name__)

# What may stand before every name: of an optimizer's state, or of a training state.
_PREFIXES = ("opt/target/", "params/")
# What zipfile and NumPy raise for damaged files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def read(path: str | os.PathLike) -> TensorFile:
    """Opens an `.npz` file; its arrays are read when used.

    With a prefix `opt/target/` or `params/`, what stands beside it (the state of an optimizer) is
    left out.

    Raises:
      ValueError: it is not an `.npz` file of plain arrays, or a damaged one.
    """
    path = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            shapes = {name.removesuffix(".npy"): _shape(archive, name) for name in members}
    except _DAMAGE as error:
        raise ValueError(f"{path} can't be read as an .npz file: {error}.") from error
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in shapes)), "")
    if others := [name for name in shapes if not name.startswith(prefix)]:
        logger.info("%s: %d arrays beside %s are left out", path, len(others), prefix)
    shapes = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}

    def read_one(name: str) -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                array = arrays[prefix + name]
        except _DAMAGE as error:
            raise ValueError(f"{path}: the array {name} is damaged: {error}.") from error
        return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array

    return TensorFile(path, shapes, read_one, layouts.NPZ)


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0,
                  (2, 0): np.lib.format.read_array_header_2_0}.get(version)  # fmt: skip
        if header is None:
            raise ValueError(f"{name} is written in the unknown version {version}")
        shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    return shape


def write(path: str | os.PathLike, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes (name, array) pairs as an uncompressed `.npz` file, one at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
