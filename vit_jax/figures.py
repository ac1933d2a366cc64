"""Figures, drawn with Matplotlib into files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One model trained with one amount of compute, several times."""

    exaflops: float
    accuracies: Sequence[float]


def accuracy_against_compute(
    series: Mapping[str, Sequence[Point]], path: str | os.PathLike
) -> None:
    """Draws accuracy in per cent over pre-training compute, as the paper's figure 5.

    Args:
      series: points by the model's name; a bar spans each point's smallest and largest accuracy.
      path: of the picture, .png or .svg.
    """
    from matplotlib.figure import Figure  # slow to import, and few commands draw

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(series.items(), _MARKERS * len(series), strict=False):
        points = sorted(points)
        means = [100 * sum(p.accuracies) / len(p.accuracies) for p in points]
        below = [mean - 100 * min(p.accuracies) for mean, p in zip(means, points, strict=True)]
        above = [100 * max(p.accuracies) - mean for mean, p in zip(means, points, strict=True)]
        axes.errorbar(
            [p.exaflops for p in points], means, [below, above],
            marker=marker, capsize=3, label=name,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="training compute, exaFLOPs", ylabel="test accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


_MARKERS = "osD^vP*X"
