"""Images per second of training on 1, 2, 4… devices, with each strategy of `training/parallel.py`.

    python -m benchmarks.scaling Ti/16 --batch=4 --json=scaling.json

The batch grows with the devices. `per device` is the speed of a device relative to the first row's
(1: perfect scaling). `same batch` is the speed relative to one device that computes the same total
batch (1: the strategy costs nothing).

On a CPU, the devices are forced by XLA_FLAGS and share the same cores. There, `per device` falls
with their number in any case, and `same batch` measures the cost of the strategy. Each contender is
a process of its own, and they take turns, so that the machine's other work slows all of them alike.
An accelerator belongs to one process at a time: there, contenders follow one another on the first
devices, and `same batch` is left out, since that batch might not fit into one device.

A step is the update of `training/step.py`: SGD with momentum on cross-entropy, without dropout or
augmentation. Images/s are medians over the rounds, and so are ratios of turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import machine
from vit_jax.training.parallel import STRATEGIES

CLASSES = 1000


class Layout(NamedTuple):
    """A contender's sharding strategy, number of devices, and images a step."""

    strategy: str
    devices: int
    batch: int


def of_vit_jax(args: argparse.Namespace) -> Callable[[int], None]:
    """Returns n -> None, which runs n steps and waits for the last."""
    from vit_jax.cli.environment import keep_freed_memory
    from vit_jax.config.defaults import default
    from vit_jax.training import parallel, setup

    keep_freed_memory()
    import jax

    config = default()
    config.model.variant, config.dtype, config.parallel = args.variant, args.dtype, args.strategy
    config.data.image_size = args.image_size
    devices = jax.devices()[: args.devices]
    trained = setup.set_up(config, num_classes=CLASSES, total_steps=10**6)
    program = parallel.make_program(config, update=trained.update, key=trained.key, devices=devices)
    state = program.init(trained.init_state, trained.init_key)
    batch = machine.batch(args.batch, args.image_size, CLASSES)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = program.update(state, program.put_batch(batch))
        jax.block_until_ready(metrics)

    return run


def work(args: argparse.Namespace) -> None:
    """Compiles, and measures when asked."""
    run = of_vit_jax(args)
    run(2)  # to compile
    machine.answer_steps(run)


def contender(layout: Layout, forced: bool, args: argparse.Namespace) -> machine.Contender:
    """Starts a contender: asked for a number of steps, it answers with their seconds."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        args.variant,
        f"--strategy={layout.strategy}",
        f"--devices={layout.devices}",
        f"--batch={layout.batch}",
        f"--dtype={args.dtype}",
        f"--image_size={args.image_size}",
    ]
    env = dict(os.environ)
    if forced:
        flag = f"--xla_force_host_platform_device_count={layout.devices}"
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flag}"
    return machine.Contender(str(layout), command, env)


def measure(
    layouts: Sequence[Layout], forced: bool, args: argparse.Namespace
) -> dict[Layout, list[float]]:
    """Runs contenders in turns; returns the images/s of each in every round."""
    contenders = [contender(layout, forced, args) for layout in layouts]
    times = zip(*machine.rounds(contenders, args.seconds, args.rounds), strict=True)
    return {
        layout: [layout.batch / seconds for seconds in turns]
        for layout, turns in zip(layouts, times, strict=True)
    }


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each strategy and number of devices."""
    # In a process of its own: this one must leave accelerators to the contenders.
    code = "import jax; print(jax.default_backend(), len(jax.devices()))"
    asked = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    backend, available = asked.stdout.split()
    forced = backend == "cpu"
    numbers = sorted(n for n in args.devices if forced or n <= int(available))
    layouts = [Layout(name, n, n * args.batch) for n in numbers for name in args.strategies]
    if forced:
        alone = [Layout(args.strategies[0], 1, n * args.batch) for n in numbers]
        speeds = measure(list(dict.fromkeys(alone + layouts)), forced, args)
    else:
        speeds = {}
        for layout in layouts:
            speeds |= measure([layout], forced, args)
    first = layouts[0]

    def ratio(layout, other, devices):
        turns = zip(speeds[layout], speeds[other], strict=True)
        return f"{machine.median(a / b for a, b in turns) / devices:.2f}x"

    return [
        {
            "model": args.variant,
            "parallel": layout.strategy,
            "devices": layout.devices,
            "batch": layout.batch,
            "images/s": machine.median(speeds[layout]),
            "slowest": min(speeds[layout]),
            "fastest": max(speeds[layout]),
            "per device": ratio(layout, first, layout.devices / first.devices),
            "same batch": ratio(layout, Layout(first.strategy, 1, layout.batch), 1)
            if forced
            else None,
        }
        for layout in layouts
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.scaling`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", help="such as Ti/16")
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4, 8), help="how many")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=tuple(STRATEGIES))
    parser.add_argument("--batch", type=int, default=4, help="images a step on each device")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--strategy", choices=STRATEGIES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.strategy:
        (args.devices,) = args.devices
        return work(args)
    rows = compare(args)
    about = machine.description("flax")
    about |= {k: getattr(args, k) for k in ("batch", "image_size", "dtype", "rounds")}
    if rows[0]["same batch"]:
        about["note"] = "the devices are forced ones that share the cores of one CPU"
    machine.report("Scaling", rows, about, args.json)


if __name__ == "__main__":
    main()
