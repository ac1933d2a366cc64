"""hardware"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

GIB = 2**30


class Chip(NamedTuple):
    """A chip's published numbers: bytes, bf16 FLOP/s, bytes/s, bytes/s sent over all its links."""

    hbm: float
    peak: float
    bandwidth: float
    interconnect: float


# By JAX's name of the kind. Sources: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, and NVIDIA's
# data sheets of the A100, H100 and H200 with NVLink, whose peaks are those without sparsity; both
# give the interconnect's bandwidth for both directions, of which half is here.
CHIPS = {
    "TPU v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * GIB, 918e12, 1640e9, 400e9),
    "NVIDIA A100-SXM4-80GB": Chip(79 * GIB, 312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(79 * GIB, 989e12, 3350e9, 450e9),
    "NVIDIA H200": Chip(139 * GIB, 989e12, 4800e9, 450e9),
}
RESERVED = GIB // 4  # bytes of a TPU's memory that XLA keeps: 15.75 of a v5e's 16 GiB are left
EXAMPLES = ("v5e:4x4", "v4:2x2x4", "v5p:2x2x2", "v6e:2x4", "h100:8", "local")


class Gpu(NamedTuple):
    """What XLA asks of a GPU to compile for it.

    Source: CUDA C++ Programming Guide, compute capabilities; NVIDIA's data sheets.

    Attributes:
      kind: JAX's name.
      capability: compute capability.
      cores: streaming multiprocessors.
      shared: bytes of shared memory of each.
      cache: bytes of the second-level cache.
      ghz: clock rate.
    """

    kind: str
    capability: int
    cores: int
    shared: int
    cache: int
    ghz: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 164 * 1024, 40 * 2**20, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 228 * 1024, 50 * 2**20, 1.98),
    "h200": Gpu("NVIDIA H200", 9, 132, 228 * 1024, 50 * 2**20, 1.98),
}
_GPU_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
# XLA chooses between its own products and cuBLAS's by trying them, which takes a GPU.
GPU_COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Target(NamedTuple):
    """What is planned for: devices, a device's memory in bytes, and its numbers, where known."""

    devices: Sequence[jax.Device]
    memory: int
    chip: Chip | None

    @property
    def kind(self) -> str:
        """JAX's name of the devices."""
        return self.devices[0].device_kind


def find_target(topology: str) -> Target:
    """Returns the devices of this machine, for "local", or of a topology.

    That is one of TPUs, such as "v5e:4x4", where a device is a chip with all its cores, or up to
    eight GPUs of a host, such as "h100:8".

    Raises:
      ValueError: there is no such topology.
      ModuleNotFoundError: it takes libtpu or JAX's plug-in for GPUs, which is not installed.
      OSError: libtpu or the plug-in can't be used.
    """
    if topology == "local":
        devices = jax.local_devices()
        stats = devices[0].memory_stats() or {}
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = stats.get("bytes_limit", ram // len(devices))
        return Target(devices, memory, CHIPS.get(devices[0].device_kind))
    if topology.partition(":")[0] in GPUS:
        return _gpus(topology)
    if not _installed("libtpu"):
        raise ModuleNotFoundError(
            f"--topology={topology} takes libtpu, which compiles for TPUs without one: pip install "
            f'"vit_jax[tpu]". For this machine\'s devices: --topology=local.'
        )
    options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
    if re.search(r":1(x1)*$", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        told = str(error).splitlines()[0]
        if not told.startswith(("INVALID_ARGUMENT", "NOT_FOUND")):
            raise OSError(f"libtpu can't be used: {told}") from error
        raise ValueError(
            f"--topology={topology} is unknown: write one like {', '.join(EXAMPLES)}. ({told})"
        ) from error
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        known = ", ".join(CHIPS)
        raise ValueError(f"The memory of a {devices[0].device_kind} is unknown, unlike {known}'s.")
    return Target(devices, int(chip.hbm) - RESERVED, chip)


def _gpus(topology: str) -> Target:
    match = re.fullmatch(r"(\w+):([1-8])", topology)
    if match is None:
        name = topology.partition(":")[0]
        raise ValueError(f"--topology={topology}: write {name}:1 to {name}:8, GPUs of one host.")
    if not any(map(_installed, _GPU_PLUGINS)):
        raise ModuleNotFoundError(
            f"--topology={topology} takes JAX's plug-in for GPUs, which compiles for them without "
            f'one: pip install "vit_jax[cuda]". For this machine\'s devices: --topology=local.'
        )
    gpu, count = GPUS[match[1]], int(match[2])
    chip = CHIPS[gpu.kind]
    config = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: {48 * 1024} shared_memory_per_core: {gpu.shared}
          shared_memory_per_block_optin: {gpu.shared - 1024}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          core_count: {gpu.cores} fpus_per_core: {128 if gpu.capability >= 9 else 64}
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {gpu.cache}
          clock_rate_ghz: {gpu.ghz} device_memory_size: {chip.hbm}
          cuda_compute_capability {{ major: {gpu.capability} }}
        }}
        platform_name: "CUDA" device_description_str: "{gpu.kind}"
        dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
    """
    try:
        devices = topologies.get_topology_desc(
            platform="cuda", target_config=config, topology=f"1x1x{count}"
        ).devices
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        told = str(error).splitlines()[0]
        raise OSError(f"JAX's plug-in for GPUs can't be used: {told}") from error
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))  # that JAX takes
    return Target(devices, int(share * chip.hbm), chip)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package it would be in
        return False


def roofline(flops: float, moved: float, sent: float, chip: Chip) -> dict[str, float]:
    """Returns the seconds that the parts of a step take, and `step`, the longest.

    The parts overlap at best (Williams et al. 2009, "Roofline"), and no program reaches the peaks:
    a step takes longer.

    Args:
      flops, moved, sent: of a step and device: operations, bytes of memory, bytes sent to others.
      chip: what the device can do.
    """
    parts = {
        "compute": flops / chip.peak,
        "memory": moved / chip.bandwidth,
        "interconnect": sent / chip.interconnect,
    }
    return {**parts, "step": max(parts.values())}
