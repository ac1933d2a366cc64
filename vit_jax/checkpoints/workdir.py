"""The folder of a run: made, and locked for one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vit_jax.common.files import absolute, is_bucket, no_empty_folders

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_workdir(path: str | os.PathLike) -> Iterator[epath.Path]:
    """Yields the absolute path of a workdir, and makes the folder if it does not exist.

    If the block raises an error before it has written anything there, the folder is removed again.

    Args:
      path: a folder on this machine, or in a bucket (`gs://BUCKET/PATH`).

    Raises:
      OSError: the folder can't be made.
      ValueError, FileNotFoundError: the bucket can't be used, see `common.files.absolute`.
    """
    workdir = absolute(path)
    with no_empty_folders(workdir / "checkpoints"):
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"The workdir {workdir} can't be made: {error.strerror}.") from error
        yield workdir


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """Holds a workdir for one run.

    The first process of the run locks WORKDIR/.lock. The system releases the lock when that process
    ends, however it ends. Buckets and some network file systems have no locks: a second run in the
    same workdir is not noticed there. If the block raises an error and the workdir holds no file,
    the lock's own is removed.

    Raises:
      OSError: another run holds the workdir, or nothing can be written to it.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if jax.process_index() == 0 and not is_bucket(workdir):
            problem = _lock(workdir, stack)
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
            problem = problem or ("The first process can't have the workdir." if refused else "")
        if problem:
            raise OSError(problem)
        try:
            yield
        except BaseException:
            if jax.process_index() == 0 and not is_bucket(workdir):
                _remove_if_alone(pathlib.Path(workdir, ".lock"))
            raise


def _remove_if_alone(file: pathlib.Path) -> None:
    """Removes a file if there is no other in its folder, at any depth."""
    with contextlib.suppress(OSError):
        if [x for x in file.parent.rglob("*") if not x.is_dir()] == [file]:
            file.unlink()


def _lock(workdir: epath.Path, stack: contextlib.ExitStack) -> str:
    """Locks a workdir until the stack is left; returns why that is impossible, or ""."""
    try:
        file = stack.enter_context(open(pathlib.Path(workdir, ".lock"), "a+"))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return (
                f"The workdir {workdir} is in use by {file.read() or 'another run'}. Two would "
                f"overwrite each other's checkpoints: wait for it, or take another --workdir."
            )
        except OSError as error:
            logger.warning("%s can't be locked (%s): start no second run there.", workdir, error)
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
            return f"The workdir {workdir} is in use by a run that is just ending: start again."
        file.truncate(0)
        try:  # not buffered: on a full disk, the rest would be written when the file is closed
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError:
            os.unlink(file.name)
            raise
    except OSError as error:
        return f"The workdir {workdir} can't be written to: {error.strerror}."
    return ""
