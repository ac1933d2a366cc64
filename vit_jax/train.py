"""Training and evaluating, read top to bottom."""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax import checkpoint as checkpoint_lib
from vit_jax import config as config_lib
from vit_jax import data, interop, models, optim, parallel
from vit_jax import step as step_lib
from vit_jax.interop import surgery
from vit_jax.metrics import MetricWriter

logger = logging.getLogger(__name__)

Summary = dict[str, float | int | str]


def train(config: ConfigDict, workdir: str | os.PathLike) -> Summary:
    """Trains a model and evaluates it on the way; continues where an earlier call stopped.

    Args:
      config: see `vit_jax.config.default`.
      workdir: the run's folder: gets checkpoints/, metrics.csv and tensorboard/.

    Returns:
      `step`, `test_accuracy`, `test_loss` (nats), `test_top5_accuracy` (with more than 5 classes),
      `images_per_second` (in training) and `checkpoint`, the last one's folder.

    Raises:
      ValueError: the configuration, the data or a checkpoint can't be used; says why.
      FileNotFoundError: there is no data, or no checkpoint to start from.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; the step was finished and saved.
    """
    config_lib.validate(config)
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------------------------- data
    dataset = data.open_dataset(config.data.name, config.data.dir)
    train_split, test_split = _splits(config, dataset)
    train_source, test_source = _source(dataset, train_split), _source(dataset, test_split)
    logger.info(
        "%s: %d classes; train on %s (%d images), test on %s (%d images)", config.data.name,
        len(dataset.class_names), train_split, len(train_source), test_split, len(test_source),
    )  # fmt: skip
    shard = dict(
        options=config.data,
        num_classes=len(dataset.class_names),
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    batches = data.train_batches(
        train_source,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        **shard,
    )
    test_batches = data.eval_batches(
        test_source, batch_size=config.eval_batch_size // jax.process_count(), **shard
    )
    total_steps = config.total_steps or max(
        1, round(config.epochs * len(train_source) / config.batch_size)
    )
    if config.optim.warmup_steps >= total_steps:
        logger.warning(
            "optim.warmup_steps=%d is no shorter than the run of %d steps: the learning rate "
            "rises to the end and never decays.", config.optim.warmup_steps, total_steps,
        )  # fmt: skip

    # ------------------------------------------------------------------------- model and step
    checkpoints = checkpoint_lib.Checkpoints(workdir, config.checkpoint.keep)
    origin = None
    if checkpoints.latest_step() is not None:
        config = _inherit(config, checkpoint_lib.load_config(workdir))
    elif config.init_from is not None:
        origin = _origin(config)
        config = _inherit(config, origin.config)
    model = models.build(
        config.model.variant,
        num_classes=len(dataset.class_names),
        dtype=config.dtype,
        **config_lib.model_overrides(config),
    )
    learning_rate = optim.schedule(config.optim, total_steps)
    optimizer = optim.optimizer(config.optim, learning_rate)
    image_shape = data.image_shape(config.data.image_size)
    init_key, update_key = jax.random.split(jax.random.key(config.seed))
    update = step_lib.make_update(
        model,
        optimizer,
        learning_rate,
        accumulate_steps=config.accumulate_steps,
        label_smoothing=config.optim.label_smoothing,
    )
    program = parallel.BODIES[config.parallel](step_lib.make_evaluate(model), update, update_key)

    # ------------------------------------------------------------- state: resumed, loaded, new
    state = program.init(
        functools.partial(step_lib.initial_state, model, optimizer, image_shape), init_key
    )
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    if origin is not None:
        params = _fitted(origin, config, model.grid(image_shape), program.gather(state.params))
        state = state.replace(params=program.init(step_lib.identity, params))
        logger.info("starting from %s", origin.path)
    elif checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, batches)
        logger.info("continuing from %s", checkpoints.path(int(state.step)))
    first_step = int(state.step)
    logger.info(
        "%s with %s parameters, steps %d to %d, %d images each, on %d x %s",
        config.model.variant, f"{parameters:,}", first_step, total_steps, config.batch_size,
        jax.device_count(), jax.devices()[0].device_kind,
    )  # fmt: skip

    # ---------------------------------------------------------------------------------- loop
    writer = MetricWriter(
        workdir, first_step=first_step, total_steps=total_steps, active=jax.process_index() == 0
    )
    window, meter, result = [], _Meter(), {}
    with contextlib.closing(checkpoints), contextlib.closing(writer), _stop_signals() as stop:
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = program.update(state, program.put_batch(next(batches)))
            window.append(metrics)
            writer.advance()
            last = step == total_steps
            if step == first_step + 1 and not last:
                jax.block_until_ready(metrics)
                meter.start()  # the first step's time is the compiler's
            else:
                meter.count(config.batch_size)
            evaluating = last or _every(config.eval_every, step)
            if evaluating or _every(config.log_every, step):
                row = {"step": step, "epoch": step * config.batch_size / len(train_source)}
                row |= _means(program.gather(window))
                row["images_per_second"] = meter.stop()
                if evaluating:
                    result = _test_columns(_sums(program, state.params, test_batches))
                    row |= result
                writer.write(row)
                window = []
                meter.start()
            if last or stop.is_set() or _every(config.checkpoint.every, step):
                checkpoints.save(state, batches, config, dataset.class_names)
            if stop.is_set():
                raise KeyboardInterrupt
        if not result:  # the run was complete before
            result = _test_columns(_sums(program, state.params, test_batches))
    return {
        "step": int(state.step),
        **result,
        "images_per_second": round(meter.mean, 1),
        "checkpoint": checkpoints.path(checkpoints.latest_step()),
    }


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> Summary:
    """Evaluates a checkpoint on a split and writes WORKDIR/confusion_matrix.csv.

    The model, its classes and image size are the checkpoint's; the data (`data.name`, `data.test`)
    and `eval_batch_size` are the configuration's.

    Args:
      config: `init_from` names the checkpoint; where it is None, it is the newest in `workdir`.
      workdir: where the results go.

    Returns:
      As `train`, plus `confusion_matrix`, the path of a table with one row for each true class
      and one column for each predicted class, counting images.

    Raises:
      ValueError: the data's classes are not the checkpoint's (where these have no names, their
        number), or as `train`.
      FileNotFoundError: there is no data or no checkpoint.
    """
    config_lib.validate(config)
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoint = interop.restore(config.init_from or workdir)
    dataset = data.open_dataset(config.data.name, config.data.dir)
    known, found = checkpoint.class_names, dataset.class_names
    if (known and known != found) or checkpoint.num_classes != len(found):
        told = _few(known) if known else f"{checkpoint.num_classes} classes"
        raise ValueError(
            f"{checkpoint.path} tells {told} apart, but {config.data.name} has {_few(found)}: "
            f"choose data with its classes."
        )
    split = _splits(config, dataset)[1]
    options = config.data.copy_and_resolve_references()
    if checkpoint.image_shape is not None:
        with options.ignore_type():  # one side or two
            options.image_size = checkpoint.image_shape
    batches = data.eval_batches(
        _source(dataset, split),
        options,
        num_classes=len(dataset.class_names),
        batch_size=config.eval_batch_size // jax.process_count(),
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    evaluation = step_lib.make_evaluate(checkpoint.model(), confusion=True)
    program = parallel.BODIES[config.parallel](evaluation)
    params = program.init(step_lib.identity, jax.tree.map(np.asarray, checkpoint.params))
    start = time.monotonic()
    sums = _sums(program, params, batches)
    seconds = time.monotonic() - start
    table = pathlib.Path(workdir) / "confusion_matrix.csv"
    if jax.process_index() == 0:
        _write_confusion(table, sums["confusion"], dataset.class_names)
    return {
        "step": checkpoint.step,
        **_test_columns(sums),
        "images_per_second": round(int(sums["count"]) / seconds, 1),
        "checkpoint": checkpoint.path,
        "confusion_matrix": str(table),
    }


def _splits(config: ConfigDict, dataset: data.Dataset) -> tuple[str, str]:
    """Returns the (train, test) splits: the configuration's, or the defaults for the data set."""
    train_split, test_split = data.default_splits(dataset.splits)
    return config.data.train or train_split, config.data.test or test_split


def _source(dataset: data.Dataset, split: str) -> data.Source:
    source = dataset.source(split)
    if not len(source):
        sizes = ", ".join(f"{name} has {n} images" for name, n in dataset.splits.items())
        raise ValueError(f"The split {split} is empty: {sizes}. Choose data.train and data.test.")
    return source


def _origin(config: ConfigDict) -> checkpoint_lib.Checkpoint:
    """Returns what `config.init_from` names, which must be of the configured model."""
    adaptable = ("dropout", "pool", "pre_logits", "gelu", "norm_epsilon", "kernel_epsilon")
    overrides = config_lib.model_overrides(config)
    return interop.restore(
        config.init_from,
        variant=config.model.variant,
        **{key: value for key, value in overrides.items() if key not in adaptable},
    )


def _inherit(config: ConfigDict, origin: ConfigDict) -> ConfigDict:
    """Returns a copy with what weights are computed with, where `config` leaves it open."""
    config = config.copy_and_resolve_references()
    for key in ("gelu", "norm_epsilon", "kernel_epsilon", "positions", "positions_at"):
        if config.model[key] is None:
            config.model[key] = origin.model.get(key)
    return config


def _fitted(
    origin: checkpoint_lib.Checkpoint, config: ConfigDict, grid: tuple[int, int], fresh: Any
) -> Any:
    """Returns the parameters of `origin` with the head of `fresh`, fitted to its grid."""
    params = surgery.adapt(
        origin.params,
        fresh,
        old_grid=interop.grid(origin),
        new_grid=grid,
        where=origin.path,
        head={name: fresh[name] for name in surgery.HEAD if name in fresh},
        method=config.init_resize,
    )
    return jax.tree.map(np.asarray, params)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C or SIGTERM sets; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python allows handlers in the main thread only
        return

    def handle(number, frame):
        signal.signal(number, usual[number])
        stop.set()

    usual = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _means(window: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the training columns of a row: means over the steps since the last row."""
    columns = {name: float(np.mean([m[name] for m in window])) for name in window[0]}
    columns["train_loss"] = columns.pop("loss")
    columns["train_accuracy"] = columns.pop("accuracy")
    columns["learning_rate"] = float(window[-1]["learning_rate"])
    return columns


def _sums(program: parallel.Parallel, params: Any, batches: Iterable[data.Batch]) -> dict[str, Any]:
    """Returns the sums of `step.make_evaluate` over all batches, on the host."""
    total = collections.Counter()
    for batch in batches:
        sums = program.gather(program.evaluate(params, program.put_batch(batch)))
        total = {name: total[name] + value.astype(np.float64) for name, value in sums.items()}
    return total


def _test_columns(sums: step_lib.Metrics) -> dict[str, float]:
    return {f"test_{name}": value for name, value in step_lib.means(sums).items()}


def _write_confusion(path: pathlib.Path, table: np.ndarray, class_names: tuple[str, ...]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *class_names])
        for name, row in zip(class_names, table.astype(int), strict=True):
            writer.writerow([name, *row])


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{len(names)} classes ({shown}{', …' if len(names) > 8 else ''})"


class _Meter:
    """Images per second in training: since `start`, and over all such stretches."""

    def __init__(self):
        self._seconds = self._images = 0
        self.start()

    def start(self) -> None:
        self._begin, self._new = time.monotonic(), 0

    def count(self, images: int) -> None:
        self._new += images

    def stop(self) -> float:
        """Returns the rate since `start`."""
        seconds = time.monotonic() - self._begin
        self._seconds += seconds
        self._images += self._new
        return self._new / seconds

    @property
    def mean(self) -> float:
        return self._images / self._seconds if self._seconds else 0.0
