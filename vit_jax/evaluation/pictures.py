"""Draws a confusion matrix and a reliability diagram.

Matplotlib is imported in the functions that draw with it: its import takes a second.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.common.names import printable
from vit_jax.evaluation.calibration import Reliability

_NUMBERED, _NAMED = 20, 60  # most classes whose counts, and whose names, can be read in a picture


def draw_confusions(confusions: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Returns a confusion matrix as a PNG.

    The colour is the share of a true class's images. The counts are written into the matrix up to
    20 classes, and names beside it up to 60; of more, the numbers of the classes.

    Args:
      confusions: what `class_metrics.count_confusions` returns.
      class_names: by number.
    """
    count = len(class_names)
    shares = confusions / np.maximum(confusions.sum(1, keepdims=True), 1)
    named = count <= _NAMED
    side = 2.5 + (0.45 * count if count <= _NUMBERED else 0.22 * count if named else 6)
    figure = _new_figure(side + 0.8, side)
    axes = figure.subplots()
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    if named:
        names = [_shortened(name) for name in class_names]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set(parse_math=False, fontsize=8)
    if count <= _NUMBERED:
        for (i, j), images in np.ndenumerate(confusions):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{images}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(drawn, ax=axes, label="share of the true class's images", shrink=0.8)
    return _png(figure)


def draw_reliability(found: Reliability) -> bytes:
    """Returns a reliability diagram as a PNG: accuracy over confidence, and images per bin."""
    bins = len(found.images)
    left = np.arange(bins) / bins
    figure = _new_figure(4.8, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bar = dict(width=1 / bins, align="edge", edgecolor="white")
    upper.bar(left, np.nan_to_num(found.accuracy), **bar, label="accuracy")
    filled = found.images > 0
    upper.plot(found.confidence[filled], found.accuracy[filled], "k.", label="mean of a bin")
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as often right as confident")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(left, found.images, **bar, color="grey")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    return _png(figure)


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 24 else f"{name[:23]}…"


def _new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of Matplotlib; its size is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that the font doesn't have
        figure.savefig(target, dpi=110)
    return target.getvalue()
