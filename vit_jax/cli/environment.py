"""The process that a command runs in: messages, devices, memory, compiled programs, others."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import importlib.util
import logging
import os
import pathlib
import pkgutil
import platform
import re
import shutil
import sys
from typing import NoReturn, TextIO, cast

import jax
from jax.extend.backend import register_backend_factory

from vit_jax.cli.lost_process import CONNECTING
from vit_jax.cli.streams import GuardedStream
from vit_jax.common.memory import is_out_of_memory
from vit_jax.common.names import printable
from vit_jax.common.repository import install_command

logger = logging.getLogger(__name__)

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_NVIDIA_DRIVER = pathlib.Path("/proc/driver/nvidia")


class _Lines(logging.Formatter):
    """Writes a message with what a name in it may tell a terminal as `printable` writes it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def start_logging() -> None:
    """Prints on stderr what the package reports, and the warnings of all libraries.

    What is printed after the reader of stderr has ended is lost, and raises no error. Ctrl-C in
    `COMMAND 2>&1 | tee log` ends `tee`, too, and a run still has to draw its bar and save.
    """
    if not isinstance(sys.stderr, GuardedStream):
        sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda error: None))
    logging.basicConfig(level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Lines("%(message)s"))
    logging.getLogger("vit_jax").setLevel(logging.INFO)
    logging.getLogger("matplotlib").addFilter(_is_not_of_cache)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself


def _is_not_of_cache(record: logging.LogRecord) -> bool:
    """Drops what matplotlib says without a home folder: it takes a temporary one for its cache."""
    return not re.match("mkdir -p failed|Matplotlib created a temp", record.getMessage())


def start_devices() -> None:
    """Starts JAX's devices. Exits with one paragraph if they can't be used.

    Without a TPU, libtpu is not started: it would wait for one, and print errors. If an NVIDIA GPU
    of this machine can't be used, JAX runs on the CPU, and one warning says why, unless
    JAX_PLATFORMS chose the devices.
    """
    is_chosen = jax.config.values["jax_platforms"]
    if not is_chosen and not _has_tpu():
        register_backend_factory("tpu", _no_tpu)  # in place of libtpu's
    should_have_gpu = not is_chosen and _has_nvidia_gpu()
    reasons: list[str] = []

    def take_reason(record: logging.LogRecord) -> bool:
        """Drops JAX's own messages, which don't say what to install, but keeps the reason."""
        message = record.getMessage()
        if not re.match("An NVIDIA GPU|CUDA backend|Jax plugin configuration error", message):
            return True
        reasons.append(str(record.exc_info[1]) if record.exc_info else message)
        return False

    if should_have_gpu:
        logging.getLogger("jax._src.xla_bridge").addFilter(take_reason)
    try:
        backend = jax.default_backend()
    except Exception as error:  # plug-ins raise anything, and JAX an AssertionError without a text
        if is_out_of_memory(error):
            raise
        if not should_have_gpu:
            sys.exit(_no_devices(error))
        reasons.append(str(error).partition(" (you may need")[0])  # JAX's own advice
        jax.config.update("jax_platforms", "cpu")
        backend = jax.default_backend()
    if should_have_gpu and backend == "cpu":
        if not any("cuda" in name for name in _plugins()):
            reasons = ["JAX's plug-in for NVIDIA GPUs is not installed"]
        logger.warning(
            "This machine has an NVIDIA GPU, but JAX runs on the CPU: %s. To use the GPU, run "
            "`%s`, or with a driver older than 580 `%s`. JAX_PLATFORMS=cpu chooses the CPU.",
            next(iter(reasons), "this process sees no /dev/nvidia0").rstrip(". "),
            install_command("cuda"),
            install_command("cuda12"),
        )


def _no_devices(error: Exception) -> str:
    """Returns a paragraph on devices that can't be used, and on what to set."""
    asked = jax.config.values["jax_platforms"]
    reason = re.split(r" \((?:set|you may need)|\n", str(error))[0].rstrip(". ")  # JAX's advice
    reason = reason or f"this machine has none of JAX_PLATFORMS={asked}"
    return (
        f"JAX can't start its devices: {reason}. JAX_PLATFORMS=cpu chooses the CPU; without "
        f"JAX_PLATFORMS, JAX takes the best device that it finds. For an NVIDIA GPU, JAX needs its "
        f"driver and `{install_command('cuda')}`; for a TPU, `{install_command('tpu')}`."
    )


def _no_tpu() -> NoReturn:
    raise RuntimeError("no TPU here")


def _plugins() -> list[str]:
    """Returns the names of JAX's plug-ins for GPUs, such as xla_cuda13."""
    spec = importlib.util.find_spec("jax_plugins")
    places = spec.submodule_search_locations if spec else []
    return [module.name for module in pkgutil.iter_modules(places)]


def _has_nvidia_gpu() -> bool:
    return _NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None


def _has_tpu() -> bool:
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


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


def prefer_cublas() -> None:
    """Makes XLA compute matmuls on NVIDIA GPUs by cuBLAS alone, if JAX runs on one.

    cuBLAS adds the bias and computes GELU in the kernel of the matmul. XLA's own kernels, which it
    takes where one is faster alone, leave both to kernels of their own. On an H200, a training step
    of B/16 in bfloat16 was 3 % faster with cuBLAS alone. `--xla_gpu_enable_triton_gemm=true` in
    XLA_FLAGS undoes it. Call it before JAX starts its devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _has_nvidia_gpu() and not _on_cpu() and "xla_gpu_enable_triton_gemm" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()


def keep_programs() -> None:
    """Keeps compiled programs for the next start, in ~/.cache/vit_jax.

    JAX_COMPILATION_CACHE_DIR names another folder. JAX_ENABLE_COMPILATION_CACHE=false keeps none,
    and so does a user without a home folder, or without the right to write there. A program for a
    CPU uses the instructions that it has, so every kind of CPU gets a folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():  # there is no home folder
        return
    try:
        match = re.search(r"^(flags|Features)\s*:.*", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        match = None
    instructions = match[0] if match else platform.processor()
    kind = hashlib.sha256(instructions.encode()).hexdigest()[:8]
    folder = cache / "vit_jax" / f"{platform.machine()}-{kind}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _on_cpu() -> bool:
    """Returns True if JAX will run on the CPU. Doesn't start JAX's devices."""
    if platforms := jax.config.values["jax_platforms"]:
        return platforms == "cpu"
    tpu = importlib.util.find_spec("libtpu") and _has_tpu()
    return not tpu and not any("cuda" not in name or _has_nvidia_gpu() for name in _plugins())


def join_processes(
    address: str | None, count: int | None, number: int | None, timeout: int
) -> None:
    """Connects this process to the others; exits with one paragraph if that fails.

    None for an argument takes what the cluster's environment says.

    Args:
      address: HOST:PORT of process 0.
      count: the number of processes.
      number: the number of this process, from 0.
      timeout: seconds without a heartbeat after which a process is lost, and for which one that has
        ended waits for the others.
    """
    logger.info(
        "Waiting for %s at %s, for %d minutes at most.",
        "the other processes" if count is None else f"all {count} processes",
        address or "the address that the cluster gives",
        CONNECTING // 60,
    )
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            initialization_timeout=CONNECTING,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
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
