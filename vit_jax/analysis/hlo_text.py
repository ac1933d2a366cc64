"""Reads the text of compiled programs (XLA's HLO): computations, instructions, shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_INDEX = re.compile(r"index=(\d+)")
_CALLED = re.compile(r"(\w+)=(?:%([\w.-]+)|\{(%[^}]*)\})")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      shape: the result's shape, such as "f32[8,4]{1,0}", or "(…, …)" for several arrays.
      kind: the operation's name, such as "dot".
      rest: the text after the opening parenthesis: operands, then attributes.
    """

    shape: str
    kind: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """The names of the instructions whose results this one reads."""
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])

    @property
    def library_call(self) -> str:
        """The library's function that computes it, such as "__cublas$gemm"; "" if XLA does."""
        match = re.search(r'custom_call_target="(__(?:cublas|cudnn|onednn)[^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def called(self) -> list[tuple[str, str]]:
        """(attribute, computation) for every computation that this instruction runs."""
        attributes = self.rest.partition(")")[2]
        found = []
        for key, one, several in _CALLED.findall(attributes):
            names = [one] if one else re.findall(r"%([\w.-]+)", several)
            found += [(key if one else f"{key}_{i}", name) for i, name in enumerate(names)]
        return found


Computation = dict[str, Instruction]  # by the instruction's name, in the order of the text


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of the one that it starts with.

    Args:
      text: the program's HLO, as `jax.stages.Compiled.as_text` returns it.
    """
    computations: dict[str, Computation] = {}
    name, entry = None, ""
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            name = header[2]
            computations[name] = {}
            entry = name if header[1] else entry
        elif name is not None and (match := _INSTRUCTION.match(line)):
            computations[name][match[1]] = Instruction(*match.groups()[1:])
    return computations, entry


def trip_count(computations: dict[str, Computation], condition: str, body: str) -> int:
    """Returns how often a loop runs.

    Its counter starts at 0 and ends at the constant in the loop's condition. The condition takes
    the counter from the loop's tuple. Where XLA has unrolled the loop, the body adds more than 1.

    Args:
      computations: the program's computations.
      condition, body: the names of the loop's two computations.
    """
    bounds = _integers(computations[condition].values())
    for instruction in computations[condition].values():
        for key, name in instruction.called:
            bounds += _integers(computations[name].values()) if key == "calls" else []
    taken = [x for x in computations[condition].values() if x.kind == "get-tuple-element"]
    inside, increments = computations[body], []
    *_, results = inside.values()
    if taken and results.kind == "tuple":
        index = int(_INDEX.findall(taken[0].rest)[0])
        if counter := inside.get(results.operands[index]):
            increments = _integers(inside[x] for x in counter.operands if x in inside)
    return -(-max(bounds, default=1) // max(increments, default=1))


def _integers(instructions: Iterable[Instruction]) -> list[int]:
    """Returns the values of those instructions that are integer constants."""
    return [
        int(x.rest.partition(")")[0])
        for x in instructions
        if x.kind == "constant" and re.match(r"[su]\d+\[\]", x.shape)
    ]


def dimensions(shape: str) -> list[int]:
    """Returns the dimensions of a shape's first array."""
    (_, dims, _), *_ = _ARRAY.findall(shape)
    return [int(x) for x in filter(None, dims.split(","))]


def arrays(shape: str) -> list[str]:
    """Returns the shapes of the arrays in a shape."""
    return [match[0] for match in _ARRAY.finditer(shape)]


def array_bytes(shape: str, *, slow_memory_only: bool = False) -> list[float]:
    """Returns the bytes of each array in a shape.

    Args:
      shape: as `Instruction.shape`.
      slow_memory_only: leaves out the arrays that XLA keeps in a chip's fast memory.
    """
    return [
        math.prod(map(int, filter(None, dims.split(",")))) * _element_bytes(kind)
        for kind, dims, layout in _ARRAY.findall(shape)
        if not (slow_memory_only and re.search(r"S\([1-9]", layout))
    ]


def _element_bytes(kind: str) -> float:
    """Returns the bytes of a number of a type, such as 2 for "bf16"."""
    return 1 if kind == "pred" else int(re.findall(r"\d+", kind)[0]) / 8
