"""Reads files, and tells permanent errors, which are the file's own, from transient ones.

A network file system that is away for a moment, a disk that fails to answer, or too little memory
say nothing about an image. If such an image were skipped, no other run would see the same data.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from vit_jax.common.names import printable
from vit_jax.data.dataset import ExampleError, ReadError

T = TypeVar("T")
_WAITS = (0.1, 0.5, 2.0)  # seconds before each further attempt
_MOST_BYTES = 2**30  # no image that can be decoded has a larger file, see `pixels`
# The errors that any other attempt would meet, too.
PERMANENT = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


def retry(read: Callable[[], T], id: str) -> T:
    """Returns what `read` returns, which is called again a few times if an error may be transient.

    Args:
      read: takes nothing; raises OSError or MemoryError.
      id: what is read, for messages.

    Raises:
      ReadError: OSError is permanent, or the last attempt raised it, too.
      MemoryError: the last attempt raised it, too.
    """
    waits = iter(_WAITS)
    while True:
        try:
            return read()
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno in PERMANENT:
                raise ReadError(id, f"{error.strerror}.", permanent=True) from error
            wait = next(waits, None)
            if wait is None:
                raise _gave_up(id, error) from error
        time.sleep(wait)


def _gave_up(id: str, error: OSError | MemoryError) -> ReadError | MemoryError:
    """Returns what `retry` raises for the error of its last attempt."""
    tried = f"{len(_WAITS) + 1} attempts in {sum(_WAITS):.1f} s failed"
    if isinstance(error, MemoryError):
        return MemoryError(f"{id} can't be read and decoded, {tried}")
    reason = error.strerror or " ".join(str(error).split()).rstrip(".")
    return ReadError(
        id,
        f"{reason}. {tried}. This doesn't mean that it is damaged, so it is not skipped: when "
        f"the disk, the network or the machine is in order, start the same command again.",
    )


def read_file(path: pathlib.Path) -> bytes:
    """Returns the bytes of an image's file.

    Raises:
      ExampleError: there is no such file, it is a folder, a pipe or a device, it may not be read,
        or it is larger than 1 GiB.
      ReadError: it can't be read at the moment, see `retry`.
      MemoryError: there is too little memory.
    """

    def read() -> bytes:
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ExampleError(printable(path), "can't be read: it is a pipe, a socket or a device")
        if status.st_size > _MOST_BYTES:
            size = status.st_size / 2**30
            raise ExampleError(
                printable(path), f"can't be read: it has {size:.1f} GiB, and no image has above 1"
            )
        return path.read_bytes()

    try:
        return retry(read, printable(path))
    except ReadError as error:
        if not error.permanent:
            raise
        reason = error.reason.rstrip(".")
        raise ExampleError(error.id, f"can't be read: {reason}") from error.__cause__
