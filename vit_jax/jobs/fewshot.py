"""fewshot"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoints.workdir import make_workdir
from vit_jax.common.files import write_csv
from vit_jax.config.defaults import default
from vit_jax.data import pipeline, sources
from vit_jax.evaluation import fewshot
from vit_jax.jobs import validation
from vit_jax.jobs.evaluate import data_options, eval_batches_of, placed
from vit_jax.jobs.progress import Summary
from vit_jax.training import parallel
from vit_jax.weights.api import load


def few_shot(config: ConfigDict, workdir: str | os.PathLike) -> Summary:
    """Evaluates a checkpoint's frozen representations, see `vit_jax.fewshot`.

    The model and image size are the checkpoint's; the data and what is drawn from it are
    `config.fewshot`'s.

    Args:
      config: `init_from` names the checkpoint; where it is None, it is the newest in `workdir`.
      workdir: gets fewshot.csv: one row for each number of shots and each draw.

    Returns:
      `step`, `fewshot_5`, `fewshot_5_std`… (by shots: mean and standard deviation of the accuracy
      over the draws), `checkpoint` and `table`, the path of fewshot.csv.

    Raises:
      ValueError: a class has too few examples, or as `train`.
      FileNotFoundError: there is no data or no checkpoint.
    """
    validation.validate(config)
    workdir = make_workdir(workdir)
    checkpoint = load(config.init_from or workdir)
    if config.init_average:
        checkpoint = checkpoint.averaged()
    probe = few_shot_probe(config, eval_batches_of(config, data_options(config, checkpoint)))
    represent = fewshot.feature_extractor(checkpoint.model(dtype=config.dtype))
    program = parallel.strategy(config)(represent=represent)
    scores = probe(host_features(program, placed(program, checkpoint.params)))
    table = workdir / "fewshot.csv"
    if jax.process_index() == 0:
        write_csv(table, [fewshot.Score._fields, *scores])
    columns = {}
    for name, (mean, deviation) in fewshot.summary(scores).items():
        columns |= {name: mean, f"{name}_std": deviation}
    return {"step": checkpoint.step, **columns, "checkpoint": checkpoint.path, "table": str(table)}


def few_shot_probe(
    config: ConfigDict, batches: Callable[..., Iterable[pipeline.Batch]]
) -> fewshot.FewShot:
    """Returns the few-shot evaluation that the configuration describes."""
    own = config.data if config.fewshot.name is None else default().data
    dataset = sources.open_dataset(config.fewshot.name or config.data.name, config.data.dir)
    return fewshot.FewShot(
        sources.open_source(dataset, "train", config.fewshot.train or own.train)[1],
        sources.open_source(dataset, "test", config.fewshot.test or own.test)[1],
        num_classes=len(dataset.class_names),
        shots=config.fewshot.shots,
        seeds=config.fewshot.seeds,
        batches=batches,
        skip=config.data.on_error == "skip",
    )


def host_features(
    program: parallel.Parallel, params: Any
) -> Callable[[pipeline.Batch], dict[str, np.ndarray]]:
    """Returns batch -> the representations of its examples, on the host."""
    return lambda batch: program.gather(program.represent(params, program.put_batch(batch)))
