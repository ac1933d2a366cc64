"""What a compiled program costs, read from its text: FLOPs, bytes accessed, collectives.

XLA's own `cost_analysis` counts the body of a loop once, counts elementwise operations and random
numbers as FLOPs, and counts accesses to a chip's fast memory.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from vit_jax.analysis.hlo_flops import instruction_flops
from vit_jax.analysis.hlo_text import (
    Computation,
    Instruction,
    array_bytes,
    arrays,
    parse,
    trip_count,
)


class Collective(NamedTuple):
    """All collectives of one kind in a step.

    Attributes:
      count: number of instructions.
      bytes: bytes of their results.
      sent: bytes that one device sends.
    """

    count: int  # type: ignore[assignment]  # hides a method of tuples, which nothing calls
    bytes: float
    sent: float


class Costs(NamedTuple):
    """What one device does in one run of a program.

    Attributes:
      flops: multiplications and additions of matmuls and convolutions, counted as `vit_jax.cost`
        does, but with those that are computed twice; None if a library computes something whose
        FLOPs the text doesn't show.
      bytes_accessed: bytes that operations read from and write to the device's memory. A fusion
        is one operation. Arrays in fast memory (a memory space of its own) are not counted.
      collectives: their costs by kind, such as "all-reduce".
    """

    flops: float | None
    bytes_accessed: float
    collectives: dict[str, Collective]


# Bytes that each of n devices sends for a result of one byte, in the algorithms that send least:
# Chan et al. 2007, "Collective communication", table 1. The result of a reduce-scatter is a
# device's part.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
# Operations that access no memory, or whose computations are counted instead.
_NO_ACCESS = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
)
# Asynchronous copies: which of the first two arrays in their shape is the result.
_COPIES = {"copy-start": 0, "slice-start": 1}


def count_costs(text: str, devices: int) -> Costs:
    """Returns the costs of a compiled program.

    Args:
      text: the program's HLO, as `jax.stages.Compiled.as_text` returns it.
      devices: number of devices that it runs on.
    """
    computations, entry = parse(text)

    @functools.cache
    def total_of(name: str, fused: bool) -> collections.Counter:
        """Sums up a computation; inside a fusion, no memory is accessed."""
        total: Any = collections.Counter()  # of integers and of floats
        computation = computations.get(name, {})
        for instruction in computation.values():
            kind = instruction.kind
            collective = kind.removesuffix("-start")
            if collective in _SENT:
                group = _group_size(instruction.rest, devices)
                size = _result_bytes(instruction.shape, kind, group)
                total[collective, "count"] += 1
                total[collective, "bytes"] += size
                total[collective, "sent"] += size * _SENT[collective](group)
            flops = instruction_flops(instruction, computation)
            total["flops"] += flops or 0
            total["unknown"] += flops is None
            if not fused and kind not in _NO_ACCESS and not kind.endswith("-done"):
                total["bytes_accessed"] += _bytes_accessed(instruction, computation, computations)
            repeats, called = 1, dict(instruction.called)
            if kind == "while":
                repeats = trip_count(computations, called["condition"], called["body"])
            for key, inner in called.items():
                if key == "to_apply" and kind != "call":
                    continue  # how a reduction combines two numbers
                for part, value in total_of(inner, fused or kind == "fusion").items():
                    total[part] += value * repeats
        return total

    total = total_of(entry, False)
    found = {
        kind: Collective(*(total[kind, part] for part in Collective._fields))
        for kind in _SENT
        if total[kind, "count"]
    }
    flops = None if total["unknown"] else float(total["flops"])
    return Costs(flops, float(total["bytes_accessed"]), found)


class InstructionCost(NamedTuple):
    """What one instruction of a program costs each time it runs.

    Attributes:
      what: the operation of the source, such as
        "jvp(VisionTransformer)/Transformer/encoderblock_0/MlpBlock_0/Dense_0/dot_general", or "".
      flops, bytes: see `Costs`.
    """

    what: str
    flops: float | None
    bytes: float


def instruction_costs(text: str) -> dict[str, InstructionCost]:
    """Returns the cost of every instruction that runs by itself: of a fusion, not of its parts.

    Args:
      text: the program's HLO, as `jax.stages.Compiled.as_text` returns it.
    """
    computations, _ = parse(text)
    fused = {
        inner
        for computation in computations.values()
        for instruction in computation.values()
        if instruction.kind == "fusion"
        for _, inner in instruction.called
    }

    def flops_of(instruction, computation):
        inside = dict(instruction.called).get("calls") if instruction.kind == "fusion" else None
        if inside is None:
            return instruction_flops(instruction, computation)
        parts = [flops_of(x, computations[inside]) for x in computations[inside].values()]
        return None if None in parts else sum(parts)

    costs = {}
    for name, computation in computations.items():
        if name in fused:
            continue
        for key, instruction in computation.items():
            if instruction.kind in _NO_ACCESS:
                continue
            what = re.search(r'op_name="([^"]*)"', instruction.rest)
            costs[key] = InstructionCost(
                what[1] if what else "",
                flops_of(instruction, computation),
                _bytes_accessed(instruction, computation, computations),
            )
    return costs


def _bytes_accessed(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation]
) -> float:
    """Returns the bytes that an operation reads and writes.

    Of an array that a fusion only slices, the slices count. Of one that it updates in place, the
    update counts.
    """
    if instruction.kind in _COPIES:
        return _bytes_copied(instruction)
    read = [
        _in_slow_memory(computation[name].shape) if name in computation else 0
        for name in instruction.operands
    ]
    shape = instruction.shape
    if instruction.library_call:  # its last result is workspace
        shape = re.sub(r", [su]8\[\d+\]\{\d\}\)$", ")", shape)
    written = _in_slow_memory(shape)
    if instruction.kind != "fusion":
        return sum(read) + written
    inside = computations[dict(instruction.called)["calls"]]
    operand_numbers = {
        name: int(x.rest.partition(")")[0]) for name, x in inside.items() if x.kind == "parameter"
    }
    for name, number in operand_numbers.items():
        users = [x for x in inside.values() if name in x.operands]
        if (
            len(users) == 1
            and users[0].kind == "dynamic-update-slice"
            and users[0].operands[0] == name
        ):
            written -= read[number] - sum(array_bytes(inside[users[0].operands[1]].shape))
            read[number] = 0
        read[number] = min(read[number], _bytes_sliced(name, inside, computations))
    return sum(read) + written


def _bytes_sliced(name: str, inside: Computation, computations: dict[str, Computation]) -> float:
    """Returns the bytes of the slices that a fusion takes of an array.

    It is infinite if the fusion, or one within it, uses the array in another way.
    """
    total = 0.0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.kind == "fusion":
            inner = computations[dict(user.called)["calls"]]
            for key, x in inner.items():
                number = int(x.rest.partition(")")[0]) if x.kind == "parameter" else None
                if number is not None and user.operands[number] == name:
                    total += _bytes_sliced(key, inner, computations)
        elif user.kind == "dynamic-slice" and user.operands[0] == name:
            total += sum(array_bytes(user.shape))
        else:
            return math.inf
    return total


def _in_slow_memory(shape: str) -> float:
    return sum(array_bytes(shape, slow_memory_only=True))


def _bytes_copied(instruction: Instruction) -> float:
    """Returns the bytes that a copy reads from and writes to the slow memory.

    Its shape names both ends. As much is read as written.
    """
    ends = arrays(instruction.shape)[:2]
    (size,) = array_bytes(ends[_COPIES[instruction.kind]])
    return size * sum(bool(array_bytes(end, slow_memory_only=True)) for end in ends)


def _result_bytes(shape: str, kind: str, group: int) -> float:
    """Returns the bytes of a collective's result; asynchronous kinds have more in their shape."""
    sizes = array_bytes(shape)
    if kind == "all-gather-start":  # (operands, results): a result is `group` operands
        return sum(sizes) * group / (group + 1)
    if kind == "collective-permute-start":  # (operand, result, contexts)
        return max(sizes)
    return sum(sizes)


def _group_size(attributes: str, devices: int) -> int:
    """Returns how many devices take part in one collective."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
