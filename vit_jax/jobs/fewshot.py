"""job="fewshot": few-shot accuracy of a checkpoint's frozen features (paper 4.1)."""

from __future__ import annotations

import os
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.checkpoints.workdir import make_workdir
from vit_jax.common.files import write_csv
from vit_jax.data.inputs import evaluation_batches
from vit_jax.evaluation.fewshot import (
    Score,
    feature_extractor,
    on_devices,
    open_few_shot,
    summarize,
)
from vit_jax.jobs.evaluate import checkpoint_view
from vit_jax.jobs.validation import validate
from vit_jax.training.parallel import make_program
from vit_jax.weights.api import load


def few_shot(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Evaluates a checkpoint's frozen features, see `vit_jax.evaluation.fewshot`.

    The model and image size are the checkpoint's. `config.fewshot` names the data, and says how
    many examples are drawn.

    Args:
      config: `init_from` names the checkpoint. If it is None, it is the newest in `workdir`.
      workdir: gets fewshot.csv: one row for each number of shots and each draw.

    Returns:
      `step`, `fewshot_5`, `fewshot_5_std`… (by shots: mean and standard deviation of the accuracy
      over the draws), `checkpoint` and `table`, the path of fewshot.csv.

    Raises:
      ValueError: a class has too few examples, or as `train`.
      FileNotFoundError: there is no data or no checkpoint.
    """
    validate(config)
    folder = make_workdir(workdir)
    checkpoint = load(config.init_from or folder)
    if config.init_average:
        checkpoint = checkpoint.averaged()
    probe = open_few_shot(config, evaluation_batches(config, checkpoint_view(config, checkpoint)))
    model = checkpoint.model(dtype=config.dtype)
    program = make_program(config, extract_features=feature_extractor(model))
    scores = probe.measure(on_devices(program, program.place(checkpoint.params)))

    table = folder / "fewshot.csv"
    if jax.process_index() == 0:
        write_csv(table, [Score._fields, *scores])
    columns: dict[str, float] = {}
    for name, (mean, deviation) in summarize(scores).items():
        columns |= {name: mean, f"{name}_std": deviation}
    return {
        "step": checkpoint.step,
        **columns,
        "checkpoint": checkpoint.path,
        "table": str(table),
    }
