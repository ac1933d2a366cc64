"""NumPy's `.npz` files: the published JAX checkpoints, and others with their names."""

from __future__ import annotations

import io
import logging
import lzma
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.weights import parameter_names
from vit_jax.weights.layout import Shape, check_alone
from vit_jax.weights.parameter_names import big_vision
from vit_jax.weights.record import read_comment, read_record, write_comment
from vit_jax.weights.tensor_file import PROJECTION, UNCHANGED, TensorFile, file_arrays

logger = logging.getLogger(__name__)

# What zipfile and NumPy raise if data are damaged.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
# Number of bytes that deflate makes of one byte at most (https://zlib.net/zlib_tech.html).
_INFLATION = 1032
_HEADER = 2**14  # bytes that are read to find an array's header; NumPy's own limit is 10,000


def read_npz(path: str | os.PathLike) -> TensorFile:
    """Opens an `.npz` file; its arrays are read when they are used.

    Of a training state, only the parameters are taken, and of a pair of towers only that of images
    (LiT, SigLIP). Blocks that are stored in one array are taken apart, see `big_vision.unstack`.

    A ViT without a table of positions has fixed ones, sines and cosines, unless our own record in
    the file says something else: a warning is logged.

    Raises:
      ValueError: the file is damaged, or is not an `.npz` file of plain arrays.
    """
    path = str(path)
    shapes: dict[str, Shape] = {}
    try:
        with open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            most = _INFLATION * os.path.getsize(path)
            text = read_comment(opened, archive)
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    continue
                if (name := entry.filename.removesuffix(".npy")) in shapes:
                    raise ValueError(f"two of its arrays are called {name}")
                if entry.file_size > most:
                    raise ValueError(f"{name} can't hold {entry.file_size} bytes in such a file")
                shapes[name] = _read_shape(archive, entry)
    except Exception as error:  # a damaged header makes Python's parser raise errors of all kinds
        raise ValueError(f"{path} can't be read as an .npz file: {str(error)[:300]}.") from error
    prefix = big_vision.prefix_of(shapes)
    others = [name for name in shapes if not name.startswith(prefix)]
    stored: dict[str, str] = {}
    for name in shapes:
        if name.startswith(prefix):
            usual = big_vision.usual_name(name.removeprefix(prefix))
            check_alone(path, name, stored.get(usual))
            stored[usual] = name

    def read_array(name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{stored[name]}.npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise ValueError(f"{path}: the array {name} is damaged: {str(error)[:300]}.") from error
        # NumPy stores a bfloat16 as two bytes without a type.
        return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array

    shapes, read = big_vision.unstack(
        path, {k: shapes[name] for k, name in stored.items()}, read_array
    )
    file = TensorFile(path, shapes, read, parameter_names.NPZ, mean=UNCHANGED, std=UNCHANGED)
    if others:
        file = file._replace(changes=(f"Only {prefix} is taken, not {first_few(others)}.",))
    if prefix.endswith(big_vision.TOWER):
        head = PROJECTION if "head/kernel" in shapes else None
        file = file._replace(problem_type=head, view=big_vision.TOWER_VIEW)
    record = read_record(pathlib.Path(path), text)
    if not record.model and "cls" in shapes:
        file = file._replace(model={"pool": "token"})
    if not record.model and big_vision.has_no_positions(shapes):
        logger.warning(
            "%s has no table of positions, so they are taken as sines and cosines: "
            "positions='sincos'. If there are none, give positions='none'.",
            printable(path),
        )
        file = file._replace(model={**file.model, "positions": "sincos"})
    return record.added_to(file)


def _read_shape(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Shape:
    """Returns the shape of an array, from its header; raises ValueError if that can't be true."""
    name = entry.filename
    with archive.open(entry) as file:
        start = io.BytesIO(file.read(_HEADER))
    version = np.lib.format.read_magic(start)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"{name} is written in the unknown version {version}")
    shape, _, dtype = read_header(start)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded")
    size = start.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != entry.file_size:
        raise ValueError(f"{name} has {entry.file_size} bytes, which an array {shape} has not")
    return shape


def write_npz(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Writes an `.npz` file in the layout of the published JAX checkpoints, and a `record`.

    Raises:
      ValueError: the layout has no place for some parameters.
    """
    write_arrays(file_arrays(checkpoint, parameter_names.NPZ), path, write_comment(checkpoint))


def write_arrays(
    arrays: Iterable[tuple[str, np.ndarray]], path: str | os.PathLike, comment: bytes = b""
) -> None:
    """Writes (name, array) pairs as an uncompressed `.npz` file, of which one is in memory.

    Args:
      arrays: the pairs.
      path: the file.
      comment: of the zip file that it is, at most 65,535 bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name, array in arrays:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
