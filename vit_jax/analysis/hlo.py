"""hlo"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Collective(NamedTuple):
    """All exchanges of one kind in a step: how many, bytes of the arrays, bytes a device sends."""

    count: int
    bytes: float
    sent: float


class Counts(NamedTuple):
    """What one device does in one run of a program.

    Attributes:
      flops: multiplications and additions of matrix products and convolutions, as `vit_jax.cost`
        counts them, those of attention's derivative that cuDNN computes again too; None where a
        library computes some that the text doesn't describe.
      moved: bytes that operations read from and write to the device's memory; what is fused is
        one operation, and what XLA keeps in fast memory (a memory space of its own) isn't counted.
      collectives: exchanges with other devices by kind.
    """

    flops: float | None
    moved: float
    collectives: dict[str, Collective]


# Bytes each of n devices sends for an array of one byte (of the whole result; of each device's
# part of it for a reduce-scatter), in the algorithms that send least: Chan et al. 2007, "Collective
# communication", table 1.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_FREE = (
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
# Asynchronous copies: which of the two arrays that their shape begins with is the result.
_TRANSFERS = {"copy-start": 0, "slice-start": 1}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(\w+)=(?:%([\w.-]+)|\{(%[^}]*)\})")


class _Instruction(NamedTuple):
    shape: str
    kind: str
    rest: str  # operands and attributes

    @property
    def library(self) -> str:
        """What computes it where that is a library's function, such as "__cublas$gemm"; else ""."""
        match = re.search(r'custom_call_target="(__(?:cublas|cudnn|onednn)[^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])


def counts(text: str, devices: int) -> Counts:
    """Returns what a compiled program does.

    Args:
      text: of its HLO, as `jax.stages.Compiled.as_text` gives it.
      devices: that it runs on.
    """
    programs, entry = _parsed(text)

    @functools.cache
    def of(name: str, fused: bool) -> collections.Counter:
        total = collections.Counter()
        instructions = programs.get(name, {})
        for instruction in instructions.values():
            kind = instruction.kind
            base = kind.removesuffix("-start")
            if base in _SENT:
                group = _group(instruction.rest, devices)
                size = _exchanged(instruction.shape, base if base != kind else None, group)
                total[base, "count"] += 1
                total[base, "bytes"] += size
                total[base, "sent"] += size * _SENT[base](group)
            if kind in _PRODUCTS:
                total["flops"] += _PRODUCTS[kind](instruction, instructions)
            if kind == "custom-call":
                flops = _library_flops(instruction, instructions)
                total["flops"] += flops or 0
                total["unknown"] += flops is None
            if not fused and kind not in _FREE and not kind.endswith("-done"):
                total["moved"] += _moved(instruction, instructions, programs)
            loops = 1
            called = dict(_called(instruction))
            if kind == "while":
                loops = _trips(programs, called["condition"], called["body"])
            for key, inner in called.items():
                if key == "to_apply" and kind != "call":
                    continue  # what a reduction does to two numbers
                for part, value in of(inner, fused or kind == "fusion").items():
                    total[part] += value * loops
        return total

    found = of(entry, False)
    exchanges = {
        kind: Collective(*(found[kind, part] for part in Collective._fields))
        for kind in _SENT
        if found[kind, "count"]
    }
    flops = None if found["unknown"] else float(found["flops"])
    return Counts(flops, float(found["moved"]), exchanges)


def _parsed(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Returns the computations of a program, name -> instructions by name, and the first's name."""
    programs, name, entry = {}, None, ""
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            name = header[2]
            programs[name] = {}
            entry = name if header[1] else entry
        elif name is not None and (match := _INSTRUCTION.match(line)):
            programs[name][match[1]] = _Instruction(*match.groups()[1:])
    return programs, entry


def _called(instruction: _Instruction) -> list[tuple[str, str]]:
    """Returns the computations that an instruction runs, each with the attribute that names it."""
    attributes = instruction.rest.partition(")")[2]
    found = []
    for key, one, several in _CALLED.findall(attributes):
        names = [one] if one else re.findall(r"%([\w.-]+)", several)
        found += [(key if one else f"{key}_{i}", name) for i, name in enumerate(names)]
    return found


def _trips(programs: dict[str, dict[str, _Instruction]], condition: str, body: str) -> int:
    """Returns how often a loop runs: its counter goes from 0 to the constant of its condition.

    The counter is what the condition takes from the loop's tuple. Where XLA unrolled a loop, a body
    adds more than 1 to it.
    """
    bounds = _constants(programs[condition].values())
    for instruction in programs[condition].values():
        for key, name in _called(instruction):
            bounds += _constants(programs[name].values()) if key == "calls" else []
    taken = [x for x in programs[condition].values() if x.kind == "get-tuple-element"]
    inside, steps = programs[body], []
    *_, results = inside.values()
    if taken and results.kind == "tuple":
        index = int(re.search(r"index=(\d+)", taken[0].rest)[1])
        counter = inside.get(results.operands[index])
        steps = _constants(inside[x] for x in counter.operands if x in inside) if counter else []
    return -(-max(bounds, default=1) // max(steps, default=1))


def _constants(instructions: Iterable[_Instruction]) -> list[int]:
    """Returns the whole numbers among instructions."""
    return [
        int(x.rest.partition(")")[0])
        for x in instructions
        if x.kind == "constant" and re.match(r"[su]\d+\[\]", x.shape)
    ]


def _dot(instruction: _Instruction, others: dict[str, _Instruction]) -> int:
    """Of XLA's own product or cuBLAS's, whose axes are attributes or JSON."""
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.rest)[1]
    left = _dims(others[instruction.operands[0]].shape)
    inner = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2 * math.prod(_dims(instruction.shape)) * inner


def _convolution(instruction: _Instruction, others: dict[str, _Instruction]) -> int:
    """As XLA counts: multiplications with padding and with the zeros of a dilation are left out.

    That matters for TPUs, where a batch of matrix products becomes a convolution with dilation.
    cuDNN's derivatives are told as the convolution they are of.
    """
    first, second = (_dims(others[name].shape) for name in instruction.operands[:2])
    lhs, rhs, out = first, second, _dims(instruction.shape)
    if "BackwardFilter" in instruction.library:  # of (input, gradient)
        lhs, rhs, out = first, out, second
    elif "BackwardInput" in instruction.library:  # of (gradient, filter)
        lhs, rhs, out = out, second, first
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    window = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = out[labels[3].index("b")] * out[labels[3].index("f")] * rhs[labels[2].index("i")]
    for axis in range(len(labels[1]) - 2):
        pairs *= _valid_pairs(
            *(
                dims[of.index(str(axis))]
                for dims, of in zip((lhs, rhs, out), labels.groups(), strict=True)
            ),
            stride=_along(window, "stride", axis, 1),
            before=_along(window, "pad", axis, 0),
            spread=_along(window, "lhs_dilate", axis, 1),
            reach=_along(window, "rhs_dilate", axis, 1),
        )
    return 2 * pairs


_PRODUCTS = {"dot": _dot, "convolution": _convolution}


def _library_flops(instruction: _Instruction, others: dict[str, _Instruction]) -> int | None:
    """Returns the FLOPs of what a library computes, 0 elsewhere, None if they can't be told."""
    if not (name := instruction.library):
        return 0
    if re.match(r"__cublas\$(gemm|lt\$matmul)", name):
        return _dot(instruction, others)
    if re.match(r"__cudnn\$conv(\w*Forward|BackwardFilter|BackwardInput)$", name):
        return _convolution(instruction, others)
    if match := re.match(r"__cudnn\$fmhaSoftmax(Backward)?$", name):
        query, key = (_dims(others[name].shape) for name in instruction.operands[:2])
        return 2 * (5 if match[1] else 2) * math.prod(query) * key[1]  # (b, n, heads, depth)
    return None


def _along(window: dict[str, str], name: str, axis: int, default: int) -> int:
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


@functools.cache
def _valid_pairs(
    inputs: int, kernel: int, outputs: int, *, stride: int, before: int, spread: int, reach: int
) -> int:
    """Returns how many (output, kernel) places along an axis meet an input, and not padding."""
    places = (o * stride + k * reach - before for o in range(outputs) for k in range(kernel))
    return sum(0 <= place <= (inputs - 1) * spread and place % spread == 0 for place in places)


def _dims(shape: str) -> list[int]:
    return [int(x) for x in filter(None, _ARRAY.search(shape)[2].split(","))]


def _sizes(shape: str, *, outside: bool = False) -> list[float]:
    """Returns the bytes of a shape's arrays; `outside` leaves out those in fast memory."""
    return [
        math.prod(map(int, filter(None, dims.split(","))))
        * (1 if kind == "pred" else int(re.search(r"\d+", kind)[0]) / 8)
        for kind, dims, layout in _ARRAY.findall(shape)
        if not (outside and re.search(r"S\([1-9]", layout))
    ]


def _outside(shape: str) -> float:
    return sum(_sizes(shape, outside=True))


def _moved(
    instruction: _Instruction,
    others: dict[str, _Instruction],
    programs: dict[str, dict[str, _Instruction]],
) -> float:
    """Returns the bytes an operation reads and writes; of what a fusion slices or sets, a part."""
    if instruction.kind in _TRANSFERS:
        return _transferred(instruction)
    read = [_outside(others[name].shape) if name in others else 0 for name in instruction.operands]
    shape = instruction.shape
    if instruction.library:  # whose last result is room to work in
        shape = re.sub(r", [su]8\[\d+\]\{\d\}\)$", ")", shape)
    written = _outside(shape)
    if instruction.kind != "fusion":
        return sum(read) + written
    inside = programs[dict(_called(instruction))["calls"]]
    places = {
        name: int(x.rest.partition(")")[0]) for name, x in inside.items() if x.kind == "parameter"
    }
    for name, place in places.items():
        users = [x for x in inside.values() if name in x.operands]
        if users and all(x.kind == "dynamic-slice" and x.operands[0] == name for x in users):
            read[place] = min(read[place], sum(sum(_sizes(x.shape)) for x in users))
        elif (
            len(users) == 1
            and users[0].kind == "dynamic-update-slice"
            and users[0].operands[0] == name
        ):  # in its place
            written -= read[place] - sum(_sizes(inside[users[0].operands[1]].shape))
            read[place] = 0
    return sum(read) + written


def _transferred(instruction: _Instruction) -> float:
    """Returns the bytes that a copy between memories reads from and writes to the slow one.

    Its shape names both ends: as much is read as written.
    """
    ends = [match[0] for match in _ARRAY.finditer(instruction.shape)][:2]
    size = _sizes(ends[_TRANSFERS[instruction.kind]])[0]
    return size * sum(bool(_sizes(end, outside=True)) for end in ends)


def _exchanged(shape: str, started: str | None, group: int) -> float:
    """Returns the bytes of an exchange's result; `started` is its kind if that is asynchronous."""
    sizes = _sizes(shape)
    if started == "all-gather":  # (operands, results): each operand is a share of its result
        return sum(sizes) * group / (group + 1)
    if started == "collective-permute":  # (operand, result, contexts)
        return max(sizes)
    return sum(sizes)


def _group(line: str, devices: int) -> int:
    """Returns how many devices exchange with each other."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
