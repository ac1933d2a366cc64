"""Studies of many runs: the choice of a learning rate, and the comparison of models.

Each run has its own folder, where it goes on if it was stopped, and leaves its result in
summary.json, so that a study that is started again does nothing twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vit_jax import checkpoint as checkpoint_lib
from vit_jax import config as config_lib
from vit_jax import cost, data, figures, train
from vit_jax.metrics import write_table

logger = logging.getLogger(__name__)


def sweep(config: ConfigDict, workdir: str | os.PathLike) -> train.Summary:
    """Chooses a learning rate on examples held out of the training split (paper B.1.1).

    A model is trained with each of `sweep.lr` on all but `sweep.held_out` of the training split.
    The one with the best accuracy there (of equal ones, the lowest rate) gives the learning rate
    to train on all of the split with, and that model alone is tested, once.

    Args:
      config: of the run, `job="sweep"`.
      workdir: gets sweep.csv and a folder for each run.

    Returns:
      What `train.train` returns of the last run, `lr`, and `table`, the path of sweep.csv.

    Raises:
      ValueError, FileNotFoundError, KeyboardInterrupt: as `train.train`.
    """
    config_lib.validate(config)
    folder = checkpoint_lib.absolute(workdir)
    dataset = data.open_dataset(config.data.name, config.data.dir)
    split, _ = data.open_source(dataset, "train", config.data.train)
    kept, held_out = data.hold_out(split, config.sweep.held_out, dataset.splits)
    trial = config.copy_and_resolve_references()
    trial.job, trial.data.train, trial.data.test = "train", kept, held_out
    rows, checked = [], set()
    for rate in sorted(config.sweep.lr):
        trial.optim.lr = float(rate)
        result = trained(trial, folder / f"lr_{rate:g}", checked)
        rows.append({
            "lr": rate,
            "held_out_accuracy": round(result["test_accuracy"], 4),
            "held_out_loss": round(result["test_loss"], 4),
        })  # fmt: skip
    best = max(rows, key=lambda row: row["held_out_accuracy"])
    if len(rows) > 1 and best in (rows[0], rows[-1]):
        logger.warning("The best rate, %g, is at the end of sweep.lr: try others.", best["lr"])
    for row in rows:
        row["chosen"] = "yes" if row is best else ""
    _write_table(folder / "sweep.csv", rows, rows)

    final = config.copy_and_resolve_references()
    final.job, final.data.train, final.optim.lr = "train", split, float(best["lr"])
    final.eval_every = 0
    result = trained(final, folder / "best", checked)
    return {**result, "lr": best["lr"], "table": str(folder / "sweep.csv")}


def compare(config: ConfigDict, workdir: str | os.PathLike) -> train.Summary:
    """Trains several models alike and sets what they reach beside what they cost (paper figure 5).

    Args:
      config: of what the runs share, `job="compare"`; `compare.runs` says what makes them
        different, `compare.epochs` how long they are trained and `compare.seeds` how often.
      workdir: gets compare.csv, compare.md, compare.png, and RUN/epochs_N/seed_S for each run.

    Returns:
      `runs`: how many were trained; `table` and `figure`: the paths of compare.csv and compare.png.

    Raises:
      ValueError, FileNotFoundError, KeyboardInterrupt: as `train.train`.
    """
    config_lib.validate(config)
    folder = checkpoint_lib.absolute(workdir)
    rows, series, checked = [], {}, set()
    for name in config.compare.runs:
        single = config_lib.run(config, name)
        for epochs in config.compare.epochs or (None,):
            if epochs is not None:
                single.epochs, single.total_steps = float(epochs), None
            length = "run" if epochs is None else f"epochs_{epochs:g}"
            results = []
            for seed in range(config.seed, config.seed + config.compare.seeds):
                single.seed = seed
                place = folder / _slug(name) / length / f"seed_{seed}"
                results.append(trained(single, place, checked))
            row = _compared(name, single, results)
            rows.append(row)
            accuracies = [result["test_accuracy"] for result in results]
            series.setdefault(name, []).append(figures.Point(row["exaflops"], accuracies))
    table, figure = folder / "compare.csv", folder / "compare.png"
    _write_table(table, rows, [_shown(row) for row in rows])
    if jax.process_index() == 0:
        with figure.open("wb") as file:
            figures.accuracy_against_compute(series, file)
    return {"runs": len(rows) * config.compare.seeds, "table": str(table), "figure": str(figure)}


def _compared(name: str, config: ConfigDict, results: Sequence[train.Summary]) -> dict[str, Any]:
    """Returns the row of a model's runs that differ in the seed alone."""
    found = checkpoint_lib.load(results[0]["checkpoint"], lazy=True)
    accuracies = [result["test_accuracy"] for result in results]
    flops = cost.forward_flops(
        config.model.variant,
        config.data.image_size,
        num_classes=found.num_classes,
        **config_lib.model_overrides(config),
    )
    images = results[0]["step"] * config.batch_size
    return {
        "run": name,
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(found.params)),
        "mflops_per_image": round(flops / 1e6, 1),
        "images_seen": images,
        "images_per_second": round(float(np.median([r["images_per_second"] for r in results])), 1),
        "exaflops": float(f"{cost.training_exaflops(flops, images):.3g}"),
        "accuracy": round(float(np.mean(accuracies)), 4),
        "accuracy_std": round(float(np.std(accuracies)), 4),
        "seeds": len(results),
    }


def trained(
    config: ConfigDict, workdir: epath.Path, checked: set[str] | None = None
) -> train.Summary:
    """Returns what `train.train` returns, trained now or in an earlier call.

    Args:
      config: of the run, `job="train"`.
      workdir: of the run; gets summary.json, too.
      checked: the `config.data` of earlier runs, whose images are not looked at again before
        training; gets this run's.

    Raises:
      ValueError: the folder holds the result of another configuration; or as `train.train`.
    """
    path = workdir / "summary.json"
    wanted = config.to_json(sort_keys=True)
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["config"] != json.loads(wanted):
            raise ValueError(
                f"{workdir} holds the result of another configuration. Take a new workdir, or "
                f"remove this folder to train again."
            )
        return stored["summary"]
    logger.info("run %s", workdir)
    checked = set() if checked is None else checked
    images = config.data.to_json(sort_keys=True)
    run = config.copy_and_resolve_references()
    run.data.check = config.data.check and images not in checked
    summary = train.train(run, workdir)
    checked.add(images)
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"config": json.loads(wanted), "summary": summary}))
        partial.replace(path)
    return summary


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row of `_compared` as people read it."""
    return {
        "model": row["run"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "MFLOPs an image": f"{row['mflops_per_image']:.0f}",
        "images seen": f"{row['images_seen']:,}",
        "images/s": f"{row['images_per_second']:.0f}",
        "exaFLOPs": f"{row['exaflops']:.1e}",
        "accuracy, %": f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f}",
    }


def _write_table(
    path: epath.Path, rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]
) -> None:
    """Writes rows as CSV and, beside it, those to show as a Markdown table, which is logged."""
    if jax.process_index() != 0:
        return
    write_table(path, [rows[0], *(row.values() for row in rows)])
    lines = [shown[0], ["---"] * len(shown[0]), *(row.values() for row in shown)]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    path.with_suffix(".md").write_text(text)
    logger.info("%s\n%s", path, text)


def _slug(name: str) -> str:
    """Returns a name as a folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
