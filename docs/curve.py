"""Draws the accuracy of a run over its steps, from its metrics.csv.

python docs/curve.py runs/photos docs/photos.png
"""

import argparse
import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def column(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Returns steps and values of the rows that have a value."""
    points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
    return [step for step, _ in points], [value for _, value in points]


def draw(workdir: pathlib.Path, picture: pathlib.Path) -> None:
    """Draws training accuracy (on augmented images) and test accuracy, in per cent, by step."""
    with open(workdir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for name, label, style in (
        ("train_accuracy", "training, augmented", dict(color="0.65", linewidth=1)),
        ("test_accuracy", "test", dict(color="tab:blue", marker="o", markersize=4)),
    ):
        steps, values = column(rows, name)
        axes.plot(steps, [100 * value for value in values], label=label, **style)
    axes.set(xlabel="step", ylabel="accuracy, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        draw(arguments.workdir, arguments.picture)
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(arguments.picture)
