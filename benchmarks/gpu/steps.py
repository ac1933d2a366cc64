"""The steps that are timed: vit_jax's and timm's, compiled in a process of their own.

    python -m benchmarks.gpu.steps CONTENDER CELLS --compile_seconds=120

CELLS is JSON, a list of `Cell`s. The process compiles them in that order, for at most
`compile_seconds`; a cell is never begun after that. Asked for the number of a cell, it answers with
the seconds of one step, or with nan if the cell wasn't compiled or failed. It answers once all
cells are compiled: XLA chooses between kernels by timing them, which other work would disturb.

Batches lie on the device, images are uint8 (torch: the same, scaled there). Training is a step of
SGD with momentum on cross-entropy, without dropout.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import machine, throughput
from benchmarks.gpu import options

Run = Callable[[int], None]  # runs a number of steps and waits for the last


class Cell(NamedTuple):
    """What is timed.

    Attributes:
      contender: "vit_jax" with its default implementation, an implementation, or "timm".
      variant: a model's name.
      mode: "training" or "inference".
      batch: images a step.
      image_size: pixels.
      dtype: of the computation.
    """

    contender: str
    variant: str
    mode: str
    batch: int
    image_size: int
    dtype: str


class JaxSteps:
    """Compiles vit_jax's steps. Cells of one variant share one training state."""

    threads = 8

    def __init__(self, option: str):
        self._states: dict[str, Any] = {}
        self._changes = options.OPTIONS[option].apply()
        self.compiled: dict[Cell, Any] = {}

    def compile(self, cell: Cell) -> Run:
        """Returns the function that runs a cell's steps."""
        import jax

        from vit_jax.cli.environment import prefer_cublas
        from vit_jax.training.memory import step_arguments

        prefer_cublas()
        config, trained, program = throughput.set_up(
            cell.contender, cell.variant, cell.dtype, cell.batch, cell.image_size, self._changes
        )
        if cell.variant not in self._states:
            self._states[cell.variant] = program.init(trained.init_state, trained.init_key)
        host_batch = machine.batch(cell.batch, cell.image_size, throughput.CLASSES)
        state, shapes = step_arguments(config, trained)
        if cell.mode == "training":
            step = program.lower(state, shapes).compile()
        else:
            by_device = jax.eval_shape(lambda x: {k: v[None] for k, v in x.items()}, shapes)
            step = program.extract_features.lower(state.params, by_device).compile()
        self.compiled[cell] = step
        batches: list[Any] = []  # made when it is first run, to save the device's memory

        def run(steps):
            batch = batches[0] if batches else program.put_batch(host_batch)
            batches[:] = [batch]
            for _ in range(steps):
                state = self._states[cell.variant]
                if cell.mode == "training":
                    self._states[cell.variant], out = step(state, batch)
                else:
                    out = step(state.params, batch)
            jax.block_until_ready(out)

        return run

    def release(self) -> None:
        """Does nothing: JAX took its memory at the start."""


class TimmSteps:
    """Compiles timm's steps with torch.compile, for autocast."""

    threads = 1  # torch.compile works with processes of its own

    def __init__(self, option: str):
        del option

    def compile(self, cell: Cell) -> Run:
        """Returns the function that runs a cell's steps."""
        machine.import_torchvision()
        import timm
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.automatic_dynamic_shapes = False  # each batch gets its own program
        model = timm.create_model(
            throughput.TIMM[cell.variant],
            num_classes=throughput.CLASSES,
            img_size=cell.image_size,
        ).to(device, memory_format=torch.channels_last)
        training = cell.mode == "training"
        model.train(training)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
        host = machine.batch(cell.batch, cell.image_size, throughput.CLASSES)
        images, labels = (torch.from_numpy(host[name]).to(device) for name in ("image", "label"))
        run = throughput.timm_steps(
            torch.compile(model) if device == "cuda" else model,
            optimizer,
            images.permute(0, 3, 1, 2),  # in memory, channels are last
            labels,
            training=training,
            dtype=cell.dtype,
        )
        run(2)  # compiles
        self.release()
        return run

    def release(self) -> None:
        """Gives memory back that no tensor has, so that other contenders can use it."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds_per_step(run: Run, seconds: float) -> float:
    """Runs steps for about that long."""
    begin = time.perf_counter()
    run(2)
    steps = max(2, round(seconds / ((time.perf_counter() - begin) / 2)))
    begin = time.perf_counter()
    run(steps)
    return (time.perf_counter() - begin) / steps


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, then answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=("vit_jax", "timm"))
    parser.add_argument("cells")
    parser.add_argument("--compile_seconds", type=float, default=120)
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn")
    parser.add_argument("--option", choices=options.OPTIONS, default="default")
    parser.add_argument("--trace", help="start of the names of the files with the kernels")
    args = parser.parse_args(argv)
    cells = [Cell(*values) for values in json.loads(args.cells)]
    steps = {"vit_jax": JaxSteps, "timm": TimmSteps}[args.contender](args.option)
    begin = time.monotonic()

    def compile_cell(cell):
        if time.monotonic() - begin > args.compile_seconds:
            return None
        start = time.monotonic()
        try:
            run = steps.compile(cell)
        except Exception:
            traceback.print_exc()
            return None
        print(f"{cell}: compiled in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        return run

    with concurrent.futures.ThreadPoolExecutor(steps.threads) as pool:
        runs = list(pool.map(compile_cell, cells))

    def measure(number):
        run = runs[int(number)]
        if run is None:
            return math.nan
        try:
            took = seconds_per_step(run, args.turn)
            steps.release()
            return took
        except Exception as error:  # out of memory, most likely
            print(f"{cells[int(number)]}: {str(error)[:500]}", file=sys.stderr, flush=True)
            runs[int(number)] = None
            return math.nan

    machine.answer(measure)
    if args.trace:
        from benchmarks.gpu import kernels

        for number, run in enumerate(runs):
            if run:
                text = steps.compiled[cells[number]].as_text()
                kernels.write(f"{args.trace}{number}.json", run, text)


if __name__ == "__main__":
    main()
