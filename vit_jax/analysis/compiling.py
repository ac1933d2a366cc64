"""Compiles the train step of a configuration, and reads what it needs from the compiled program."""

from __future__ import annotations

import math
import re
import time
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vit_jax.analysis import hlo
from vit_jax.analysis.hardware import GPU_COMPILER_OPTIONS, Topology
from vit_jax.training import parallel, setup
from vit_jax.training.memory import bytes_per_device, for_device, step_arguments


class Program(NamedTuple):
    """A compiled train step. All numbers are those of one step on one device.

    Attributes:
      seconds: that compiling took.
      arguments: bytes of the state and of the device's part of the batch.
      temporaries: bytes of activations, gradients and all else that lives within a step.
      total: bytes of arguments, temporaries, results that reuse no argument, and the program.
      fits: True if `total` is not more than the device's memory. Else the compiler may have
        stopped, and what follows is None.
      flops: see `hlo.Costs`. Where a library computes something whose FLOPs the program doesn't
        show, all operations as XLA counts them.
      bytes_accessed, collectives: see `hlo.Costs`.
    """

    seconds: float
    arguments: int
    temporaries: int
    total: int
    fits: bool
    flops: float | None = None
    bytes_accessed: float | None = None
    collectives: dict[str, hlo.Collective] | None = None


def compile_step(
    config: ConfigDict, topology: Topology, *, num_classes: int, total_steps: int
) -> Program:
    """Compiles the train step of a configuration for some devices.

    Args:
      config: see `config.defaults.default`.
      topology: the devices.
      num_classes: number of classes of the head.
      total_steps: length of the run.
    """
    config = for_device(config, topology.devices[0])
    run = setup.set_up(config, num_classes=num_classes, total_steps=total_steps)
    program = parallel.make_program(
        config, update=run.update, key=run.key, devices=topology.devices
    )
    state, batch = step_arguments(config, run)
    return compile_lowered(
        program.lower(state, batch),
        topology,
        arguments=sum(bytes_per_device(config, state, batch, len(topology.devices))),
        accumulate_steps=config.accumulate_steps or 1,
    )


def compile_lowered(
    lowered: jax.stages.Lowered, topology: Topology, *, arguments: int, accumulate_steps: int
) -> Program:
    """Compiles a lowered step.

    Args:
      lowered: what `Parallel.lower` returns.
      topology: the devices that it was lowered for.
      arguments: bytes of the step's arguments on one device.
      accumulate_steps: micro-batches of a step.
    """
    for_gpu = topology.devices[0].platform == "gpu" != jax.default_backend()
    start = time.monotonic()
    try:
        program = lowered.compile(GPU_COMPILER_OPTIONS if for_gpu else None)
    except jax.errors.JaxRuntimeError as error:
        if (temporaries := temporaries_in(str(error))) is None:
            raise
        total = arguments + temporaries
        return Program(time.monotonic() - start, arguments, temporaries, total, fits=False)
    seconds = time.monotonic() - start
    memory: Any = program.memory_analysis()
    text: Any = program.as_text()
    costs = hlo.count_costs(text, len(topology.devices))
    flops = costs.flops
    if flops is None:  # XLA counts the body of the loop over micro-batches once
        flops = (program.cost_analysis() or {}).get("flops", math.nan) * accumulate_steps
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return Program(
        seconds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        total,
        fits=total <= topology.memory,
        flops=flops,
        bytes_accessed=costs.bytes_accessed,
        collectives=costs.collectives,
    )


def temporaries_in(message: str) -> int | None:
    """Returns the bytes of temporaries that XLA names in a message that they don't fit.

    It is None if the message says something else.
    """
    match = re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", message)
    match = match or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return match and int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))
