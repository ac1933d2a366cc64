"""Images per second of training on 1, 2, 4… devices, by each body of `vit_jax.parallel`.

    python -m benchmarks.scaling Ti/16 --batch=4 --json=scaling.json

The batch grows with the devices. `per device` is the speed of a device relative to the first row's
(1: perfect scaling). `same batch` is the speed relative to one device, whole, that computes the
same total batch (1: spreading costs nothing).

On a CPU, the devices are forced by XLA_FLAGS and share the same cores: there, `per device` falls by
their number whatever one does, and `same batch` measures what spreading costs. Each contender is a
process of its own, and they take turns, so that what else the machine does meets all of them
alike. On accelerators, which one process takes for itself, contenders follow one another, each has
the first of the devices, and there is no `same batch`: it might not fit into one.

A step is the update of `train.train_step`: SGD with momentum on cross-entropy, without dropout or
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

CLASSES = 1000
BODIES = ("pmap", "sharded")


class Spread(NamedTuple):
    """What a contender is: a body of `vit_jax.parallel`, its devices, and images of a step."""

    body: str
    devices: int
    batch: int


def of_vit_jax(args: argparse.Namespace) -> Callable[[int], None]:
    """Returns n -> None, which runs n steps and waits for the last."""
    from vit_jax.cli.environment import keep_freed_memory
    from vit_jax.config.defaults import default
    from vit_jax.training import parallel, setup

    keep_freed_memory()
    import jax

    pass
    pass

    config = default()
    config.model.variant, config.dtype, config.parallel = args.variant, args.dtype, args.body
    config.data.image_size = args.image_size
    devices = jax.devices()[: args.devices]
    trained = setup.set_up(config, num_classes=CLASSES, total_steps=10**6)
    program = parallel.strategy(config)(update=trained.update, key=trained.key, devices=devices)
    state = program.init(trained.initial, trained.init_key)
    batch = machine.batch(args.batch, args.image_size, CLASSES)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = program.update(state, program.put_batch(batch))
        jax.block_until_ready(metrics)

    return run


def work(args: argparse.Namespace) -> None:
    """Compiles, and measures when told."""
    run = of_vit_jax(args)
    run(2)  # compiles
    machine.answer_steps(run)


def contender(spread: Spread, forced: bool, args: argparse.Namespace) -> machine.Contender:
    """Starts a contender: told a number of steps, it says the seconds they took."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        args.variant,
        f"--body={spread.body}",
        f"--devices={spread.devices}",
        f"--batch={spread.batch}",
        f"--dtype={args.dtype}",
        f"--image_size={args.image_size}",
    ]
    env = dict(os.environ)
    if forced:
        flag = f"--xla_force_host_platform_device_count={spread.devices}"
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {flag}"
    return machine.Contender(str(spread), command, env)


def measured(
    spreads: Sequence[Spread], forced: bool, args: argparse.Namespace
) -> dict[Spread, list[float]]:
    """Returns the images/s of each round, of contenders that run beside each other."""
    contenders = [contender(spread, forced, args) for spread in spreads]
    times = zip(*machine.rounds(contenders, args.seconds, args.rounds), strict=True)
    return {
        spread: [spread.batch / seconds for seconds in turns]
        for spread, turns in zip(spreads, times, strict=True)
    }


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each body and number of devices."""
    # In a process of its own: this one must leave accelerators to the contenders.
    code = "import jax; print(jax.default_backend(), len(jax.devices()))"
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    backend, there = told.stdout.split()
    forced = backend == "cpu"
    numbers = sorted(n for n in args.devices if forced or n <= int(there))
    spreads = [Spread(body, n, n * args.batch) for n in numbers for body in args.bodies]
    if forced:
        alone = [Spread(args.bodies[0], 1, n * args.batch) for n in numbers]
        speeds = measured(list(dict.fromkeys(alone + spreads)), forced, args)
    else:
        speeds = {}
        for spread in spreads:
            speeds |= measured([spread], forced, args)
    first = spreads[0]

    def ratio(spread, other, devices):
        turns = zip(speeds[spread], speeds[other], strict=True)
        return f"{machine.median(a / b for a, b in turns) / devices:.2f}x"

    return [
        {
            "model": args.variant,
            "parallel": spread.body,
            "devices": spread.devices,
            "batch": spread.batch,
            "images/s": machine.median(speeds[spread]),
            "slowest": min(speeds[spread]),
            "fastest": max(speeds[spread]),
            "per device": ratio(spread, first, spread.devices / first.devices),
            "same batch": ratio(spread, Spread(first.body, 1, spread.batch), 1) if forced else None,
        }
        for spread in spreads
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
    parser.add_argument("--bodies", nargs="+", choices=BODIES, default=BODIES)
    parser.add_argument("--batch", type=int, default=4, help="images a step and device")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a turn takes")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--body", choices=BODIES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.body:
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
