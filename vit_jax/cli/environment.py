"""The process that a command runs in: memory, compiled programs, other processes."""

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

_CPUINFO = pathlib.Path("/proc/cpuinfo")


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, if JAX runs on the CPU.

    A training step on a CPU allocates and frees the same large arrays again and again. A third of
    its time went into giving them back to the system and getting them again. On the host of a GPU
    the same settings stalled training: there, nothing is changed. Call it before JAX starts its
    threads. With other C libraries it has no effect.
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
    """Keeps compiled programs for the next start, in ~/.cache/vit_jax.

    JAX_COMPILATION_CACHE_DIR names another folder. JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    A program for a CPU uses the instructions that it has, so every kind of CPU gets a folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax"
    try:
        match = re.search(r"^(flags|Features)\s*:.*", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        match = None
    instructions = match[0] if match else platform.processor()
    kind = hashlib.sha256(instructions.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / f"{platform.machine()}-{kind}"))


def _on_cpu() -> bool:
    """Returns True if JAX will run on the CPU. Doesn't start JAX's devices."""
    if platforms := jax.config.values["jax_platforms"]:
        return platforms == "cpu"
    tpu = importlib.util.find_spec("libtpu") and (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")  # without a TPU, libtpu only compiles
    )
    return not tpu and not importlib.util.find_spec("jax_plugins")


def join_processes(address: str | None, count: int | None, number: int | None) -> None:
    """Connects this process to the others; exits with one paragraph if that fails.

    None for an argument takes what the cluster's environment says.

    Args:
      address: HOST:PORT of process 0.
      count: the number of processes.
      number: the number of this process, from 0.
    """
    try:
        jax.distributed.initialize(address, count, number)
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"The processes can't be connected: {error} Without a TPU pod, Slurm or Open MPI, "
            f"give --coordinator_address, --num_processes and --process_id."
        )


def without_tpu() -> None:
    """Makes libtpu compile without looking for a TPU. Call it before JAX starts its devices.

    libtpu admits one process at a time, to protect the TPU. Here no TPU is used.
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
