"""Where the time of a step goes: its kernels by duration, read from a trace of the profiler.

Each kernel is one instruction of the compiled program, from whose text its FLOPs and bytes are
counted. `at peak` is the larger of both at the rates that this chip publishes, so 1 minus its share
of the kernel's time is what a perfect kernel would save.
"""

from __future__ import annotations

import collections
import glob
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax

from vit_jax.analysis.hardware import CHIPS
from vit_jax.analysis.hlo import instruction_costs

STEPS, LONGEST = 5, 25


def write(path: str, run: Callable[[int], None], text: str) -> None:
    """Traces some steps and writes the tables of their kernels.

    Args:
      path: of the JSON file.
      run: runs a number of steps and waits for the last.
      text: the step's compiled program, `jax.stages.Compiled.as_text`.
    """
    run(2)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(STEPS)
        (file,) = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
        events = read_events(file)
    device = jax.local_devices()[0].device_kind
    pathlib.Path(path).write_text(json.dumps(tables(events, text, device), indent=1))


def read_events(file: str) -> list[tuple[str, str, float, float]]:
    """Returns (instruction, kernel, start, end) of a trace, times in seconds."""
    found = []
    planes = list(jax.profiler.ProfileData.from_file(file).planes)
    on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in on_gpu or planes:
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue  # the same time again, by module or by step
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name or on_gpu:  # copies and CUDA graphs have no instruction
                    begin = event.start_ns / 1e9
                    end = begin + event.duration_ns / 1e9
                    found.append((str(name or event.name), event.name, begin, end))
    return found


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the seconds in which at least one of the spans (start, end) runs."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def tables(
    events: list[tuple[str, str, float, float]], text: str, kind: str
) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of the tables "Step", "Kinds of kernels" and "Longest kernels".

    Args:
      events: what `read_events` returns for `STEPS` steps.
      text: the program's HLO.
      kind: JAX's name of the device.
    """
    costs, chip = instruction_costs(text), CHIPS.get(kind)
    seconds: dict[str, float] = collections.Counter()
    kernels: dict[str, set[str]] = collections.defaultdict(set)
    for name, kernel, start, end in events:
        seconds[name] += (end - start) / STEPS
        kernels[name].add(kernel)
    span = max(e for *_, e in events) - min(s for _, _, s, _ in events)
    working, total = busy((s, e) for _, _, s, e in events), sum(seconds.values())
    step = {"ms": 1e3 * span / STEPS, "kernels": len(seconds), "idle share": 1 - working / span}
    rows = []
    for name in sorted(seconds, key=lambda n: -seconds[n]):
        cost = costs.get(name)
        row: dict[str, Any] = {"instruction": name, "ms": 1e3 * seconds[name]}
        row["share"] = seconds[name] / total
        row["GFLOP"] = cost and cost.flops and cost.flops / 1e9
        row["MB"] = cost and cost.bytes / 1e6
        peak = None
        if cost and chip:
            peak = max((cost.flops or 0) / chip.peak_flops, cost.bytes / chip.memory_bandwidth)
        row["ms at peak"] = peak and 1e3 * peak
        row["what"] = cost.what if cost else ""
        row["kernel"] = max(kernels[name], key=len)[:60]
        rows.append(row)
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = re.sub(r"encoderblock_\d+", "encoderblock", row["what"]) or "other"
        whole = kinds.setdefault(key, {"what": key, "kernels": 0, "ms": 0.0, "ms at peak": 0.0})
        whole["kernels"] += 1
        whole["ms"] += row["ms"]
        whole["ms at peak"] += row["ms at peak"] or 0.0
    ordered = sorted(kinds.values(), key=lambda row: -row["ms"])
    for whole in ordered:
        whole["share"] = whole["ms"] / (1e3 * total)
    return {
        "Step": [step],
        "Kinds of kernels": ordered[:40],
        "Longest kernels": rows[:LONGEST],
    }
