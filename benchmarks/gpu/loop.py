"""`vit_jax.main` fine-tuning from a folder of JPEGs, beside the bare step, and the loader alone.

The JPEGs are those of `benchmarks.input_pipeline`, 500 x 375 pixels. `of the bare step` compares
the run's images/s, which metrics.csv has, with what the part `speed` found at the same batch.
"""

from __future__ import annotations

import concurrent.futures
import csv
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import input_pipeline, machine
from benchmarks.gpu import result
from vit_jax.common.host import available_cpus

CLASSES = 8
JPEG = (375, 500)  # height and width in pixels


def draw_folder(folder: pathlib.Path, count: int) -> None:
    """Writes `count` JPEGs to each of `CLASSES` folders, FOLDER/<class>/*.jpg."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        parts = [folder / f"{i}" for i in range(CLASSES)]
        for part in parts:
            part.mkdir(parents=True)
        list(
            pool.map(input_pipeline.draw, parts, [count] * CLASSES, *([x] * CLASSES for x in JPEG))
        )
    for i, part in enumerate(parts):
        (part / "photos").rename(folder / f"class{i}")
        part.rmdir()


def loader(photos: str, threads: int, args: Any) -> float:
    """Returns the loader's images/s with a number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "loader.json")
        command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--photos={photos}"]
        command += [
            f"--threads={threads}",
            f"--prefetch={max(4, threads)}",
            "--contenders",
            "vit_jax",
            f"--json={file}",
        ]
        command += ["--rounds=1", f"--seconds={0.2 if args.smoke else 2}"]
        command += ["--batch=2", "--image_size=32"] if args.smoke else ["--batch=256"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())["rows"][0]["images/s"]


def train(
    photos: str, workdir: str, steps: int, args: Any, **keys: Any
) -> tuple[float, list[dict]]:
    """Runs `vit_jax.main`; returns its seconds and the rows of metrics.csv."""
    variant = "Ti/16" if args.smoke else args.variant
    command = [sys.executable, "-m", "vit_jax.main", f"--workdir={workdir}"]
    command += [f"--config=configs/finetune.py:{variant},{photos}"]
    options = {
        "data.image_size": 32 if args.smoke else 224,
        "batch_size": 4 if args.smoke else args.batch,
        "eval_batch_size": 4 if args.smoke else args.batch,
        "dtype": "float32" if args.smoke else "bfloat16",
        "data.check": False,
        "total_steps": steps,
        "log_every": max(1, steps // 4),
        "eval_every": 0,
        "checkpoint.every": 0,
        "optim.warmup_steps": 0,
    }
    options |= {"model.depth": 1} if args.smoke else {}
    command += [f"--config.{name}={value}" for name, value in options.items()]
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - begin
    with open(f"{workdir}/metrics.csv", encoding="utf-8") as file:
        return took, list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    parser = result.parser(__doc__)
    parser.add_argument("--variant", default="B/16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args(argv)
    found = result.Result(args.out, "loop")
    cores = len(available_cpus())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        photos = str(pathlib.Path(folder, "photos"))
        draw_folder(pathlib.Path(photos), 8 if args.smoke else 256)
        for name in ("cold", "warm"):
            steps = 1 if name == "cold" else 4 if args.smoke else args.steps
            took, rows = train(photos, f"{folder}/{name}", steps, args)
            found.add("Runs", {"programs": name, "steps": steps, "seconds of the command": took})
        bare = [
            row["images/s"]
            for row in result.read_tables(args.out, "speed").get("Every batch", [])
            if row["contender"] == "vit_jax"
            and (row["variant"], row["mode"], row["batch"])
            == (args.variant, "training", args.batch)
        ]
        speeds = [float(r["images_per_second"]) for r in rows if r["images_per_second"]]
        row = {"images/s, each row": [round(speed) for speed in speeds]}
        speed = machine.median(speeds)
        row |= {
            "images/s": speed,
            "of the bare step": speed / bare[0] if bare and bare[0] else None,
        }
        found.add("Loop", row)
        for threads in sorted({min(4, cores), cores}):
            row = {"threads": threads, "images/s": loader(photos, threads, args)}
            found.add("Loader alone", {**row, "cores": cores})


if __name__ == "__main__":
    main()
