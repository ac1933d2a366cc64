"""Training, read from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.workdir import lock, open_workdir
from vit_jax.data import pipeline
from vit_jax.data.dataset import Dataset
from vit_jax.data.inputs import open_inputs
from vit_jax.evaluation.during_training import evaluators_of_run
from vit_jax.evaluation.evaluator import Evaluator, is_due, measure
from vit_jax.evaluation.fewshot import feature_extractor
from vit_jax.jobs.best_so_far import BestSoFar
from vit_jax.jobs.data_wait import DataWait
from vit_jax.jobs.metric_writer import MetricWriter
from vit_jax.jobs.nonfinite import StopAtNonfinite
from vit_jax.jobs.notices import log_notices
from vit_jax.jobs.pending import PendingMetrics, train_columns
from vit_jax.jobs.progress import Progress, log_start
from vit_jax.jobs.resume import find_start
from vit_jax.jobs.saving import SaveTimes
from vit_jax.jobs.signals import Interrupted, StopSignals
from vit_jax.jobs.validation import validate
from vit_jax.training.fit_memory import fit_training
from vit_jax.training.parallel import make_program
from vit_jax.training.setup import needs_labels, run_length, set_up

logger = logging.getLogger(__name__)


def train(
    config: ConfigDict, workdir: str | os.PathLike, dataset: Dataset | None = None
) -> dict[str, Any]:
    """Trains a model and evaluates it at intervals; continues where an earlier call stopped.

    Args:
      config: see `vit_jax.default_config`.
      workdir: the run's folder or `gs://BUCKET/PATH`, for checkpoints/, metrics.csv, tensorboard/.
      dataset: what `config.data.name` stands for. None opens what it names.

    Returns:
      `step`, `test_accuracy`, `test_loss` (nats; for pixels, the squared error),
      `test_top5_accuracy` (with more than 5 classes), `polyak_test_accuracy`… (of the averaged
      parameters), `fewshot_5`… (by shots), `images_per_second` (in training), `checkpoint` (the
      last one's folder) and, if any, `skipped_updates` and `skipped_images` (by this process). If
      images have several labels, accuracies are `precision_at_1` and `mean_average_precision`.
      With `checkpoint.best`, `BestSoFar.summary` adds to it.

    Raises:
      ValueError: the configuration, data, checkpoint or workdir can't be used; says why.
      FileNotFoundError: there is no data, or no checkpoint to start from.
      OSError: another run has the workdir, or it can't be written to.
      FloatingPointError: a loss or gradient was NaN or infinite, see `config.on_nonfinite`.
      ImportError, ConnectionError: the data must be prepared first, and can't be.
      Interrupted, a KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and saved.

    Example:
      >>> config = vit_jax.default_config()
      >>> config.data.name, config.data.image_size = photos, 32  # such as "photos", <class>/*.jpg
      >>> config.model.variant, config.total_steps = "Nano/8", 2
      >>> config.batch_size = config.eval_batch_size = 8
      >>> summary = vit_jax.train(config, folder / "run")
      >>> summary["step"], sorted(path.name for path in (folder / "run").glob("[!.]*"))
      (2, ['checkpoints', 'metrics.csv', 'tensorboard'])
    """
    validate(config)
    with open_workdir(workdir) as folder, lock(folder):
        return _train(config, folder, dataset)


def _train(config: ConfigDict, workdir: epath.Path, dataset: Dataset | None) -> dict[str, Any]:
    is_main = jax.process_index() == 0

    # ----------------------------------------------------------------- what the run starts from
    start = find_start(config, workdir)
    config, checkpoints = start.config, start.checkpoints  # attributes left open are filled in

    # ------------------------------------------------------------------------------------- data
    inputs = open_inputs(config, labels=needs_labels(config), dataset=dataset)
    has_other_data = start.check_same_data(inputs)
    class_names = inputs.class_names if needs_labels(config) else ()
    start = start.with_head(class_names or None)
    config = start.config
    classes, preferred = len(inputs.class_names), start.accumulate_steps
    config = fit_training(config, num_classes=classes, preferred=preferred)
    inputs = inputs.with_eval_batch_size(config.eval_batch_size)
    total_steps = run_length(config, len(inputs.train_source))
    log_notices(config, start, len(inputs.train_source))
    if start.latest is None or has_other_data:  # else a run checked them at its first start
        inputs.check_decodable(config.data)
    if start.step < total_steps:
        pipeline.seek(inputs.train_batches, start.step)  # reads while the step compiles

    # -------------------------------------------------------------------------- model and state
    labels = inputs.describe_labels()
    setup = set_up(config, num_classes=len(class_names), total_steps=total_steps, **labels)
    program = make_program(
        config,
        evaluate=setup.objective.evaluate,
        update=setup.update,
        key=setup.key,
        extract_features=feature_extractor(setup.model),
    )
    state, saved_pending = start.first_state(setup, program)
    evaluators = evaluators_of_run(config, setup, program, inputs)
    measured = [name for evaluator in evaluators for name in evaluator.columns]
    tests = BestSoFar(start, measured, num_classes=len(class_names), other_data=has_other_data)
    last_step = start.step if tests.is_exhausted else total_steps
    log_start(config, state.params, start.step, last_step)

    # ------------------------------------------------------ what is measured, written and shown
    nonfinite = StopAtNonfinite(workdir, config, class_names, inputs)
    pending = PendingMetrics(program.gather, nonfinite.save_and_raise, saved=saved_pending)
    columns = (
        *("step", "epoch"),
        *train_columns(setup.objective.train_metrics),
        "images_per_second",
        *measured,
    )
    writer = MetricWriter(workdir, columns, steps_done=start.step, active=is_main, config=config)
    progress = Progress(start.step, total_steps, config.batch_size, active=is_main)
    data_wait = DataWait()
    save_times = SaveTimes(config.checkpoint.every, is_saved=start.latest is not None)

    def due_after(step: int) -> list[Evaluator]:
        return [x for x in evaluators if step == total_steps or is_due(x.every, step)]

    # ------------------------------------------------------------------------------------- loop
    results: dict[str, float] = {}
    with (
        StopSignals(start.step + 1, total_steps, lambda step: bool(due_after(step))) as signals,
        contextlib.closing(checkpoints),
        writer,
        contextlib.closing(progress),
    ):
        if start.step < last_step:
            batch = program.put_batch(next(inputs.train_batches))
        for step in range(start.step + 1, last_step + 1):
            is_last, is_best = step == last_step, False
            state, metrics = program.update(state, batch)
            signals.listen()  # the first step is compiled: from now on, there is something to save
            if not is_last:  # read and send the next batch while the devices compute
                with data_wait.reading(metrics):
                    batch = program.put_batch(next(inputs.train_batches))
            pending.add(metrics)
            progress.advance(metrics)  # waits for the step before this one

            due = due_after(step)
            if has_row := bool(due) or is_due(config.log_every, step):
                pending.check_finite(state, setup.max_skipped)  # waits for the steps so far
                row = {"step": step, "epoch": step * config.batch_size / len(inputs.train_source)}
                row |= pending.row()
                row |= progress.pause()  # images per second since the last row
                data_wait.pause()
                results = measure(due, state)
                is_best = tests.add(step, results)
                if not is_last and tests.is_exhausted:
                    is_last = True
                    results |= measure([x for x in evaluators if x not in due], state)
                row |= results
                writer.write(row)
                progress.show(row)
                pending.clear()  # they have a row; `save` stores those of steps without one
                progress.resume()

            number = signals.received(step)
            if is_last or is_best or number or save_times.is_due(step, has_row=has_row):
                progress.wait()
                pending.check_finite(state, setup.max_skipped)
                data = inputs.fingerprint.splits
                checkpoints.save(state, config, class_names, pending.metrics, data, tests.best)
            if is_last:
                break
            if number:
                raise Interrupted(number)
        if start.step >= last_step:  # no step was left
            results = measure(evaluators, state)
        signals.received(int(state.step) + 1)  # so that processes agree on what came after the last
    skipped = {"skipped_updates": int(state.skipped), "skipped_images": len(inputs.skipped_images)}
    summary = {
        "step": int(state.step),
        **results,
        **{name: count for name, count in skipped.items() if count},
        **tests.summary(checkpoints),
        **progress.summary(),
        "checkpoint": checkpoints.path(int(state.step)),
    }
    if signals.number:  # it came too late to stop this run, but not to stop what comes next
        raise Interrupted(signals.number, summary)
    return summary
