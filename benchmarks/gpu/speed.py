"""Images/s of training and inference in bfloat16 beside timm, and the longest kernels of a step.

`MFU` is the model's FLOPs (`vit_jax.models.flops`, three times as many for training) over the
chip's published peak; `of matmul` is over the rate that a large matmul reached in the part
`device`. Contenders take turns; numbers are medians over the rounds, each at its best batch of
those that were compiled in time.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence

from benchmarks import machine
from benchmarks.gpu import result
from benchmarks.gpu.steps import Cell
from vit_jax.analysis.hardware import CHIPS
from vit_jax.models.flops import forward_flops

B, S, L = ("B/16", "training"), ("S/16", "training"), ("L/16", "training")
INFERENCE = ("B/16", "inference")
BATCHES = {S: (1024, 512, 256), B: (512, 256, 128), L: (256, 128, 64), INFERENCE: (512, 1024, 256)}
# The first ones are compiled first: what is not compiled in time is left out.
# On an H200 with 16 cores, a program took 45 s, and eight at once took 100 s.
ORDER = [
    *[("vit_jax", job, i) for i in (0, 1) for job in (B, L, S, INFERENCE)],
    ("plain", B, 1),
]
TIMM_ORDER = [(job, i) for i in (1, 2) for job in (B, L, S, INFERENCE)]


def cells(smoke: bool) -> tuple[list[Cell], list[Cell]]:
    """Returns vit_jax's cells and timm's, the most important first."""
    if smoke:
        ours = [("vit_jax", "training"), ("vit_jax", "inference"), ("plain", "training")]
        made = [Cell(name, "Ti/16", mode, 2, 32, "float32") for name, mode in ours]
        return made, [Cell("timm", "Ti/16", "training", 2, 32, "float32")]
    size = (224, "bfloat16")
    ours = [Cell(name, *job, BATCHES[job][i], *size) for name, job, i in ORDER]
    return ours, [Cell("timm", *job, BATCHES[job][i], *size) for job, i in TIMM_ORDER]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    begin = time.monotonic()
    parser = result.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    found = result.Result(args.out, "speed")
    ours, timms = cells(args.smoke)
    compile_seconds = 0.5 * args.seconds
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    trace = str(pathlib.Path(args.out, "kernels"))

    # One process of timm for each model and mode: torch.compile works on one model at a time.
    jobs = list(dict.fromkeys(cell[1:3] for cell in timms))
    groups = [ours, *([cell for cell in timms if cell[1:3] == job] for job in jobs)]

    def start(group, share):
        contender = "vit_jax" if group is ours else "timm"
        command = [sys.executable, "-m", "benchmarks.gpu.steps", contender, json.dumps(group)]
        command += [f"--compile_seconds={compile_seconds}", f"--turn={0.05 if args.smoke else 0.4}"]
        command += [f"--trace={trace}"] if group is ours else []
        command += ["--option=one block"] if args.smoke and group is ours else []
        env = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": str(share)}
        env["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        if args.smoke:  # PyTorch's threads would wait for each other beside JAX's
            env["OMP_NUM_THREADS"] = "1"
        return machine.Contender(contender, command, env)

    contenders = [start(group, 0.42) for group in groups]
    where = {
        cell: (contender, number)
        for group, contender in zip(groups, contenders, strict=True)
        for number, cell in enumerate(group)
    }

    def ask(cell):
        contender, number = where[cell]
        return contender.ask(number)

    try:
        for contender in contenders:
            contender.ask(0)  # all have compiled now
        print(f"compiled after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        best: dict[tuple, tuple[float, Cell]] = {}  # by contender, variant and mode
        for cell in where:
            speed = cell.batch / ask(cell)
            found.add("Every batch", {**cell._asdict(), "images/s": speed})
            if speed > best.get(cell[:3], (0, cell))[0]:
                best[cell[:3]] = speed, cell
        chip = CHIPS.get(_kind(args.out))
        matmul = next(
            (r["TFLOP/s or GB/s"] for r in result.read_tables(args.out, "device").get("Peaks", [])),
            math.nan,
        )
        for job in dict.fromkeys(key[1:] for key in best):
            chosen = [cell for key, (_, cell) in best.items() if key[1:] == job]
            turns = [[cell.batch / ask(cell) for cell in chosen] for _ in range(args.rounds)]
            first = chosen.index(best["vit_jax", *job][1]) if ("vit_jax", *job) in best else 0
            for i, cell in enumerate(chosen):
                speed = machine.median(turn[i] for turn in turns)
                flops = forward_flops(cell.variant, cell.image_size)
                flops *= 3 if cell.mode == "training" else 1
                ratio = machine.median(turn[first] / turn[i] for turn in turns)
                row = {"model": cell.variant, "mode": cell.mode, "contender": cell.contender}
                row |= {"batch": cell.batch, "images/s": speed}
                row |= {"slowest": min(t[i] for t in turns), "fastest": max(t[i] for t in turns)}
                row["MFU"] = speed * flops / chip.peak_flops if chip else math.nan
                row["of matmul"] = speed * flops / (matmul * 1e12)
                found.add("Speed", {**row, f"{chosen[first].contender} is": ratio})
    finally:
        for contender in reversed(contenders):
            contender.close()
    if (file := pathlib.Path(f"{trace}0.json")).exists():
        for table, rows in json.loads(file.read_text()).items():
            for row in rows:
                found.add(table, row)


def _kind(out: str) -> str:
    """Returns JAX's name of the chip, as the part `device` found it; JAX isn't started here."""
    rows = result.read_tables(out, "device").get("Machine", [])
    return next((r["value"].partition(" x ")[2] for r in rows if r["what"] == "devices"), "")


if __name__ == "__main__":
    main()
