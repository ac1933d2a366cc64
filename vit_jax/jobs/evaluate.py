"""evaluate"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.checkpoints.workdir import make_workdir
from vit_jax.common.files import write_csv
from vit_jax.data import pipeline, sources
from vit_jax.evaluation.classification import polyak_columns, sums_over, test_columns
from vit_jax.jobs import validation
from vit_jax.jobs.progress import Summary
from vit_jax.training import parallel
from vit_jax.training.classification import classification
from vit_jax.training.step import identity
from vit_jax.weights.api import load


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> Summary:
    """Evaluates a checkpoint on a split and writes WORKDIR/confusion_matrix.csv.

    The model, its classes and image size are the checkpoint's; the data (`data.name`, `data.test`)
    and `eval_batch_size` are the configuration's.

    Args:
      config: `init_from` names the checkpoint; where it is None, it is the newest in `workdir`.
      workdir: where the results go.

    Returns:
      As `train`, but for `fewshot_…`, plus `confusion_matrix`, the path of a table with one row for
      each true class and one column for each predicted class, counting images.

    Raises:
      ValueError: the data's classes are not the checkpoint's (where these have no names, their
        number), or as `train`.
      FileNotFoundError: there is no data or no checkpoint.
    """
    validation.validate(config)
    workdir = make_workdir(workdir)
    checkpoint = load(config.init_from or workdir)
    if not checkpoint.num_classes:
        raise ValueError(
            f"{checkpoint.path} has no head to classify with: fine-tune from it, or take "
            f"--config.job=fewshot, which looks at its representations."
        )
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    known, found = checkpoint.class_names, dataset.class_names
    if (known and known != found) or checkpoint.num_classes != len(found):
        told = _few(known) if known else f"{checkpoint.num_classes} classes"
        raise ValueError(
            f"{checkpoint.path} tells {told} apart, but {config.data.name} has {_few(found)}: "
            f"choose data with its classes."
        )
    eval_batches = eval_batches_of(config, data_options(config, checkpoint))
    _, source = sources.open_source(dataset, "test", config.data.test)
    batches = eval_batches(source, num_classes=len(found))
    objective = classification(checkpoint.model(dtype=config.dtype), confusion=True)
    program = parallel.strategy(config)(objective.evaluate)
    start = time.monotonic()
    sums = sums_over(program, placed(program, checkpoint.params), batches)
    seconds = time.monotonic() - start
    columns = test_columns(sums)
    if checkpoint.average is not None:
        average = placed(program, checkpoint.average)
        columns |= polyak_columns(sums_over(program, average, batches))
    table = workdir / "confusion_matrix.csv"
    if jax.process_index() == 0:
        counts = zip(found, sums["confusion"].astype(int), strict=True)
        write_csv(table, [["true \\ predicted", *found], *([name, *row] for name, row in counts)])
    return {
        "step": checkpoint.step,
        **columns,
        "images_per_second": round(int(sums["count"]) / seconds, 1),
        "checkpoint": checkpoint.path,
        "confusion_matrix": str(table),
    }


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{len(names)} classes ({shown}{', …' if len(names) > 8 else ''})"


def eval_batches_of(
    config: ConfigDict, options: ConfigDict, skipped: pipeline.SkippedImages | None = None
) -> Callable[..., Iterable[pipeline.Batch]]:
    """Returns (source, num_classes=) -> this process's evaluation batches of it."""
    return functools.partial(
        pipeline.eval_batches,
        options=options,
        batch_size=config.eval_batch_size // jax.process_count(),
        process=jax.process_index(),
        processes=jax.process_count(),
        skipped=skipped,
    )


def data_options(config: ConfigDict, checkpoint: Checkpoint) -> ConfigDict:
    """Returns `config.data` with the image size of a checkpoint, where it is known."""
    options = config.data.copy_and_resolve_references()
    if checkpoint.image_shape is not None:
        with options.ignore_type():  # one side or two
            options.image_size = checkpoint.image_shape
    return options


def placed(program: parallel.Parallel, params: Any) -> Any:
    """Returns parameters on the devices."""
    return program.init(identity, jax.tree.map(np.asarray, params))
