"""Shared by all benchmarks: the machine's description, contenders' processes, and reports."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any


def description(*packages: str) -> dict[str, Any]:
    """Returns the processor, cores, memory in GiB, JAX's devices and versions of packages."""
    import jax  # not above: some contenders' interpreters have neither

    from vit_jax.common.host import available_cpus

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(available_cpus()),
        "memory_gib": round(memory / 2**30, 1),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", *packages)},
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split("\t", 1) for line in lines if "\t" in line)
    known = {key.strip(): value.strip(" \t:") for key, value in facts.items()}
    name = known.get("model name", platform.machine())
    return (
        f"{name} (family {known['cpu family']}, model {known['model']})"
        if "cpu family" in known
        else name
    )


def report(
    title: str, rows: Sequence[dict[str, Any]], about: dict[str, Any], path: str | None
) -> None:
    """Prints the machine and a Markdown table of the rows, and writes both as JSON.

    Args:
      rows: dictionaries with the same keys, the columns; floats are shown with three digits.
      about: the machine and the settings.
      path: of the JSON file; None to write none.
    """
    print(f"\n{title}\n" + ", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("\n".join(table(rows)), flush=True)
    if path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"title": title, "about": about, "rows": list(rows)}, indent=2)
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table of rows with the same keys."""
    rows = list(rows)
    columns = list(rows[0])

    def line(cells):
        return f"| {' | '.join(cells)} |"

    return [
        line(columns),
        line("---" for _ in columns),
        *(line(_cell(row[column]) for column in columns) for row in rows),
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)


class Contender:
    """A process that measures when asked, and waits otherwise: see `answer`.

    Args:
      name: used in the error message when it fails.
      command: starts the process.
      env: the process's environment variables; None for this process's.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None):
        self._name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, amount: float) -> float:
        """Sends an amount to the process, such as a number of steps; returns what it measured."""
        self._process.stdin.write(f"{amount}\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self._name} failed; its output is above.")
        return float(line)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # a process that failed reads nothing more
            self._process.stdin.close()
        self._process.wait()


def answer(measure: Callable[[float], float]) -> None:
    """Makes this process a `Contender`: prints `measure(line)` for each line of stdin."""
    for line in sys.stdin:
        print(measure(float(line)), flush=True)


def answer_steps(run: Callable[[int], None]) -> None:
    """Makes this process a `Contender` that is asked for a number of steps and prints seconds.

    Args:
      run: runs that number of steps and waits for the last.
    """

    def seconds(steps):
        start = time.perf_counter()
        run(int(steps))
        return time.perf_counter() - start

    answer(seconds)


def rounds(contenders: Sequence[Contender], seconds: float, count: int) -> list[tuple[float, ...]]:
    """Returns the seconds that each contender's steps take, by round; then ends the contenders.

    Args:
      contenders: processes that `answer_steps`.
      seconds: that a turn takes.
      count: turns of each.
    """
    try:
        steps = [max(1, round(seconds / c.ask(1))) for c in contenders]
        pairs = list(zip(contenders, steps, strict=True))
        return [tuple(c.ask(n) / n for c, n in pairs) for _ in range(count)]
    finally:
        for contender in contenders:
            contender.close()


def batch(images: int, image_size: int, classes: int) -> dict[str, Any]:
    """Returns a batch of noise with random labels, in the layout of `vit_jax.data.batch`."""
    import numpy as np  # not above: some contenders' interpreters don't have vit_jax

    from vit_jax.data.batch import layout

    rng = np.random.default_rng(0)
    bounds = {"image": (0, 256), "label": (0, classes), "mask": (1, 2)}
    arrays = layout(images, (image_size, image_size)).items()
    return {name: rng.integers(*bounds[name], shape).astype(t) for name, (shape, t) in arrays}


def median(values: Iterable[float]) -> float:
    """Returns the median as a float."""
    return float(statistics.median(values))


def import_torchvision() -> None:
    """Imports torchvision, as timm and transformers do.

    Beside a CPU build of PyTorch, torchvision's build for CUDA lacks its compiled operators, and
    the import fails with the name of one. Nothing here uses them, so empty ones are defined.
    """
    import torch

    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            (operator,) = re.findall(r"operator (torchvision::\w+) does not exist", str(error))
            torch.library.define(operator, "(Tensor x) -> Tensor")
