"""train"""

from __future__ import annotations

import contextlib
import logging
import os

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import read_config
from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.checkpoints.workdir import lock, make_workdir
from vit_jax.config.keys import image_shape
from vit_jax.data import checks, pipeline, sources
from vit_jax.evaluation import fewshot
from vit_jax.evaluation.classification import polyak_columns, sums_over, test_columns
from vit_jax.jobs import validation
from vit_jax.jobs.evaluate import eval_batches_of
from vit_jax.jobs.fewshot import few_shot_probe, host_features
from vit_jax.jobs.metric_writer import MetricWriter
from vit_jax.jobs.nonfinite import nonfinite_message, save_nonfinite
from vit_jax.jobs.pending import mean_metrics
from vit_jax.jobs.progress import Summary, ThroughputMeter
from vit_jax.jobs.signals import stop_signals
from vit_jax.jobs.start import adapted_params, check_same_run, inherit, load_pretrained
from vit_jax.training import parallel
from vit_jax.training.setup import set_up, total_steps
from vit_jax.training.step import identity

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | os.PathLike) -> Summary:
    """Trains a model and evaluates it on the way; continues where an earlier call stopped.

    Args:
      config: see `vit_jax.config.default`.
      workdir: the run's folder, or `gs://BUCKET/PATH`: gets checkpoints/, metrics.csv and
        tensorboard/.

    Returns:
      `step`, `test_accuracy`, `test_loss` (nats), `test_top5_accuracy` (with more than 5 classes),
      `polyak_test_accuracy`… (of the averaged parameters), `fewshot_5`… (by shots),
      `images_per_second` (in training), `checkpoint`, the last one's folder, and, where there
      were any, `skipped_updates`, and `skipped_images` (since the start of this process).

    Raises:
      ValueError: the configuration, the data or a checkpoint can't be used, or the workdir is
        another configuration's; says why.
      FileNotFoundError: there is no data, or no checkpoint to start from.
      OSError: another run has the workdir, or it can't be written to.
      FloatingPointError: a loss or gradient was NaN or infinite, see `config.on_nonfinite`.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and saved.
    """
    validation.validate(config)
    workdir = make_workdir(workdir)
    with lock(workdir):
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: epath.Path) -> Summary:
    # ---------------------------------------------------------------------------------- data
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    num_classes = len(dataset.class_names)
    train_split, train_source = sources.open_source(dataset, "train", config.data.train)
    test_split, test_source = sources.open_source(dataset, "test", config.data.test)
    logger.info(
        "%s: %d classes; train on %s (%d images), test on %s (%d images)",
        config.data.name,
        num_classes,
        train_split,
        len(train_source),
        test_split,
        len(test_source),
    )
    checks.require_trainable(
        dataset,
        train_split,
        batch_size=config.batch_size,
        labels=config.objective == "classification",
    )
    skipped_images = pipeline.SkippedImages()
    batches = pipeline.train_batches(
        train_source,
        config.data,
        num_classes=num_classes,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
        skipped=skipped_images,
    )
    eval_batches = eval_batches_of(config, config.data, skipped_images)
    test_batches = eval_batches(test_source, num_classes=num_classes)
    probe = few_shot_probe(config, eval_batches) if config.fewshot.every else None
    last_step = total_steps(config, len(train_source))
    if config.optim.warmup_steps >= last_step:
        logger.warning(
            "optim.warmup_steps=%d is no shorter than the run of %d steps: the learning rate "
            "rises to the end and never decays.",
            config.optim.warmup_steps,
            last_step,
        )

    # ------------------------------------------------------------------------- model and step
    checkpoints = CheckpointManager(
        workdir, config.checkpoint.keep, fallback=config.checkpoint.fallback
    )
    latest = checkpoints.latest_step()
    first_step = latest or 0
    if latest is None:
        checks.require_decodable(
            dataset, (train_split, test_split), config.data, progress=jax.process_index() == 0
        )
    if first_step < last_step:
        pipeline.seek(batches, first_step)  # they are read while the step compiles
    origin = None
    if latest is not None:
        saved = read_config(workdir)
        config = inherit(config, saved)
        check_same_run(config, saved, checkpoints.path(latest))
    elif config.init_from is not None:
        origin = load_pretrained(config)
        config = inherit(config, origin.config)
    class_names = () if config.objective == "masked_patches" else dataset.class_names
    trained = set_up(config, num_classes=len(class_names), total_steps=last_step)
    program = parallel.strategy(config)(
        trained.objective.evaluate,
        trained.update,
        trained.key,
        fewshot.feature_extractor(trained.model),
    )

    # ------------------------------------------------------------- state: resumed, loaded, new
    state, window = program.init(trained.initial, trained.init_key), []
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    if origin is not None:
        grid = trained.model.grid(image_shape(config.data.image_size))
        params = adapted_params(origin, config, grid, program.gather(state.params))
        state = state.replace(params=program.init(identity, params))
        logger.info("starting from %s", origin.path)
    elif latest is not None:
        state, window = checkpoints.restore(state)
        logger.info("continuing from %s", checkpoints.path(first_step))
    logger.info(
        "%s with %s parameters, steps %d to %d, %d images each, on %d x %s",
        config.model.variant,
        f"{parameters:,}",
        first_step,
        last_step,
        config.batch_size,
        jax.device_count(),
        jax.devices()[0].device_kind,
    )

    # ---------------------------------------------------------------------------------- loop
    def tested() -> dict[str, float]:
        columns = test_columns(sums_over(program, state.params, test_batches))
        if state.average is not None:
            columns |= polyak_columns(sums_over(program, state.average, test_batches))
        return columns

    def probed() -> dict[str, float]:
        scores = probe(host_features(program, state.params))
        return {name: mean for name, (mean, _) in fewshot.summary(scores).items()}

    writer = MetricWriter(
        workdir,
        first_step=first_step,
        total_steps=last_step,
        active=jax.process_index() == 0,
        more_columns=[f"fewshot_{shots}" for shots in config.fewshot.shots] if probe else [],
    )
    running, meter, result = [], ThroughputMeter(), {}

    def finished() -> list[dict[str, np.ndarray]]:
        """Waits for the steps so far; returns the metrics of those that have no row yet."""
        window.extend(program.gather(running))
        running.clear()
        if window and window[-1]["nonfinite"] > trained.max_skipped:
            folder = save_nonfinite(workdir, state, config, class_names)
            step = int(state.step) + 1
            ids = pipeline.batch_ids(
                train_source,
                step,
                batch_size=config.batch_size,
                seed=config.seed,
                skipped=skipped_images,
            )
            raise FloatingPointError(
                nonfinite_message(window, step, trained.max_skipped, folder, ids)
            )
        return window

    with stop_signals() as stop, contextlib.closing(checkpoints), contextlib.closing(writer):
        if first_step < last_step:
            batch = program.put_batch(next(batches))
        for step in range(first_step + 1, last_step + 1):
            state, metrics = program.update(state, batch)
            last = step == last_step
            if not last:  # reads and sends what comes next while the devices compute
                batch = program.put_batch(next(batches))
            running.append(metrics)
            writer.advance()
            if step == first_step + 1 and not last:
                jax.block_until_ready(metrics)
                meter.start()  # the first step's time is the compiler's
            else:
                meter.count(config.batch_size)
            evaluating = last or _every(config.eval_every, step)
            probing = probe is not None and (last or _every(config.fewshot.every, step))
            if evaluating or probing or _every(config.log_every, step):
                row = {"step": step, "epoch": step * config.batch_size / len(train_source)}
                row |= mean_metrics(finished())
                row["images_per_second"] = meter.stop()
                result = (tested() if evaluating else {}) | (probed() if probing else {})
                row |= result
                writer.write(row)
                window.clear()
                meter.start()
            stopping = not last and stop(step)
            if last or stopping or _every(config.checkpoint.every, step):
                checkpoints.save(state, config, class_names, finished())
            if stopping:
                raise KeyboardInterrupt
        if not result:  # the run was complete before
            result = tested() | (probed() if probe else {})
    skipped = {"skipped_updates": int(state.skipped), "skipped_images": len(skipped_images)}
    return {
        "step": int(state.step),
        **result,
        **{name: count for name, count in skipped.items() if count},
        "images_per_second": round(meter.mean, 1),
        "checkpoint": checkpoints.path(checkpoints.latest_step()),
    }


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0
