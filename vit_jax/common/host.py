"""The CPUs of this process, and the processes that share its host and its CPUs."""

from __future__ import annotations

import functools
import os
import platform
import zlib
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils


class Process(NamedTuple):
    """What one process runs on.

    Attributes:
      host: a hash of the host's name.
      cpus: a hash of the numbers of the CPUs that the process may use.
      cpu_count: how many these are.
    """

    host: int
    cpus: int
    cpu_count: int


def available_cpus() -> tuple[int, ...]:
    """Returns the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@functools.cache
def own_process() -> Process:
    """Returns what this process runs on."""
    cpus = available_cpus()
    return Process(_hash(platform.node()), _hash(str(cpus)), len(cpus))


@functools.cache
def all_processes() -> tuple[Process, ...]:
    """Returns what every process of the run runs on. All of them must call this function."""
    own = own_process()
    if jax.process_count() == 1:
        return (own,)
    found = multihost_utils.process_allgather(np.array(own, np.uint32))
    return tuple(Process(*row) for row in np.asarray(found).tolist())


def processes_on_host() -> int:
    """Returns how many processes of the run are on this host. All of them must call it."""
    host = own_process().host
    return sum(process.host == host for process in all_processes())


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())
