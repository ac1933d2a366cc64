"""job="evaluate": a checkpoint's accuracy on a split, and its confusion matrix."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.checkpoints.workdir import make_workdir
from vit_jax.common.files import write_csv
from vit_jax.common.messages import first_few
from vit_jax.data import sources
from vit_jax.data.inputs import evaluation_batches
from vit_jax.data.pipeline import SkippedImages
from vit_jax.evaluation.split_metrics import POLYAK, TEST, prefixed, sum_over_batches
from vit_jax.jobs.validation import validate
from vit_jax.training.classification import classification
from vit_jax.training.parallel import make_program
from vit_jax.weights.api import load


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Evaluates a checkpoint on a split and writes WORKDIR/confusion_matrix.csv.

    The model, its classes and image size are the checkpoint's. The data (`data.name`, `data.test`)
    and `eval_batch_size` are the configuration's.

    Args:
      config: `init_from` names the checkpoint. If it is None, it is the newest in `workdir`.
      workdir: where the results go.

    Returns:
      `step`, `test_accuracy`, `test_loss`… and `polyak_test_accuracy`…, as `train`;
      `images_per_second`; `skipped_images`, if there were any; `checkpoint`, its path; and
      `confusion_matrix`, the path of a table with one row for each true class and one column for
      each predicted class, counting images.

    Raises:
      ValueError: the data's classes are not the checkpoint's (if these have no names, their
        number), or as `train`.
      FileNotFoundError: there is no data or no checkpoint.

    Example:
      >>> config = vit_jax.default_config()
      >>> config.job = "evaluate"
      >>> config.init_from, config.data.name = "checkpoints/quickstart", "rendered_flowers"
      >>> config.eval_batch_size = 200
      >>> summary = vit_jax.evaluate(config, folder)
      >>> 0.9 < summary["test_accuracy"] < 0.96
      True
    """
    validate(config)
    folder = make_workdir(workdir)
    checkpoint = load(config.init_from or folder)
    if not checkpoint.num_classes:
        raise ValueError(
            f"{checkpoint.path} has no head to classify with: fine-tune from it, or take "
            f"--config.job=fewshot, which evaluates its features."
        )
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    class_names = dataset.class_names
    _check_classes(checkpoint, class_names, config.data.name)
    _, source = sources.open_source(dataset, "test", config.data.test)
    skipped = SkippedImages()
    make_batches = evaluation_batches(config, checkpoint_view(config, checkpoint), skipped)
    batches = make_batches(source, num_classes=len(class_names))
    objective = classification(checkpoint.model(dtype=config.dtype), confusion=True)
    program = make_program(config, evaluate=objective.evaluate)
    params = program.place(checkpoint.params)

    start = time.monotonic()
    sums = sum_over_batches(program, params, batches)
    seconds = time.monotonic() - start
    columns = prefixed(TEST, objective.summarize(sums))
    if checkpoint.average is not None:
        average = program.place(checkpoint.average)
        columns |= prefixed(
            POLYAK, objective.summarize(sum_over_batches(program, average, batches))
        )

    table = folder / "confusion_matrix.csv"
    if jax.process_index() == 0:
        counts = zip(class_names, sums["confusion"].astype(int), strict=True)
        rows = [[name, *row] for name, row in counts]
        write_csv(table, [["true \\ predicted", *class_names], *rows])
    return {
        "step": checkpoint.step,
        **columns,
        **({"skipped_images": len(skipped)} if len(skipped) else {}),
        "images_per_second": round(int(sums["count"]) / seconds, 1),
        "checkpoint": checkpoint.path,
        "confusion_matrix": str(table),
    }


def checkpoint_view(config: ConfigDict, checkpoint: Checkpoint) -> ConfigDict:
    """Returns `config.data` with the image size of a checkpoint, if it is known."""
    options = config.data.copy_and_resolve_references()
    if checkpoint.image_shape is not None:
        with options.ignore_type():  # one side or two
            options.image_size = checkpoint.image_shape
    return options


def _check_classes(checkpoint: Checkpoint, class_names: tuple[str, ...], data: str) -> None:
    known = checkpoint.class_names
    if (not known or known == class_names) and checkpoint.num_classes == len(class_names):
        return
    classes = _listed(known) if known else f"{checkpoint.num_classes} classes"
    raise ValueError(
        f"{checkpoint.path} has {classes}, but {data} has {_listed(class_names)}: choose data with "
        f"the checkpoint's classes."
    )


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({first_few(names, 8)})"
