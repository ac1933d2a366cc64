"""job="fewshot": few-shot accuracy of a checkpoint's frozen features (paper 4.1)."""

from __future__ import annotations

import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.workdir import open_workdir
from vit_jax.data.inputs import evaluation_batches
from vit_jax.evaluation.fewshot import (
    feature_extractor,
    few_shot_splits,
    on_devices,
    open_few_shot,
    summarize,
)
from vit_jax.evaluation.intervals import with_interval
from vit_jax.evaluation.neighbours import Neighbours
from vit_jax.jobs.evaluate import checkpoint_view, open_checkpoint
from vit_jax.jobs.runs import write_tables
from vit_jax.jobs.same_data import warn_of_other_images
from vit_jax.jobs.validation import validate
from vit_jax.training.fit_memory import fit_evaluation
from vit_jax.training.parallel import make_program


def few_shot(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Evaluates a checkpoint's frozen features, see `vit_jax.evaluation.fewshot`.

    The model and image size are the checkpoint's. `config.fewshot` names the data, and says how
    many examples are drawn.

    Args:
      config: `init_from` names the checkpoint. If it is None, it is the newest in `workdir`.
      workdir: gets fewshot.csv: one row for each number of shots and each draw, with the 95 %
        interval of its accuracy, see `wilson_interval`; and fewshot.md, a row for each number of
        shots.

    Returns:
      `step`; `data`; `test_split`; `test_images`, the number of images that were classified;
      `fewshot_5`, `fewshot_5_std`… (by shots: mean and standard deviation of the accuracy over the
      draws); with `fewshot.neighbours=20`, `knn_20` and its 95 % interval, `knn_20_low` and
      `knn_20_high`, see `evaluation.neighbours`; `checkpoint`; `table`, the path of fewshot.csv.

    Raises:
      ValueError: a class has too few examples, or as `train`.
      FileNotFoundError: there is no data or no checkpoint.
    """
    validate(config)
    with open_workdir(workdir) as folder:
        return _few_shot(config, folder)


def _few_shot(config: ConfigDict, folder: epath.Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(config, folder)
    if config.init_average:
        checkpoint = checkpoint.averaged()
    options, model = checkpoint_view(config, checkpoint), checkpoint.model(dtype=config.dtype)
    extract = feature_extractor(model)
    config = fit_evaluation(config, extract, checkpoint.params, options.image_size)
    data = config.fewshot.name or config.data.name
    dataset, _, test = few_shot_splits(config)
    warn_of_other_images(checkpoint, data, dataset, *test)
    probe = open_few_shot(config, evaluation_batches(config, options))
    program = make_program(config, extract_features=extract)
    extracted = on_devices(program, program.place(checkpoint.params))
    scores = probe.measure(extracted)

    table, images = folder / "fewshot.csv", scores[0].images
    columns: dict[str, float] = {}
    shown = []
    for name, (mean, deviation) in summarize(scores).items():
        columns |= {name: mean, f"{name}_std": deviation}
        shown.append(
            {
                "examples of each class": name.removeprefix("fewshot_"),
                "draws": config.fewshot.seeds,
                "test split": f"{data}, {probe.test_split}",
                "test images": f"{images:,}",
                "accuracy, % (± over draws)": f"{100 * mean:.1f} ± {100 * deviation:.1f}",
            }
        )
    if config.fewshot.neighbours:
        nearest = Neighbours(config, evaluation_batches(config, options))
        accuracy = nearest.measure(extracted)
        columns |= with_interval(nearest.column, accuracy, images)
        shown.append(
            {
                "examples of each class": f"all, {config.fewshot.neighbours} nearest neighbours",
                "draws": "",
                "test split": f"{data}, {probe.test_split}",
                "test images": f"{images:,}",
                "accuracy, % (± over draws)": f"{100 * accuracy:.1f}",
            }
        )
    rows = [x._asdict() | with_interval("accuracy", x.accuracy, images) for x in scores]
    write_tables(table, rows, shown)
    return {
        "step": checkpoint.step,
        "data": data,
        "test_split": probe.test_split,
        "test_images": images,
        **columns,
        "checkpoint": checkpoint.path,
        "table": str(table),
    }
