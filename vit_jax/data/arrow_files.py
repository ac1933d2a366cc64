"""Arrow files, as `save_to_disk` of Hugging Face's library `datasets` writes them.

The format: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format. Files are
mapped into memory: an image is read when it is needed, in any order.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.common.names import printable

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".arrow"
_STATE = "state.json"  # names the files of its folder


class RowGroup(NamedTuple):
    """All rows of a file. They take no memory of the process."""

    num_rows: int
    total_byte_size: int = 1


class Metadata(NamedTuple):
    """What `pyarrow.parquet.FileMetaData` is of a Parquet file, for an Arrow file."""

    num_rows: int
    num_row_groups: int = 1

    def row_group(self, number: int) -> RowGroup:
        """Returns the only one."""
        return RowGroup(self.num_rows)


class ArrowFile:
    """What `pyarrow.parquet.ParquetFile` is of a Parquet file, for an Arrow file: one row group.

    Args:
      path: of the file, in the streaming or the random access format.
      metadata: not read.

    Raises:
      pyarrow.ArrowException, OSError: the file is damaged, or can't be read.
    """

    def __init__(self, path: pathlib.Path, metadata: Any = None):
        import pyarrow as pa

        mapped = pa.memory_map(str(path))
        is_random_access = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        opened = pa.ipc.open_file(mapped) if is_random_access else pa.ipc.open_stream(mapped)
        self._table = opened.read_all()
        self.metadata = Metadata(self._table.num_rows)
        self.schema_arrow = self._table.schema

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *_: object) -> None:  # the columns keep the file mapped
        pass

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Returns some columns."""
        return self._table.select(columns)

    def read_row_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Returns some columns of the only row group."""
        return self.read(columns)


def is_of_data(path: pathlib.Path) -> bool:
    """Returns True if a file holds rows of the data set, False for caches of `datasets`.

    Raises:
      ValueError: the file's folder says that its rows are in another order, or a part of them.
    """
    try:
        state = json.loads((path.parent / _STATE).read_text(encoding="utf-8"))
        files = [x["filename"] for x in state["_data_files"]]
        selected = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError):  # not written by `save_to_disk`
        return not path.name.startswith("cache-")
    if selected:
        raise ValueError(
            f"{printable(path.parent)} holds a selection of the rows of its files, which isn't "
            f"read: `dataset.flatten_indices().save_to_disk(…)` writes the rows themselves."
        )
    return path.name in files
