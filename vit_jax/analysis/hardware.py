"""Devices to compile for: this machine's, or TPUs and GPUs that need not be there."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from vit_jax.common.repository import install_command
from vit_jax.training.device_memory import device_memory

GIB = 2**30


class Chip(NamedTuple):
    """A chip's published numbers.

    Attributes:
      memory: bytes.
      peak_flops: bfloat16 operations a second.
      memory_bandwidth: bytes a second.
      interconnect_bandwidth: bytes a second that it sends over all its links together.
      reserved: bytes of a TPU's memory that XLA keeps, as its messages show.
    """

    memory: float
    peak_flops: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    reserved: float = GIB / 4


# By JAX's name of the kind. Sources: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, and NVIDIA's
# data sheets of the A100, H100 and H200 with NVLink. NVIDIA's peaks are those without sparsity.
# Both publish the interconnect's bandwidth for two directions; half of it is here. Of the TPU v3,
# JAX's device is a core, half of a chip (cloud.google.com/tpu/docs/v3; its links: Jouppi et al.
# 2020, "A domain-specific supercomputer for training deep neural networks").
CHIPS = {
    "TPU v3": Chip(16 * GIB, 61.5e12, 450e9, 164e9, reserved=0.52 * GIB),
    "TPU v4": Chip(32 * GIB, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * GIB, 918e12, 1640e9, 400e9),
    "NVIDIA A100-SXM4-80GB": Chip(79 * GIB, 312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(79 * GIB, 989e12, 3350e9, 450e9),
    "NVIDIA H200": Chip(139 * GIB, 989e12, 4800e9, 450e9),
}
EXAMPLES = ("v5e:4x4", "v4:2x2x4", "v5p:2x2x2", "v6e:2x4", "v3:4x4", "h100:8", "local")


class Gpu(NamedTuple):
    """What XLA has to know of a GPU to compile for it.

    Source: CUDA C++ Programming Guide, compute capabilities; NVIDIA's data sheets.

    Attributes:
      kind: JAX's name.
      capability: compute capability, its major number.
      cores: streaming multiprocessors.
      shared_memory: bytes, of each multiprocessor.
      l2_cache: bytes.
      clock_rate: GHz.
    """

    kind: str
    capability: int
    cores: int
    shared_memory: int
    l2_cache: int
    clock_rate: float


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 164 * 1024, 40 * 2**20, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 228 * 1024, 50 * 2**20, 1.98),
    "h200": Gpu("NVIDIA H200", 9, 132, 228 * 1024, 50 * 2**20, 1.98),
}
_GPU_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
# XLA chooses between its own matmuls and cuBLAS's by timing both, for which it needs a GPU.
GPU_COMPILER_OPTIONS: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}


class Topology(NamedTuple):
    """Devices of one kind to compile for.

    Attributes:
      devices: real ones, or descriptions that JAX compiles for.
      memory: bytes that a program may use of one device.
      chip: the device's published numbers; None if they are not in `CHIPS`.
    """

    devices: Sequence[jax.Device]
    memory: int
    chip: Chip | None

    @property
    def kind(self) -> str:
        """JAX's name of the devices."""
        return self.devices[0].device_kind


def find_topology(name: str) -> Topology:
    """Returns the devices that a name stands for.

    Args:
      name: "local", for this machine's devices; TPUs, such as "v5e:4x4", where a device is a chip
        with all its cores, but a core of a v3; or up to eight GPUs of one host, such as "h100:8".

    Raises:
      ValueError: there is no such topology, or the memory of this machine's devices is unknown.
      ModuleNotFoundError: libtpu, or JAX's plug-in for GPUs, is needed and not installed.
      OSError: libtpu or the plug-in can't be used.
    """
    if name == "local":
        devices = jax.local_devices()
        kind, memory = devices[0].device_kind, device_memory()
        chip = CHIPS.get(kind)
        if memory is None and chip is not None:
            memory = int(chip.memory)
        if memory is None:
            raise ValueError(
                f"JAX doesn't say how much memory a {kind} has. Leave XLA_PYTHON_CLIENT_ALLOCATOR "
                f"out, or name devices with --topology."
            )
        return Topology(devices, memory, chip)
    if name.partition(":")[0] in GPUS:
        return _find_gpus(name)
    return _find_tpus(name)


def _find_tpus(name: str) -> Topology:
    unknown = f"--topology={name} is unknown: write one like {', '.join(EXAMPLES)}."
    if name.partition(":")[0] not in {example.partition(":")[0] for example in EXAMPLES}:
        raise ValueError(unknown)
    if not _installed("libtpu"):
        raise ModuleNotFoundError(
            f"--topology={name} takes libtpu, which compiles for TPUs without one: "
            f"{install_command('tpu')}. For this machine's devices: --topology=local."
        )
    options: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    if re.search(r":1(x1)*$", name):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices: Any = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        if not message.startswith(("INVALID_ARGUMENT", "NOT_FOUND")):
            raise OSError(f"libtpu can't be used: {message}") from error
        raise ValueError(f"{unknown} ({message})") from error
    chip = CHIPS[devices[0].device_kind]
    return Topology(devices, int(chip.memory - chip.reserved), chip)


def _find_gpus(name: str) -> Topology:
    match = re.fullmatch(r"(\w+):([1-8])", name)
    if match is None:
        kind = name.partition(":")[0]
        raise ValueError(f"--topology={name}: write {kind}:1 to {kind}:8, GPUs of one host.")
    if not any(map(_installed, _GPU_PLUGINS)):
        raise ModuleNotFoundError(
            f"--topology={name} takes JAX's plug-in for GPUs, which compiles for them without "
            f"one: {install_command('cuda')}. For this machine's devices: --topology=local."
        )
    gpu, count = GPUS[match[1]], int(match[2])
    chip = CHIPS[gpu.kind]
    config = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          shared_memory_per_block: {48 * 1024} shared_memory_per_core: {gpu.shared_memory}
          shared_memory_per_block_optin: {gpu.shared_memory - 1024}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          core_count: {gpu.cores} fpus_per_core: {128 if gpu.capability >= 9 else 64}
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {chip.memory_bandwidth:.0f} l2_cache_size: {gpu.l2_cache}
          clock_rate_ghz: {gpu.clock_rate} device_memory_size: {chip.memory}
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
        message = str(error).splitlines()[0]
        raise OSError(f"JAX's plug-in for GPUs can't be used: {message}") from error
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))  # that JAX allocates
    return Topology(devices, int(share * chip.memory), chip)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would hold it is missing, too
        return False


def roofline(
    flops: float, bytes_accessed: float, bytes_sent: float, chip: Chip
) -> dict[str, float]:
    """Returns seconds: of `compute`, `memory` and `interconnect`, and of the `step`, the longest.

    At best the three overlap (Williams et al. 2009, "Roofline"). No program reaches the peaks, so a
    step takes longer.

    Args:
      flops: operations of one device in a step.
      bytes_accessed: bytes that it reads from and writes to its memory.
      bytes_sent: bytes that it sends to other devices.
      chip: what the device can do.
    """
    seconds = {
        "compute": flops / chip.peak_flops,
        "memory": bytes_accessed / chip.memory_bandwidth,
        "interconnect": bytes_sent / chip.interconnect_bandwidth,
    }
    return {**seconds, "step": max(seconds.values())}
