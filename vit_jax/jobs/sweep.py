"""job="sweep": the choice of a learning rate on examples that are held out (paper B.1.1)."""

from __future__ import annotations

import logging
import os
from typing import Any

from ml_collections import ConfigDict

from vit_jax.common import files
from vit_jax.data import sources, splits
from vit_jax.data.folders import FolderDataset
from vit_jax.evaluation.intervals import in_percent, with_interval
from vit_jax.jobs.runs import accuracy_of, train_once, write_tables
from vit_jax.jobs.validation import validate

logger = logging.getLogger(__name__)


def sweep(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Chooses a learning rate on examples held out of the training split (paper B.1.1).

    A model is trained with each of `sweep.lr` on all but `sweep.held_out` of the training split.
    The rate with the best accuracy on the held-out examples is chosen, of equal ones that
    with the lowest loss.
    One more model is trained with it on the whole split. This model alone is tested, once.

    Args:
      config: the run's configuration, with `job="sweep"`.
      workdir: gets a folder for each run, sweep.csv, and sweep.md, a table of the same numbers.
        They have the number of held-out images, and the 95 % interval of each accuracy, see
        `wilson_interval`. (Images that `data.on_error="skip"` left out are counted, too.)

    Returns:
      The summary of the last run as `train` returns it, `lr`, and `table`, the path of sweep.csv.

    Raises:
      ValueError, OSError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    validate(config)
    folder = files.absolute(workdir)
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    split, _ = sources.open_source(dataset, "train", config.data.train)
    kept, held_out = splits.hold_out(
        split,
        config.sweep.held_out,
        dataset.splits,
        by_position=isinstance(dataset, FolderDataset),
    )
    images = len(sources.open_source(dataset, "test", held_out)[1])
    trial = config.copy_and_resolve_references()
    trial.job, trial.data.train, trial.data.test = "train", kept, held_out
    rows: list[dict[str, Any]] = []
    checked: set[str] = set()
    rates = sorted(config.sweep.lr)
    first = folder / f"lr_{rates[0]:g}"
    for rate in rates:
        trial.optim.lr = float(rate)
        result = train_once(trial, folder / f"lr_{rate:g}", checked, first)
        columns = with_interval("held_out_accuracy", accuracy_of(result), images)
        columns["held_out_loss"] = result["test_loss"]
        rows.append(
            {"lr": rate, **{name: round(x, 4) for name, x in columns.items()}}
            | {"held_out_images": images}
        )
    best = _best(rows)
    if len(rows) > 1 and best in (rows[0], rows[-1]):
        logger.warning("The best rate, %g, is at the end of sweep.lr: try others.", best["lr"])
    for row in rows:
        row["chosen"] = "yes" if row is best else ""
    write_tables(folder / "sweep.csv", rows, [_shown(row, held_out) for row in rows])

    final = config.copy_and_resolve_references()
    final.job, final.data.train, final.optim.lr = "train", split, float(best["lr"])
    final.eval_every = 0
    result = train_once(final, folder / "best", checked, first)
    return {**result, "lr": best["lr"], "table": str(folder / "sweep.csv")}


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: (row["held_out_accuracy"], -row["held_out_loss"]))


def _shown(row: dict[str, Any], split: str) -> dict[str, Any]:
    """Returns a row as the Markdown table shows it."""
    accuracy, images = row["held_out_accuracy"], row["held_out_images"]
    return {
        "learning rate": f"{row['lr']:g}",
        "held-out split": split,
        "images": f"{images:,}",
        "accuracy, % (95 % interval)": in_percent(accuracy, images),
        "loss": f"{row['held_out_loss']:.3f}",
        "chosen": row["chosen"],
    }
