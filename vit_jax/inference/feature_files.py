"""Files of features: .npz for NumPy, .parquet for tables."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np

from vit_jax.common.files import cannot_write, local_path, no_empty_folders, replacing
from vit_jax.common.names import as_unicode, printable
from vit_jax.common.repository import install_command
from vit_jax.models.features import Features

Row = tuple[str, Mapping[str, np.ndarray]]  # a path, and arrays by the names of their columns

_GROUP_BYTES = 2**25  # of features in a row group of a Parquet file, about


def check_features_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a file that `write_features` can write.

    Raises:
      ValueError: its suffix is none of `WRITERS`, or it can't be a path of this machine.
      IsADirectoryError: it is a folder.
      ImportError: it is to be a Parquet file, and pyarrow is not installed.
    """
    found = local_path(path)
    if found.suffix not in WRITERS:
        raise ValueError(
            f"{printable(path)}: features are written to a file that ends with "
            f"{' or '.join(WRITERS)}."
        )
    if found.is_dir():
        raise IsADirectoryError(f"{printable(path)} is a folder: name a file in it.")
    if found.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ImportError(
                f"Writing {printable(path)} needs pyarrow, which is not installed ({error}): "
                f"{install_command('parquet')}. A file that ends with .npz needs nothing more."
            ) from error
    return found


def write_features(
    path: str | os.PathLike[str], features: Iterable[tuple[str, Features]]
) -> dict[str, tuple[int, ...]]:
    """Writes features of images to a file, completely or not at all; replaces one of that name.

    The columns are `pooled`; `tokens`, if there are `final_tokens`; and `tokens_6` for the tokens
    of layer 6. All are float32, little-endian.

    A .npz file has an array (n, …) for each column, and `paths`, an array of n texts. A .parquet
    file has a row an image: `path`, and nested lists of fixed sizes. The memory that this takes
    doesn't grow with n, except for the paths of a .npz file. While a .npz file is written, it takes
    up to twice its size on the disk: its numbers are first in a hidden folder beside it.

    Args:
      path: ends with .npz or .parquet.
      features: paths of images, and their features without the first axis; all have the same
        shapes. Bytes in paths that aren't UTF-8 are written as `as_unicode` has them.

    Returns:
      The shape of each column, in which the first number is n. It is empty if there are no
      features; then nothing is written.

    Raises:
      ValueError, IsADirectoryError, ImportError: as `check_features_path`.
      OSError: the file can't be written.
    """
    file = check_features_path(path)
    rows = ((as_unicode(name), _columns(found)) for name, found in features)
    first = next(rows, None)
    if first is None:
        return {}
    shapes = {name: x.shape for name, x in first[1].items()}
    with no_empty_folders(file.parent):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(cannot_write(path, error)) from error
        with replacing(file) as partial:
            count = WRITERS[file.suffix](partial, shapes, chain([first], rows))
    return {name: (count, *shape) for name, shape in shapes.items()}


def _columns(features: Features) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {"pooled": features.pooled}
    if features.final_tokens is not None:
        found["tokens"] = features.final_tokens
    found |= {f"tokens_{layer}": x for layer, x in features.tokens.items()}
    return {name: np.asarray(x, "<f4") for name, x in found.items()}


def _write_npz(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], rows: Iterator[Row]
) -> int:
    """Writes the numbers of each column to a file, then all of them to the archive."""
    paths = []
    with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent) as folder:
        numbers = {name: pathlib.Path(folder, name) for name in shapes}
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(x.open("wb")) for name, x in numbers.items()}
            for name, columns in rows:
                paths.append(name)
                for column, array in columns.items():
                    opened[column].write(array.tobytes())
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("paths.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.array(paths), allow_pickle=False)
            for column, shape in shapes.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), *shape)}
                with (
                    archive.open(f"{column}.npy", "w", force_zip64=True) as entry,
                    numbers[column].open("rb") as source,
                ):
                    np.lib.format.write_array_header_1_0(entry, header)
                    shutil.copyfileobj(source, entry)
                numbers[column].unlink()
    return len(paths)


def _write_parquet(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], rows: Iterator[Row]
) -> int:
    """Writes row groups as they are full."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    def fixed_lists(column: str, group: list[Row]) -> pa.Array:
        found = pa.array(np.ravel([arrays[column] for _, arrays in group]).astype(np.float32))
        for size in reversed(shapes[column]):
            found = pa.FixedSizeListArray.from_arrays(found, size)
        return found

    def table(group: list[Row]) -> pa.Table:
        names = pa.array([name for name, _ in group], pa.string())
        return pa.table({"path": names, **{x: fixed_lists(x, group) for x in shapes}})

    count = 0
    image_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    size = max(1, _GROUP_BYTES // image_bytes)
    schema = table([]).schema
    with path.open("wb") as file, ParquetWriter(file, schema, use_dictionary=False) as writer:
        while group := list(islice(rows, size)):
            writer.write_table(table(group))
            count += len(group)
    return count


WRITERS: Mapping[
    str, Callable[[pathlib.Path, Mapping[str, tuple[int, ...]], Iterator[Row]], int]
] = {".npz": _write_npz, ".parquet": _write_parquet}
