"""Files and folders, on this machine or in a bucket of Google Cloud Storage."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

PathT = TypeVar("PathT", pathlib.Path, epath.Path)
_BUCKETS = "gs://"  # the beginning of every path in a bucket


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns True if a path is in a bucket: if it begins with `gs://`."""
    return os.fspath(path).startswith(_BUCKETS)


def looks_like_path(name: str) -> bool:
    """Returns True if a name can only be a path: if it begins with "/", "." or "~"."""
    return name.startswith(("/", ".", "~"))


def folders_beside(path: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of the folders in the parent of `path`; [] if that can't be read.

    Hidden folders are left out.
    """
    try:
        beside = pathlib.Path(path).expanduser().parent.iterdir()
        return [str(x) for x in beside if x.is_dir() and not x.name.startswith(".")]
    except (OSError, ValueError):  # ValueError: the path can't be one
        return []


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns the absolute path of a file or folder.

    Args:
      path: on this machine, where "~" stands for the home folder, or `gs://BUCKET/PATH`. Nothing
        needs to exist there; a bucket is looked for.

    Raises:
      ValueError: the path is in a bucket, and gcsfs is not installed, or the bucket can't be read.
      FileNotFoundError: there is no such bucket.
    """
    if not is_bucket(path):
        return epath.Path(path).expanduser().resolve()
    path = os.fspath(path)
    try:
        from gcsfs.retry import HttpError
    except ImportError as error:
        raise ValueError(
            f"{path} is in a bucket of Google Cloud Storage, and reading and writing there needs "
            f'gcsfs: pip install -e ".[gcs]".'
        ) from error
    bucket = epath.Path(_BUCKETS + path.split("/")[2])
    try:
        exists = bucket.exists()
    except HttpError as error:
        raise ValueError(
            f"{bucket} can't be read: {error}. `gcloud auth application-default login` logs in."
        ) from error
    if not exists:  # writing there would create it, in a place of gcsfs's choice
        raise FileNotFoundError(f"There is no bucket {bucket}, or none that we may see: create it.")
    return epath.Path(path)  # resolve() would make it a path of this machine


@contextlib.contextmanager
def replacing(path: PathT) -> Iterator[PathT]:
    """Yields a partial path to write a file to. When the block ends, the file replaces `path`.

    So a half-written file is never at `path`. If the block raises an error, the file is removed
    and `path` stays as it was. The partial path is hidden, beside `path`, and has its suffix. If
    `path` does not exist, the block may also write a folder.

    Raises:
      FileNotFoundError: the block wrote nothing.
      OSError: the file can't replace `path`.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # an interrupt, too, leaves nothing half written
        written = epath.Path(partial)
        if written.is_dir():
            written.rmtree()
        else:
            written.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def no_empty_folders(folder: PathT) -> Iterator[None]:
    """Removes folders that the block made and left empty, if it raises an error.

    These are `folder` and the folders above it. One that was there before is never removed. In a
    bucket there are no folders: nothing is done.
    """
    paths = () if is_bucket(folder) else (folder, *folder.parents)
    missing = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, ValueError):  # one holds something; epath's is the latter
            for path in missing:
                if path.exists():
                    path.rmdir()
        raise


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows as a CSV file, on this machine or in a bucket."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    epath.Path(path).write_bytes(text.getvalue().encode())
