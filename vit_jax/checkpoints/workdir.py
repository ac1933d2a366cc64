"""workdir"""

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

from vit_jax.common.files import absolute, is_bucket

logger = logging.getLogger(__name__)


def make_workdir(path: str | os.PathLike) -> epath.Path:
    """Returns where a workdir is, after making it where there is none.

    Raises:
      OSError: it can't be made.
      ValueError: as `absolute`.
    """
    workdir = absolute(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The workdir {workdir} can't be made: {error.strerror}.") from error
    return workdir


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """Holds a workdir for one run, by a lock on WORKDIR/.lock that ends with the process.

    Of several processes the first holds it. Buckets, and some network file systems, have no locks:
    there, a second run is not noticed.

    Raises:
      OSError: another run has it, or nothing can be written there.
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
        yield


def _lock(workdir: epath.Path, stack: contextlib.ExitStack) -> str:
    """Locks a workdir until the stack is left; returns what is in the way."""
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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:
        return f"The workdir {workdir} can't be written to: {error.strerror}."
    return ""
