"""job="compare": several models trained alike, accuracy beside compute (paper figure 5)."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.common import files
from vit_jax.common.names import printable
from vit_jax.config.keys import model_attributes, run_config
from vit_jax.evaluation.intervals import wilson_interval
from vit_jax.jobs.runs import accuracy_of, find_test_split, train_once, write_tables
from vit_jax.jobs.validation import validate
from vit_jax.models.flops import forward_flops, training_exaflops
from vit_jax.models.params import count_parameters


def compare(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains several models alike, and compares accuracy with compute (paper figure 5).

    Args:
      config: what the runs share, with `job="compare"`. `compare.runs` has the keys that differ,
        `compare.epochs` the lengths of training, and `compare.seeds` the number of seeds.
      workdir: gets compare.csv, compare.md, compare.png, and RUN/epochs_N/seed_S for each run
        (RUN/run/seed_S without `compare.epochs`). The tables have the number of test images, and
        the 95 % interval of each mean accuracy that follows from it, see `wilson_interval`. (Images
        that `data.on_error="skip"` left out are counted, too.)

    Returns:
      `runs`: the number of runs; `table` and `figure`: the paths of compare.csv and compare.png.

    Raises:
      ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    validate(config)
    _check_folders(config.compare.runs)
    folder = files.absolute(workdir)
    rows: list[dict[str, Any]] = []
    series: dict[str, list[Point]] = {}
    checked: set[str] = set()
    for name in config.compare.runs:
        single = run_config(config, name)
        first = None  # the folder of this model's first run
        split, images = find_test_split(single)
        for epochs in config.compare.epochs or (None,):
            if epochs is not None:
                single.epochs, single.total_steps = float(epochs), None
            length = "run" if epochs is None else f"epochs_{epochs:g}"
            results = []
            for seed in range(config.seed, config.seed + config.compare.seeds):
                single.seed = seed
                place = folder / _slug(name) / length / f"seed_{seed}"
                first = first or place
                results.append(train_once(single, place, checked, first))
            point, row = _compared(name, single, results, images)
            rows.append(row | {"test_split": split, "test_images": images})
            series.setdefault(name, []).append(point)
    table, figure = folder / "compare.csv", folder / "compare.png"
    write_tables(table, rows, [_shown(row) for row in rows])
    if jax.process_index() == 0:
        drawn = io.BytesIO()
        accuracy_against_compute(series, drawn)
        files.write_file(figure, drawn.getvalue())
    return {"runs": len(rows) * config.compare.seeds, "table": str(table), "figure": str(figure)}


def _compared(
    name: str, config: ConfigDict, results: Sequence[dict[str, Any]], test_images: int
) -> tuple[Point, dict[str, Any]]:
    """Returns the point and the row of one model, whose runs differ only in the seed."""
    found = read_checkpoint(results[0]["checkpoint"], lazy=True)
    flops = forward_flops(
        config.model.variant,
        config.data.image_size,
        num_classes=found.num_classes,
        **model_attributes(config),
    )
    images = results[0]["step"] * config.batch_size
    speeds = [r["images_per_second"] for r in results if "images_per_second" in r]
    exaflops = float(f"{training_exaflops(flops, images):.3g}")
    point = Point(exaflops, [*map(accuracy_of, results)], test_images)
    low, high = wilson_interval(point.mean, test_images)
    row = {
        "run": name,
        "parameters": count_parameters(found.params),
        "mflops_per_image": round(flops / 1e6, 1),
        "images_seen": images,
        "images_per_second": round(float(np.median(speeds)), 1) if speeds else "",
        "exaflops": exaflops,
        "accuracy": round(point.mean, 4),
        "accuracy_std": round(float(np.std(point.accuracies)), 4),
        "accuracy_low": round(low, 4),
        "accuracy_high": round(high, 4),
        "seeds": len(results),
    }
    return point, row


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row as the Markdown table shows it."""
    return {
        "model": row["run"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "MFLOPs an image": f"{row['mflops_per_image']:.0f}",
        "images seen": f"{row['images_seen']:,}",
        "images/s": row["images_per_second"] and f"{row['images_per_second']:.0f}",
        "exaFLOPs": f"{row['exaflops']:.1e}",
        "seeds": str(row["seeds"]),
        "accuracy, % (± over seeds)": (
            f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f}"
        ),
        "test split": row["test_split"],
        "test images": f"{row['test_images']:,}",
        "95 % interval, %": f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}",
    }


def _slug(name: str) -> str:
    """Returns a name that a folder can have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60]


def _check_folders(names: Iterable[str]) -> None:
    """Raises ValueError if two runs would have the same folder."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(_slug(name), name)
        if other != name:
            raise ValueError(
                f"compare.runs: {other!r} and {name!r} would have the same folder, "
                f"{_slug(name)}: give one of them another name."
            )


_MARKERS = "osD^vP*X"


class Point(NamedTuple):
    """The accuracies of runs of one model with the same compute, on the same test images."""

    exaflops: float
    accuracies: Sequence[float]
    test_images: int

    @property
    def mean(self) -> float:
        """The mean of the accuracies."""
        return sum(self.accuracies) / len(self.accuracies)


def accuracy_against_compute(
    series: Mapping[str, Sequence[Point]], target: str | os.PathLike | IO[bytes]
) -> None:
    """Draws accuracy in per cent over pre-training compute, as the paper's figure 5.

    A bar spans each point's smallest and largest accuracy. A caption says so, and how far the
    number of test images leaves each accuracy uncertain.

    Args:
      series: points by the model's name.
      target: a path (.png, .svg) or an open file.
    """
    from matplotlib.figure import Figure  # importing it takes a second

    figure = Figure(figsize=(7, max(4, 1 + len(series) / 5)), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(series.items(), _MARKERS * len(series), strict=False):
        points = sorted(points)
        means = [100 * p.mean for p in points]
        below = [mean - 100 * min(p.accuracies) for mean, p in zip(means, points, strict=True)]
        above = [100 * max(p.accuracies) - mean for mean, p in zip(means, points, strict=True)]
        axes.errorbar(
            [p.exaflops for p in points],
            means,
            [below, above],
            marker=marker,
            capsize=3,
            label=printable(name),
        )
    axes.set(xscale="log", xlabel="training compute, exaFLOPs", ylabel="test accuracy, %")
    axes.set_title(_caption([p for points in series.values() for p in points]), fontsize="small")
    axes.grid(alpha=0.3, which="both")
    legend = figure.legend(loc="outside right upper", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold a "$"
    with warnings.catch_warnings(action="ignore"):  # of letters that the font doesn't have
        figure.savefig(target, dpi=110)


def _caption(points: Sequence[Point]) -> str:
    """Returns what the points and bars of the figure mean."""
    intervals = [wilson_interval(p.mean, p.test_images) for p in points]
    widest = 100 * max(high - low for low, high in intervals) / 2
    images = sorted({p.test_images for p in points})
    sizes = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    seeds = max(len(p.accuracies) for p in points)
    if seeds == 1:
        runs = "Each point is one run."
    else:
        runs = f"Points: mean of {seeds} seeds. Bars: smallest to largest of them."
    uncertain = f"{sizes} test images leave each accuracy uncertain by up to ± {widest:.1f} points"
    return f"{runs}\n{uncertain} (95 %)."
