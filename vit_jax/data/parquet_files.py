"""Parquet and Arrow files of images: which there are, which columns they have, what is in these.

The format: https://parquet.apache.org/docs/file-format/. What Hugging Face's library `datasets`
says of the columns, such as the names of classes, is JSON in the schema's metadata, under the key
"huggingface": https://huggingface.co/docs/datasets/about_arrow.
"""

from __future__ import annotations

import functools
import json
import operator
import pathlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, printable
from vit_jax.common.repository import install_command
from vit_jax.data import arrow_files
from vit_jax.data.arrow_files import ArrowFile
from vit_jax.data.dataset import ExampleError
from vit_jax.data.folder_layout import split_of_name
from vit_jax.data.image_files import is_system_file
from vit_jax.data.reading import retry

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

T = TypeVar("T")
SUFFIXES = (".parquet", arrow_files.SUFFIX)
LABEL_NAMES = ("label", "labels", "class", "fine_label")  # columns taken if there are several
_IMAGE_NAMES = ("image", "img")
_CACHED_BYTES = 2**30  # of row groups that stay in memory


class Columns(NamedTuple):
    """Which columns of a file hold images and labels; and the classes, if the file names them."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None


class File(NamedTuple):
    """A file, its `pyarrow.parquet.FileMetaData` or the like, and which columns are read."""

    path: pathlib.Path
    metadata: Any
    columns: Columns


class RowGroups:
    """The images of some files, by the numbers of their rows, counted through all files."""

    def __init__(self, files: Sequence[File]):
        self._groups = [(x, i) for x in files for i in range(x.metadata.num_row_groups)]
        sizes = [x.metadata.row_group(i) for x, i in self._groups]
        self._starts = np.cumsum([0, *(x.num_rows for x in sizes)])
        counts = [x.metadata.num_rows for x in files]
        firsts = np.cumsum([0, *counts[:-1]])
        self._first_rows = {x.path: n for x, n in zip(files, firsts, strict=True)}
        self._total = sum(x.total_byte_size for x in sizes)
        self._largest = max(x.total_byte_size for x in sizes)
        self._cached = functools.lru_cache(max(1, _CACHED_BYTES // self._largest))(self._read)
        # Threads that need the same group wait for the one that reads it.
        self._locks = [threading.Lock() for _ in sizes]

    def describe(self) -> list[str]:
        """Returns a line if images are read slowly in random order, as in training."""
        if self._total <= _CACHED_BYTES:
            return []
        return [
            f"{self._total / 1e9:.1f} GB in row groups of up to {self._largest / 1e6:.1f} MB: in "
            f"random order, reading an image mostly takes reading its row group. "
            f"`python -m vit_jax.data pack` makes files of them that are quick to read"
        ]

    def shuffled(self, rows: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Returns the numbers 0 … n - 1 of n rows in a random order that reads each group once.

        So many groups as stay in memory are drawn, and their rows are mixed.

        Args:
          rows: of these rows of all files.
          rng: where all is drawn from.
        """
        in_memory = self._cached.cache_parameters()["maxsize"]
        turns = rng.permutation(len(self._groups)) // in_memory
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        return np.lexsort((rng.random(len(rows)), turns[groups]))

    def read_image(self, row: int) -> tuple[bytes, str]:
        """Returns the encoded image of a row, and the example's id."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        path = self._groups[number][0].path
        id = f"{printable(path)} row {row - self._first_rows[path]}"
        try:
            with self._locks[number]:
                images = retry(functools.partial(self._cached, number), id)
        except ValueError as error:
            raise ExampleError(id, str(error)) from error
        found = images[int(row - self._starts[number])].as_py()
        image = found["bytes"] if isinstance(found, Mapping) else found
        if image is None:
            raise ExampleError(id, "has no bytes of an image: the file must hold the images itself")
        return image, id

    def _read(self, number: int) -> pa.ChunkedArray:
        file, group = self._groups[number]

        def read(opened: parquet.ParquetFile | ArrowFile) -> pa.ChunkedArray:
            return opened.read_row_group(group, columns=[file.columns.image]).column(0)

        return _open(file.path, read, file.metadata)


def find_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that a path stands for, in order: itself, or those of a folder.

    Raises:
      ValueError: see `arrow_files.is_of_data`.
    """
    if root.is_file():
        return [root]
    found = [
        x
        for x in root.rglob("*")
        if x.suffix.lower() in SUFFIXES and not any(map(is_system_file, x.relative_to(root).parts))
    ]
    return sorted(
        x for x in found if x.suffix.lower() != arrow_files.SUFFIX or arrow_files.is_of_data(x)
    )


def find_splits(root: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
    """Returns the files of each split, the training split first, and lines about the others."""
    files = find_files(root)
    if not files:
        raise FileNotFoundError(f"There is no Parquet or Arrow file {printable(root)}.")
    splits: dict[str, list[pathlib.Path]] = {}
    others = []
    for file in files:
        folders = file.relative_to(root).parts[:-1]
        words = [*folders, *re.split("[^a-z]+", file.stem.lower())]
        if split := next(filter(None, map(split_of_name, words)), None):
            splits.setdefault(split, []).append(file)
        else:
            others.append(file)
    if not splits:
        return {"train": others}, []
    unused = [f"{first_few(x.name for x in others)}, whose names say no split"] if others else []
    return dict(sorted(splits.items(), key=lambda x: (x[0] != "train", x[0]))), unused


def _open(
    path: pathlib.Path,
    read: Callable[[parquet.ParquetFile | ArrowFile], T],
    metadata: Any = None,
) -> T:
    """Returns what `read` reads of a file.

    Raises:
      ValueError: the file is damaged; the message says why, without a full stop.
      OSError: the system can't read it.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"Reading {printable(path)} needs pyarrow, which is not installed ({error}): "
            f"{install_command('parquet')}."
        ) from error
    try:
        is_arrow = path.suffix.lower() == arrow_files.SUFFIX
        with (ArrowFile if is_arrow else parquet.ParquetFile)(path, metadata=metadata) as file:
            return read(file)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        cause = " ".join(str(error).split()).rstrip(".")
        kind = path.suffix.lower().removeprefix(".")
        raise ValueError(f"{printable(path)} is no {kind} file, or damaged: {cause}") from error


def open_file(path: pathlib.Path) -> File:
    """Returns what a file says of itself; no row is read.

    Raises:
      ImportError: pyarrow is not installed.
      ReadError: the file can't be read, see `reading.retry`.
      ValueError: it is damaged, or it is not clear which column has the images or labels.
    """
    metadata, schema = retry(
        lambda: _open(path, operator.attrgetter("metadata", "schema_arrow")), printable(path)
    )
    return File(path, metadata, _find_columns(path, schema))


def _find_columns(path: pathlib.Path, schema: pa.Schema) -> Columns:
    """Returns which columns hold images and labels.

    Raises:
      ValueError: none holds images, or it isn't clear which.
    """
    from pyarrow import types

    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (described.get("info") or {}).get("features") or {}
    class_names = {name: _class_names(features.get(name)) for name in schema.names}
    images = [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    labels = [name for name, names in class_names.items() if names]
    labels = labels or [name for name in LABEL_NAMES if name in schema.names]
    if not images:
        raise ValueError(
            f"{printable(path)} has no images: a column of bytes, or of structs with a field "
            f"bytes, is needed, and it has the columns {first_few(schema.names)}."
        )
    image = _choose(path, "images", images, _IMAGE_NAMES)
    label = _choose(path, "labels", labels, LABEL_NAMES) if labels else None
    return Columns(image, label, class_names[label] if label else None)


def _choose(path: pathlib.Path, what: str, columns: Sequence[str], usual: Sequence[str]) -> str:
    """Returns the only column, or the first of the usual names."""
    if found := [name for name in usual if name in columns] or columns[: len(columns) == 1]:
        return found[0]
    raise ValueError(
        f"{printable(path)} has several columns of {what}, {first_few(columns)}: give the one that "
        f"is meant the name {usual[0]}."
    )


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes that `datasets` describes; None if it isn't of classes."""
    if isinstance(feature, list):  # how its first versions wrote a sequence
        feature = feature[0]
    feature = (feature or {}).get("feature", feature)  # of a sequence: what its members are
    names = (feature or {}).get("names")
    return tuple(map(class_name, names)) if isinstance(names, list) else None


def read_labels(file: File) -> list[Any]:
    """Returns the label of each row as it is stored; None where a row has none."""
    column = file.columns.label
    if column is None:
        return [None] * file.metadata.num_rows
    labels: list[Any] = retry(
        lambda: _open(file.path, lambda x: x.read([column]).column(0).to_pylist(), file.metadata),
        printable(file.path),
    )
    # `datasets` writes -1 where a class isn't known.
    return [None if x == -1 and file.columns.class_names else x for x in labels]
