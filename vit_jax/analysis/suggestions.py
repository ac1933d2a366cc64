"""Looks for the largest batch that fits, and for other changes that make a train step fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.analysis.compiling import Program
from vit_jax.analysis.hardware import Topology
from vit_jax.config.keys import with_changes
from vit_jax.training.fit_memory import changes_with_same_results


def suggest_changes(
    config: ConfigDict,
    topology: Topology,
    program: Program,
    state_bytes: int,
    compile_config: Callable[[ConfigDict], Program] | None = None,
) -> list[dict[str, Any]]:
    """Returns the largest batch that fits and, if the step doesn't fit, other ways to make it fit.

    Args:
      config: the run's configuration.
      topology: the devices.
      program: the compiled step.
      state_bytes: bytes of the state on one device.
      compile_config: config -> program, to try each change; None if nothing is to be compiled.

    Returns:
      For each suggestion: `change`, {key of the configuration: value}; `total_bytes`, which a
      device then needs, None if unknown; `verified`, True if it was compiled.
    """
    multiple = len(topology.devices) * config.accumulate_steps
    total: float | None = None
    if compile_config is None:
        needed = [(config.batch_size, program.total)]
        batch = estimate_batch(needed, state_bytes, topology.memory, multiple)
    else:
        best = find_largest_batch(
            lambda size: compile_config(with_changes(config, {"batch_size": size})),
            (config.batch_size, program),
            fixed=state_bytes,
            memory=topology.memory,
            multiple=multiple,
        )
        batch, total = (best[0], best[1].total) if best else (0, None)
    found = [_suggestion({"batch_size": batch}, total, compile_config)] if batch else []
    if program.fits:
        return found
    for change, total in _ways_to_fit(config, topology, program, state_bytes):
        if total is not None and total > topology.memory:
            continue
        if compile_config is not None:
            changed = compile_config(with_changes(config, change))
            if not changed.fits:
                continue
            total = changed.total
        found.append(_suggestion(change, total, compile_config))
    return found


def _suggestion(
    change: dict[str, Any], total: float | None, compile_config: Callable | None
) -> dict[str, Any]:
    return {"change": change, "total_bytes": total, "verified": compile_config is not None}


def _ways_to_fit(
    config: ConfigDict, topology: Topology, program: Program, state_bytes: int
) -> Iterable[tuple[dict[str, Any], float | None]]:
    """Yields changes that save memory, each with the estimated total in bytes.

    The total is None for rematerialisation: how much it saves is known after compiling only.
    """
    devices = len(topology.devices)
    sharded = program.total - state_bytes * (1 - 1 / devices)
    for change in changes_with_same_results(config, topology.devices):
        yield change, sharded if "parallel" in change else None
    per_device = config.batch_size // devices
    for steps in range(config.accumulate_steps + 1, per_device + 1):
        total = program.arguments + program.temporaries * config.accumulate_steps / steps
        if per_device % steps == 0 and total <= topology.memory:
            yield {"accumulate_steps": steps}, total
            break


def find_largest_batch(
    compile_at: Callable[[int], Program],
    first: tuple[int, Program],
    *,
    fixed: float,
    memory: int,
    multiple: int,
    tries: int = 3,
) -> tuple[int, Program] | None:
    """Returns the largest batch of those tried that fits, with its program; None if none fits.

    Args:
      compile_at: batch -> its program.
      first: the batch to start from, and its program.
      fixed, memory, multiple: see `estimate_batch`.
      tries: compilations at most.
    """
    programs = dict([first])
    for _ in range(tries):
        needed = [(size, program.total) for size, program in programs.items()]
        guess = estimate_batch(needed, fixed, memory, multiple)
        too_large = min((size for size, p in programs.items() if not p.fits), default=math.inf)
        guess = int(min(guess, too_large - multiple))
        if guess <= 0 or guess in programs:
            break
        programs[guess] = compile_at(guess)
        if programs[guess].fits and programs[guess].total > 0.95 * memory:
            break
    return max(((size, p) for size, p in programs.items() if p.fits), default=None)


def estimate_batch(
    needed: Sequence[tuple[int, float]], fixed: float, memory: float, multiple: int
) -> int:
    """Returns the largest batch that should fit; 0 if not even the smallest does.

    The memory that a step needs is close to linear in its batch.

    Args:
      needed: (batch, bytes on a device) of compiled programs. The line goes through the last two.
      fixed: bytes that don't depend on the batch; the second point if there is one program only.
      memory: bytes of a device.
      multiple: the batch must be a multiple of it.
    """
    size, total = needed[-1]
    other_size, other_total = 0, fixed
    if len(needed) > 1 and needed[-2][0] != size:
        other_size, other_total = needed[-2]
    slope = (total - other_total) / (size - other_size)
    if slope <= 0:
        return size // multiple * multiple
    return max(0, math.floor((memory - total) / slope + size) // multiple * multiple)
