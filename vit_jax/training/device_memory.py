"""The memory that this process may use of a device."""

from __future__ import annotations

import pathlib
import resource
from collections.abc import Iterator

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from vit_jax.common.host import processes_on_host

# Of the memory that is free, on a CPU. The rest is for the compiler, libraries and other programs.
HOST_SHARE = 0.8
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")


def device_memory() -> int | None:
    """Returns the bytes that this process may use of each of its devices; None if it is unknown.

    On a GPU or TPU it is what JAX allocates at most. It is unknown if JAX has no such limit, as
    with XLA_PYTHON_CLIENT_ALLOCATOR=platform. A CPU's devices share `HOST_SHARE` of the
    memory that is free by what the machine has, by the control groups of this process (of
    containers and batch systems), and by its own limit (`ulimit -v`).
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    free = min(psutil.virtual_memory().available, *_left_by_limits())
    return int(HOST_SHARE * max(0, free)) // jax.local_device_count()


def smallest_memory() -> int | None:
    """Returns the smallest `device_memory` of all processes, to a MiB; the same in each of them.

    It is None if a process doesn't know its own. Processes on the CPU of one host share its memory.
    """
    own = device_memory()
    if jax.process_count() == 1:
        return own
    if own is not None and jax.default_backend() == "cpu":
        own //= processes_on_host()
    megabytes = np.int32(-1 if own is None else own >> 20)
    smallest = int(np.min(multihost_utils.process_allgather(megabytes)))
    return None if smallest < 0 else smallest << 20


def _left_by_limits() -> Iterator[int]:
    """Yields the bytes that each limit on the memory of this process leaves it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms
    for line in _lines(_OWN_CGROUPS):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, maximum, current, cache = _CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, cache = _CGROUPS / "memory", "total_"
            maximum, current = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            limits, used = _lines(folder / maximum), _lines(folder / current)
            if limits and used and limits[0].isdigit():  # "max" is no limit
                counts = dict(row.split(" ", 1) for row in _lines(folder / "memory.stat"))
                # Files that were read count as used, and make room when it is needed.
                yield int(limits[0]) - int(used[0]) + int(counts.get(f"{cache}inactive_file", 0))


def _lines(path: pathlib.Path) -> list[str]:
    """Returns the lines of a file; none if it can't be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
