"""environment"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import sys

import jax


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, where training runs on the CPU.

    A training step on a CPU allocates and frees the same large arrays over and over; giving them
    back to the system and faulting them in again took a third of its time. On the host of a GPU
    the same settings stalled training, so they are left alone there. It must come before JAX
    starts its threads. Other C libraries go on as they are.
    """
    if not _on_cpu():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


def keep_programs() -> None:
    """Keeps compiled programs for the next start, in ~/.cache/vit_jax, unless JAX is told where.

    JAX_COMPILATION_CACHE_DIR tells it; JAX_ENABLE_COMPILATION_CACHE=false keeps none. Programs for
    a CPU are for the instructions it has, so every kind of CPU gets a folder.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax"
    try:
        flags_line = re.search(r"^(flags|Features)\s*:.*", _CPUINFO.read_text(), re.MULTILINE)[0]
    except (OSError, TypeError):
        flags_line = platform.processor()
    kind = hashlib.sha256(flags_line.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / f"{platform.machine()}-{kind}"))


_CPUINFO = pathlib.Path("/proc/cpuinfo")


def _on_cpu() -> bool:
    """Tells whether JAX will run on the CPU, without making it start its devices."""
    if platforms := jax.config.jax_platforms:
        return platforms == "cpu"
    tpu = importlib.util.find_spec("libtpu") and (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")  # else it is there to compile for one
    )
    return not tpu and not importlib.util.find_spec("jax_plugins")


def join_processes(address: str | None, count: int | None, number: int | None) -> None:
    """Connects this process to the others; exits with one paragraph where that fails.

    Args:
      address: HOST:PORT of process 0; None, as for the others, takes what the cluster tells.
      count: how many processes there are.
      number: which this is, from 0.
    """
    try:
        jax.distributed.initialize(address, count, number)
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"The processes can't be connected: {error} Without a TPU pod, Slurm or Open MPI, "
            f"give --coordinator_address, --num_processes and --process_id."
        )


def without_tpu() -> None:
    """Makes libtpu compile without looking for a TPU; must come before JAX starts its devices.

    libtpu lets one process in at a time, for the sake of the TPU, which is not touched here.
    """
    jax.config.update("jax_platforms", "cpu")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
