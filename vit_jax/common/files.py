"""Files and folders, on this machine or in a bucket: whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath


def is_bucket(folder: epath.Path) -> bool:
    return os.fspath(folder).startswith("gs://")


def absolute(path: str | epath.PathLike) -> epath.Path:
    """Returns where a folder is, on this machine or, as `gs://BUCKET/PATH`, in a bucket.

    Raises:
      ValueError: what reads and writes buckets is not installed, or Google doesn't know us.
      FileNotFoundError: there is no such bucket.
    """
    path = os.fspath(path)
    if not path.startswith("gs://"):
        return epath.Path(path).expanduser().resolve()
    try:
        from gcsfs.retry import HttpError
    except ImportError as error:
        raise ValueError(
            f"{path} is in a bucket of Google Cloud Storage, and reading and writing there needs "
            f'gcsfs: pip install "vit_jax[gcs]", in a checkout pip install -e ".[gcs]".'
        ) from error
    bucket = epath.Path("gs://" + path.split("/")[2])
    try:
        there = bucket.exists()
    except HttpError as error:
        raise ValueError(
            f"{bucket} can't be read: {error}. `gcloud auth application-default login` logs in."
        ) from error
    if not there:  # gcsfs would create it, wherever
        raise FileNotFoundError(f"There is no bucket {bucket}, or none that we may see: create it.")
    return epath.Path(path)  # without resolve(), which takes it for a folder of this one


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, which takes its place if all goes well, else vanishes."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.rename(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_csv(path: epath.Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV file, on this machine or in a bucket."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path.write_bytes(text.getvalue().encode())
