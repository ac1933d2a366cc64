"""The files of a prepared tfds data set: what is damaged in them is found and named.

These are array_record files (https://github.com/google/array_record), TFRecord files, and JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator

import google_crc32c
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from vit_jax.data.reading import retry

INFO = "dataset_info.json"
PACK_FILE = "pack.json"  # says how `data.packing` made a data set


class DataError(ValueError):
    """A data set is unknown, can't be prepared from its files, or can't be read as it is."""


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raises OSError where array_record tells of a failed system call by RuntimeError.

    Its other RuntimeErrors are about damaged files.
    """
    try:
        yield
    except RuntimeError as error:
        if found := re.search(r"\w\(\) failed: ([^;]+)", str(error)):
            number = next((n for n in errno.errorcode if os.strerror(n) == found[1]), errno.EIO)
            raise OSError(number, found[1]) from error
        raise


def check_count(path: epath.PathLike, count: int, named: epath.PathLike | None = None) -> None:
    """Raises DataError if an array_record file doesn't hold `count` records.

    Args:
      path: the file.
      count: the number of its records.
      named: the file that messages name. None for `path`.

    Raises:
      ReadError: the file can't be read.
    """
    named = named or path
    found = count_records(path, named)
    if found != count:
        raise DataError(
            f"{named} holds {found} records, but {INFO} beside it says {count}: copy or prepare "
            f"both again."
        )


def count_records(path: epath.PathLike, named: epath.PathLike | None = None) -> int:
    """Returns the number of records in an array_record file.

    Args:
      path: the file.
      named: the file that messages name. None for `path`.

    Raises:
      DataError: it is damaged.
      ReadError: it can't be read.
    """
    named = named or path

    def count() -> int:
        with system_errors(), contextlib.closing(ArrayRecordReader(str(path))) as reader:
            return reader.num_records()

    try:
        return retry(count, str(named))
    except RuntimeError as error:
        raise DataError(f"{named} is cut off or damaged: copy or prepare it again.") from error


def read_tfrecords(path: epath.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A record is its length, a checksum of the length, its bytes, and a checksum of these. The
    checksums are masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord).

    Raises:
      DataError: the file is cut off, or a checksum is not that of the bytes.
    """

    def read(count: int) -> bytes:
        data, checksum = file.read(count), file.read(4)
        crc = google_crc32c.value(data)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        if len(data) < count or checksum != masked.to_bytes(4, "little"):
            raise DataError(
                f"{path} is cut off or damaged at byte {file.tell()}: copy or prepare it again."
            )
        return data

    size = os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size:
            yield read(int.from_bytes(read(8), "little"))


@contextlib.contextmanager
def explain_json_damage(folder: epath.Path) -> Iterator[None]:
    """Turns tfds's errors about the JSON files of a data set into a DataError that names them.

    Args:
      folder: the folder of a version, or the one that holds all versions of a data set.
    """
    try:
        yield
    except (OSError, tfds.core.DatasetNotFoundError):
        raise
    except Exception as error:  # tfds raises whatever its parts do
        files = (path for n in range(3) for path in folder.glob("*/" * n + "*.json"))
        where = next((path for path in files if not _is_json(path)), None)
        cause = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{where or f'{INFO} or features.json in {folder}'} is damaged: copy it again, or "
            f"delete the data set's folder to have it prepared anew. The cause: "
            f"{cause if len(cause) < 300 else cause[:300] + ' …'}."
        ) from error


def _is_json(path: epath.Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False
