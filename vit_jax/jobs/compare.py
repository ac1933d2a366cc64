"""job="compare": several models trained alike, accuracy beside compute (paper figure 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.common import files
from vit_jax.config.keys import model_attributes, run_config
from vit_jax.jobs.runs import train_once, write_tables
from vit_jax.jobs.validation import validate
from vit_jax.models.flops import forward_flops, training_exaflops
from vit_jax.models.params import count_parameters


def compare(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains several models alike, and compares accuracy with compute (paper figure 5).

    Args:
      config: what the runs share, with `job="compare"`. `compare.runs` has the keys that differ,
        `compare.epochs` the lengths of training, and `compare.seeds` the number of seeds.
      workdir: gets compare.csv, compare.md, compare.png, and RUN/epochs_N/seed_S for each run
        (RUN/run/seed_S without `compare.epochs`).

    Returns:
      `runs`: the number of runs; `table` and `figure`: the paths of compare.csv and compare.png.

    Raises:
      ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    validate(config)
    folder = files.absolute(workdir)
    rows: list[dict[str, Any]] = []
    series: dict[str, list[Point]] = {}
    checked: set[str] = set()
    for name in config.compare.runs:
        single = run_config(config, name)
        for epochs in config.compare.epochs or (None,):
            if epochs is not None:
                single.epochs, single.total_steps = float(epochs), None
            length = "run" if epochs is None else f"epochs_{epochs:g}"
            results = []
            for seed in range(config.seed, config.seed + config.compare.seeds):
                single.seed = seed
                place = folder / _slug(name) / length / f"seed_{seed}"
                results.append(train_once(single, place, checked))
            row = _compared(name, single, results)
            rows.append(row)
            accuracies = [result["test_accuracy"] for result in results]
            series.setdefault(name, []).append(Point(row["exaflops"], accuracies))
    table, figure = folder / "compare.csv", folder / "compare.png"
    write_tables(table, rows, [_shown(row) for row in rows])
    if jax.process_index() == 0:
        with figure.open("wb") as file:
            accuracy_against_compute(series, file)
    return {"runs": len(rows) * config.compare.seeds, "table": str(table), "figure": str(figure)}


def _compared(name: str, config: ConfigDict, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of one model, whose runs differ only in the seed."""
    found = read_checkpoint(results[0]["checkpoint"], lazy=True)
    accuracies = [result["test_accuracy"] for result in results]
    flops = forward_flops(
        config.model.variant,
        config.data.image_size,
        num_classes=found.num_classes,
        **model_attributes(config),
    )
    images = results[0]["step"] * config.batch_size
    return {
        "run": name,
        "parameters": count_parameters(found.params),
        "mflops_per_image": round(flops / 1e6, 1),
        "images_seen": images,
        "images_per_second": round(float(np.median([r["images_per_second"] for r in results])), 1),
        "exaflops": float(f"{training_exaflops(flops, images):.3g}"),
        "accuracy": round(float(np.mean(accuracies)), 4),
        "accuracy_std": round(float(np.std(accuracies)), 4),
        "seeds": len(results),
    }


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row as the Markdown table shows it."""
    return {
        "model": row["run"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "MFLOPs an image": f"{row['mflops_per_image']:.0f}",
        "images seen": f"{row['images_seen']:,}",
        "images/s": f"{row['images_per_second']:.0f}",
        "exaFLOPs": f"{row['exaflops']:.1e}",
        "accuracy, %": f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f}",
    }


def _slug(name: str) -> str:
    """Returns a name that a folder can have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


_MARKERS = "osD^vP*X"


class Point(NamedTuple):
    """The accuracies of runs of one model with the same compute."""

    exaflops: float
    accuracies: Sequence[float]


def accuracy_against_compute(
    series: Mapping[str, Sequence[Point]], target: str | os.PathLike | IO[bytes]
) -> None:
    """Draws accuracy in per cent over pre-training compute, as the paper's figure 5.

    Args:
      series: points by the model's name; a bar spans each point's smallest and largest accuracy.
      target: a path (.png, .svg) or an open file.
    """
    from matplotlib.figure import Figure  # importing it takes a second

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(series.items(), _MARKERS * len(series), strict=False):
        points = sorted(points)
        means = [100 * sum(p.accuracies) / len(p.accuracies) for p in points]
        below = [mean - 100 * min(p.accuracies) for mean, p in zip(means, points, strict=True)]
        above = [100 * max(p.accuracies) - mean for mean, p in zip(means, points, strict=True)]
        axes.errorbar(
            [p.exaflops for p in points],
            means,
            [below, above],
            marker=marker,
            capsize=3,
            label=name,
        )
    axes.set(xscale="log", xlabel="training compute, exaFLOPs", ylabel="test accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(target, dpi=110)
