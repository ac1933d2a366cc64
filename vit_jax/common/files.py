"""Files and folders, on this machine or in a bucket of Google Cloud Storage."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from vit_jax.common.names import printable, require_unicode
from vit_jax.common.repository import install_command

PathT = TypeVar("PathT", pathlib.Path, epath.Path)
# What the system says where a file finds no space: a full disk, a quota, a limit on its size.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUCKETS = "gs://"  # the beginning of every path in a bucket
# Where TensorFlow is installed, etils would use it for buckets. It logs in in another way, and some
# of its builds know no buckets.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns True if a path is in a bucket: if it begins with `gs://`."""
    return os.fspath(path).startswith(_BUCKETS)


def looks_like_path(name: str) -> bool:
    """Returns True if a name can only be a path: it begins with "/", "." or "~", or is a URL."""
    return name.startswith(("/", ".", "~")) or "://" in name


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a file or folder on this machine, where "~" stands for the home folder.

    Raises:
      ValueError: the path is empty, is an address such as s3://BUCKET/RUN, or holds a null byte.
      FileNotFoundError: it begins with "~", and the user has no home folder; or it is relative,
        and the current folder is gone.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError("A path is empty: name a file or folder, such as runs/first.")
    if "\0" in text:
        raise ValueError(f"{printable(text)} can't be a path: it holds a null byte.")
    if is_bucket(text):
        raise ValueError(
            f"{printable(text)} is in a bucket, but a path of this machine is needed here, such as "
            f"runs/first."
        )
    if scheme := re.match(r"(\w[\w+.-]+):/", text):
        raise ValueError(
            f"{printable(text)} can't be used: only paths of this machine can, such as runs/first, "
            f"and gs://BUCKET/PATH for what may be in a bucket, not {scheme[1]}: addresses."
        )
    try:
        found = pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{printable(text)} begins with ~, and this user has no home folder: set HOME, or give "
            f"a path without ~."
        ) from error
    if not (found.is_absolute() or current_folder_exists()):
        raise FileNotFoundError(
            f"{printable(text)} can't be found: the folder that this command was started in is "
            f"gone. Change to another, or give absolute paths."
        )
    return found


def current_folder_exists() -> bool:
    """Returns False if somebody removed the folder that this process is in."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def folders_beside(path: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of the folders in the parent of `path`; [] if that can't be read.

    Hidden folders are left out.
    """
    try:
        beside = local_path(path).parent.iterdir()
        return [str(x) for x in beside if x.is_dir() and not x.name.startswith(".")]
    except (OSError, ValueError):  # ValueError: the path can't be one
        return []


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns the absolute path of a file or folder.

    Args:
      path: on this machine, where "~" stands for the home folder, or `gs://BUCKET/PATH`. Nothing
        needs to exist there; a bucket is looked for.

    Raises:
      ValueError: the path can't be one, see `local_path`, or has bytes that aren't UTF-8; or it is
        in a bucket, and gcsfs is not installed, or the bucket can't be read.
      FileNotFoundError: there is no such bucket or home folder.
    """
    if not is_bucket(path):
        resolved = epath.Path(local_path(path).resolve())
        require_unicode(resolved)
        return resolved
    path = os.fspath(path)
    if not path.split("/")[2]:
        raise ValueError(f"{path} names no bucket: write gs://BUCKET/PATH.")
    try:
        from gcsfs.retry import HttpError
    except ImportError as error:
        raise ValueError(
            f"{path} is in a bucket of Google Cloud Storage, and reading and writing there needs "
            f"gcsfs: {install_command('gcs')}."
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
      OSError: the file can't be written, as on a full disk, or can't replace `path`.
    """
    partial = path.with_name(f".partial-{path.name[-60:]}")  # a name has at most 255 bytes
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:  # an interrupt, too, leaves nothing half written
        written = epath.Path(partial)
        if written.is_dir():
            written.rmtree()
        else:
            written.unlink(missing_ok=True)
        _raise_about(error, path, partial)
        raise


@contextlib.contextmanager
def filling(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a hidden folder in `folder`. When the block ends, its files move there.

    They replace files of the same names. If the block raises an error, `folder` stays as it was; if
    it didn't exist, it is removed.

    Raises:
      OSError: the files can't be written, as on a full disk.
    """
    with no_empty_folders(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
        except OSError as error:
            raise OSError(cannot_write(folder, error)) from error
        with made as name:
            partial = pathlib.Path(name)
            try:
                yield partial
                for file in partial.iterdir():
                    file.replace(folder / file.name)
            except OSError as error:
                _raise_about(error, folder, partial)
                raise


def _raise_about(error: BaseException, path: Any, partial: Any) -> None:
    """Raises OSError, which names `path`, if an error is the system's about `partial`."""
    if not isinstance(error, OSError) or error.errno in (None, errno.ENOENT):
        return
    if str(error.filename or partial).startswith(str(partial)):
        raise OSError(cannot_write(path, error)) from error


def cannot_write(path: str | os.PathLike[str], error: Exception) -> str:
    """Returns a sentence that says why a file or folder can't be written."""
    return f"{printable(path)} can't be written: {reason_of(error)}."


def reason_of(error: Exception) -> str:
    """Returns what the system said; else the first line of an error, of a long one both ends."""
    if found := re.search(r"\[os_error_code='(\d+)'\]", str(error)):  # TensorStore's
        return os.strerror(int(found[1]))
    line = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    line = line.rstrip(".")
    return line if len(line) < 600 else f"{line[:300]} … {line[-300:]}"  # the cause comes last


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a text in UTF-8, or bytes, to a file, of which never only a part is there.

    Raises:
      OSError: it can't be written. What was there before is left as it was.
    """
    with replacing(epath.Path(path)) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


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


def csv_row(row: Iterable[Any]) -> list[Any]:
    """Returns a row for `csv.writer`, which quotes newlines, and leaves other characters as is."""
    return [printable(x, keep="\n\r\t") if isinstance(x, str) else x for x in row]


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows as a CSV file in UTF-8, on this machine or in a bucket.

    What CSV has no way to write in a text, such as bytes that aren't UTF-8, is as `printable` has
    it.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(map(csv_row, rows))
    write_file(path, text.getvalue())
