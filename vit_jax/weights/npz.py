"""npz"""

from __future__ import annotations

import io
import logging
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from vit_jax.weights import tables
from vit_jax.weights.recognise import TensorFile

logger = logging.getLogger(__name__)

# What may stand before every name: of an optimizer's state, or of a training state.
_PREFIXES = ("opt/target/", "params/")
# What zipfile and NumPy raise for damaged data.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
# Of one byte, deflate makes this many at most (https://zlib.net/zlib_tech.html).
_INFLATION = 1032
_HEADER = 2**14  # bytes; NumPy takes headers of up to 10,000


def read(path: str | os.PathLike) -> TensorFile:
    """Opens an `.npz` file; its arrays are read when used.

    With a prefix `opt/target/` or `params/`, what stands beside it (the state of an optimizer) is
    left out.

    Raises:
      ValueError: it is not an `.npz` file of plain arrays, or a damaged one.
    """
    path = str(path)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            most = _INFLATION * os.path.getsize(path)
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    continue
                if (name := entry.filename.removesuffix(".npy")) in shapes:
                    raise ValueError(f"two of its arrays are called {name}")
                if entry.file_size > most:
                    raise ValueError(f"{name} can't hold {entry.file_size} bytes in such a file")
                shapes[name] = _shape(archive, entry)
    except Exception as error:  # damaged headers make Python's own parser raise errors of all kinds
        raise ValueError(f"{path} can't be read as an .npz file: {str(error)[:300]}.") from error
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in shapes)), "")
    if others := [name for name in shapes if not name.startswith(prefix)]:
        logger.info("%s: %d arrays beside %s are left out", path, len(others), prefix)
    shapes = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}

    def read_one(name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{prefix}{name}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise ValueError(f"{path}: the array {name} is damaged: {str(error)[:300]}.") from error
        return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array

    return TensorFile(path, shapes, read_one, tables.NPZ)


def _shape(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[int, ...]:
    name = entry.filename
    with archive.open(entry) as file:
        start = io.BytesIO(file.read(_HEADER))
    version = np.lib.format.read_magic(start)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"{name} is written in the unknown version {version}")
    shape, _, dtype = header(start)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    size = start.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != entry.file_size:
        raise ValueError(f"{name} has {entry.file_size} bytes, which an array {shape} has not")
    return shape


def write(path: str | os.PathLike, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes (name, array) pairs as an uncompressed `.npz` file, one at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
