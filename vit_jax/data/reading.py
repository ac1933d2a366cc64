"""Reads files, and tells what is wrong with a file from what passes.

A network file system that is away for a moment, a disk that fails to answer, or too little memory
say nothing about an image. If such an image were skipped, no other run would see the same data.
"""

from __future__ import annotations

import errno
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

from vit_jax.common.names import printable
from vit_jax.data.dataset import ExampleError, ReadError

T = TypeVar("T")
_WAITS = (0.1, 0.5, 2.0)  # seconds before each further attempt
# The errors that any other attempt would meet, too.
_LASTING = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def retry(read: Callable[[], T], id: str) -> T:
    """Returns what `read` returns, which is called again a few times if it fails.

    Args:
      read: takes nothing; raises OSError or MemoryError for what may pass.
      id: what is read, for messages.

    Raises:
      ReadError: the last attempt raised OSError, too.
      MemoryError: the last attempt raised it, too.
    """
    for wait in _WAITS:
        try:
            return read()
        except (OSError, MemoryError):
            time.sleep(wait)
    tried = f"{len(_WAITS) + 1} attempts in {sum(_WAITS):.1f} s failed"
    try:
        return read()
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()).rstrip(".")
        raise ReadError(
            id,
            f"{reason}. {tried}. This doesn't mean that it is damaged, so it is not skipped: when "
            f"the disk, the network or the machine is in order, start the same command again.",
        ) from error
    except MemoryError as error:
        raise MemoryError(f"{id} can't be read and decoded, {tried}") from error


def read_file(path: pathlib.Path) -> bytes:
    """Returns the bytes of an image's file.

    Raises:
      ExampleError: there is no such file, it is a folder, or it may not be read.
      ReadError: it can't be read at the moment, see `retry`.
      MemoryError: there is too little memory.
    """

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _LASTING:
                raise
            raise ExampleError(printable(path), f"can't be read: {error.strerror}") from error

    return retry(read, printable(path))
