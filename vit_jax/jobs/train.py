"""Training, read from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.workdir import lock, make_workdir
from vit_jax.data import pipeline
from vit_jax.data.inputs import Inputs, open_inputs
from vit_jax.evaluation.evaluator import Evaluator, is_due
from vit_jax.evaluation.fewshot import feature_extractor, few_shot_evaluator, open_few_shot
from vit_jax.evaluation.split_metrics import on_test_split, polyak_on_test_split
from vit_jax.jobs.metric_writer import MetricWriter
from vit_jax.jobs.nonfinite import StopAtNonfinite
from vit_jax.jobs.pending import PendingMetrics, train_columns
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.resume import find_start
from vit_jax.jobs.signals import stop_signals
from vit_jax.jobs.validation import validate
from vit_jax.models.params import count_parameters
from vit_jax.training.parallel import Parallel, make_program
from vit_jax.training.setup import Setup, needs_labels, run_length, set_up
from vit_jax.training.step import TrainState

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains a model and evaluates it at intervals; continues where an earlier call stopped.

    Args:
      config: see `vit_jax.default_config`.
      workdir: the run's folder, or `gs://BUCKET/PATH`: gets checkpoints/, metrics.csv and
        tensorboard/.

    Returns:
      `step`, `test_accuracy`, `test_loss` (nats; for pixels, the squared error),
      `test_top5_accuracy` (with more than 5 classes), `polyak_test_accuracy`… (of the averaged
      parameters), `fewshot_5`… (by shots),
      `images_per_second` (in training), `checkpoint` (the last one's folder) and, if there were
      any, `skipped_updates`, and `skipped_images` (by this process since it started).

    Raises:
      ValueError: the configuration, the data or a checkpoint can't be used, or the workdir holds
        a run with another configuration; says why.
      FileNotFoundError: there is no data, or no checkpoint to start from.
      OSError: another run has the workdir, or it can't be written to.
      FloatingPointError: a loss or gradient was NaN or infinite, see `config.on_nonfinite`.
      ImportError, ConnectionError: the data must be prepared first, and can't be.
      KeyboardInterrupt: Ctrl-C or SIGTERM came in the loop; the step was finished and saved.

    Example:
      >>> config = vit_jax.default_config()
      >>> config.data.name, config.data.image_size = photos, 32  # such as "photos", <class>/*.jpg
      >>> config.model.variant = "Nano/8"
      >>> config.batch_size = config.eval_batch_size = 8
      >>> config.total_steps = 2
      >>> summary = vit_jax.train(config, folder / "run")
      >>> summary["step"], sorted(path.name for path in (folder / "run").glob("[!.]*"))
      (2, ['checkpoints', 'metrics.csv', 'tensorboard'])
    """
    validate(config)
    folder = make_workdir(workdir)
    with lock(folder):
        return _train(config, folder)


def _train(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    is_main = jax.process_index() == 0

    # ----------------------------------------------------------------- what the run starts from
    start = find_start(config, workdir)
    config, checkpoints = start.config, start.checkpoints  # attributes left open are filled in

    # ------------------------------------------------------------------------------------- data
    inputs = open_inputs(config, labels=needs_labels(config))
    total_steps = run_length(config, len(inputs.train_source))
    if config.optim.warmup_steps >= total_steps:
        logger.warning(
            "optim.warmup_steps=%d is no shorter than the run of %d steps: the learning rate "
            "rises to the end and never decays.",
            config.optim.warmup_steps,
            total_steps,
        )
    if start.latest is None:  # a resumed run checked its images at its first start
        inputs.check_decodable(config.data)
    if start.step < total_steps:
        pipeline.seek(inputs.train_batches, start.step)  # reads while the step compiles

    # -------------------------------------------------------------------------- model and state
    class_names = inputs.class_names if needs_labels(config) else ()
    setup = set_up(config, num_classes=len(class_names), total_steps=total_steps)
    program = make_program(
        config,
        evaluate=setup.objective.evaluate,
        update=setup.update,
        key=setup.key,
        extract_features=feature_extractor(setup.model),
    )
    state, saved_pending = start.first_state(setup, program)
    logger.info(
        "%s with %s parameters, steps %d to %d, %d images each, on %d x %s",
        config.model.variant,
        f"{count_parameters(state.params):,}",
        start.step,
        total_steps,
        config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
    )

    # ------------------------------------------------------ what is measured, written and shown
    evaluators = _evaluators(config, setup, program, inputs)
    nonfinite = StopAtNonfinite(workdir, config, class_names, inputs)
    pending = PendingMetrics(program.gather, nonfinite.save_and_raise, saved=saved_pending)
    columns = (
        *("step", "epoch"),
        *train_columns(setup.objective.train_metrics),
        "images_per_second",
        *(name for evaluator in evaluators for name in evaluator.columns),
    )
    writer = MetricWriter(workdir, columns, steps_done=start.step, active=is_main)
    progress = Progress(start.step, total_steps, config.batch_size, active=is_main)

    # ------------------------------------------------------------------------------------- loop
    results: dict[str, float] = {}
    with (
        stop_signals() as must_stop,
        contextlib.closing(checkpoints),
        contextlib.closing(writer),
        contextlib.closing(progress),
    ):
        if start.step < total_steps:
            batch = program.put_batch(next(inputs.train_batches))
        for step in range(start.step + 1, total_steps + 1):
            is_last = step == total_steps
            state, metrics = program.update(state, batch)
            if not is_last:  # read and send the next batch while the devices compute
                batch = program.put_batch(next(inputs.train_batches))
            pending.add(metrics)
            progress.advance(metrics)

            due = [x for x in evaluators if is_last or is_due(x.every, step)]
            if due or is_due(config.log_every, step):
                pending.check_finite(state, setup.max_skipped)  # waits for the steps so far
                row = {"step": step, "epoch": step * config.batch_size / len(inputs.train_source)}
                row |= pending.row()
                row["images_per_second"] = progress.pause()  # since the last row
                results = _evaluate(due, state)
                row |= results
                writer.write(row)
                progress.show(row)
                pending.clear()  # they have a row; `save` stores those of steps without one
                progress.resume()

            is_stopping = not is_last and must_stop(step)
            if is_last or is_stopping or is_due(config.checkpoint.every, step):
                pending.check_finite(state, setup.max_skipped)
                checkpoints.save(state, config, class_names, pending.metrics)
            if is_stopping:
                raise KeyboardInterrupt
        if start.step >= total_steps:  # no step was left
            results = _evaluate(evaluators, state)
    skipped = {"skipped_updates": int(state.skipped), "skipped_images": len(inputs.skipped_images)}
    return {
        "step": int(state.step),
        **results,
        **{name: count for name, count in skipped.items() if count},
        "images_per_second": round(progress.images_per_second, 1),
        "checkpoint": checkpoints.path(int(state.step)),
    }


def _evaluators(
    config: ConfigDict, setup: Setup, program: Parallel, inputs: Inputs
) -> list[Evaluator]:
    """Returns what is measured at intervals, in the order of the columns of metrics.csv."""
    test = (setup.objective, program, inputs.test_batches, config.eval_every)
    evaluators = [on_test_split(*test), polyak_on_test_split(*test)]
    if config.fewshot.every:
        few_shot = open_few_shot(config, inputs.make_eval_batches)
        evaluators.append(few_shot_evaluator(few_shot, program, config.fewshot.every))
    return evaluators


def _evaluate(evaluators: list[Evaluator], state: TrainState) -> dict[str, float]:
    results: dict[str, float] = {}
    for evaluator in evaluators:
        begin = time.monotonic()
        results |= evaluator.run(state)
        logger.debug("evaluator %s: %.1f s", evaluator.name, time.monotonic() - begin)
    return results
