"""Seconds from the start of `vit_jax.main` to the end of its first step, with or without a cache.

    python -m benchmarks.startup --json=startup.json
    python -m benchmarks.startup --config=configs/finetune.py:B/16,FOLDER \\
        --options --config.init_from= --config.batch_size=8

Each start is a process of its own that trains until metrics.csv has its first row, which is written
when the first step is done. Starts with an empty compilation cache and with a filled one take
turns. One start before them, which isn't counted, prepares the data and fills the cache. Seconds
are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import machine

CACHES = ("cold", "warm")
_LIMIT = 1800  # seconds after which a start has failed


def seconds(cache: pathlib.Path, args: argparse.Namespace) -> float:
    """Starts training, waits for its first step, ends it, and returns the seconds of the wait."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable,
            "-m",
            "vit_jax.main",
            f"--config={args.config}",
            f"--workdir={workdir}",
            "--config.log_every=1",
            "--config.eval_every=0",
            "--config.total_steps=1000000",
            *args.options,
        ]
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        output = pathlib.Path(workdir) / "output.txt"
        start = time.perf_counter()
        with open(output, "w") as file:
            process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
        try:
            while not _has_row(pathlib.Path(workdir) / "metrics.csv"):
                if process.poll() is not None or time.perf_counter() - start > _LIMIT:
                    raise RuntimeError(f"Training did not start:\n{output.read_text()}")
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()


def _has_row(table: pathlib.Path) -> bool:
    try:
        return table.read_text().count("\n") > 1
    except FileNotFoundError:
        return False


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each state of the cache: seconds to the first step."""
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (pathlib.Path(folder) / name for name in CACHES)

        def start(cache):
            if cache == cold:
                shutil.rmtree(cold, ignore_errors=True)
            cache.mkdir(exist_ok=True)
            return seconds(cache, args)

        start(warm)
        times = [[start(cold), start(warm)] for _ in range(args.rounds)]
    return [
        {
            "compilation cache": name,
            "seconds": machine.median(turn[i] for turn in times),
            "fastest": min(turn[i] for turn in times),
            "slowest": max(turn[i] for turn in times),
            "saved": machine.median(turn[0] - turn[i] for turn in times),
        }
        for i, name in enumerate(CACHES)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.startup`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/quickstart.py", help="as vit_jax.main's")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="last: more options of vit_jax.main, such as --config.batch_size=8",
    )
    args = parser.parse_args(argv)
    rows = compare(args)
    about = machine.description("flax") | {"config": " ".join([args.config, *args.options])}
    machine.report("Seconds to the first step", rows, about | {"rounds": args.rounds}, args.json)


if __name__ == "__main__":
    main()
