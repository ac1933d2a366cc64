"""Training and evaluating, read top to bottom."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import checkpoint as checkpoint_lib
from vit_jax import config as config_lib
from vit_jax import data, fewshot, interop, models, objectives, optim, parallel
from vit_jax import step as step_lib
from vit_jax.interop import surgery
from vit_jax.metrics import MetricWriter, write_table

logger = logging.getLogger(__name__)

Summary = dict[str, float | int | str]


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
    config_lib.validate(config)
    workdir = checkpoint_lib.make_workdir(workdir)
    with checkpoint_lib.lock(workdir):
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: epath.Path) -> Summary:
    # ---------------------------------------------------------------------------------- data
    dataset = data.open_dataset(config.data.name, config.data.dir)
    num_classes = len(dataset.class_names)
    train_split, train_source = data.open_source(dataset, "train", config.data.train)
    test_split, test_source = data.open_source(dataset, "test", config.data.test)
    logger.info(
        "%s: %d classes; train on %s (%d images), test on %s (%d images)", config.data.name,
        num_classes, train_split, len(train_source), test_split, len(test_source),
    )  # fmt: skip
    data.require_trainable(
        dataset, train_split, batch_size=config.batch_size,
        labels=config.objective == "classification",
    )  # fmt: skip
    skipped_images = data.Skipped()
    batches = data.train_batches(
        train_source,
        config.data,
        num_classes=num_classes,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
        skipped=skipped_images,
    )
    eval_batches = _eval_batches(config, config.data, skipped_images)
    test_batches = eval_batches(test_source, num_classes=num_classes)
    probe = _probe(config, eval_batches) if config.fewshot.every else None
    total_steps = _total_steps(config, len(train_source))
    if config.optim.warmup_steps >= total_steps:
        logger.warning(
            "optim.warmup_steps=%d is no shorter than the run of %d steps: the learning rate "
            "rises to the end and never decays.", config.optim.warmup_steps, total_steps,
        )  # fmt: skip

    # ------------------------------------------------------------------------- model and step
    checkpoints = checkpoint_lib.Checkpoints(
        workdir, config.checkpoint.keep, fallback=config.checkpoint.fallback
    )
    latest = checkpoints.latest_step()
    first_step = latest or 0
    if latest is None:
        data.require_decodable(
            dataset, (train_split, test_split), config.data, progress=jax.process_index() == 0
        )
    if first_step < total_steps:
        data.go_to(batches, first_step)  # they are read while the step compiles
    origin = None
    if latest is not None:
        saved = checkpoint_lib.load_config(workdir)
        config = _inherit(config, saved)
        config_lib.check_same_run(config, saved, checkpoints.path(latest))
    elif config.init_from is not None:
        origin = _origin(config)
        config = _inherit(config, origin.config)
    class_names = () if config.objective == "masked_patches" else dataset.class_names
    trained = train_step(config, num_classes=len(class_names), total_steps=total_steps)
    program = parallel.body(config)(
        trained.objective.evaluate, trained.update, trained.key, fewshot.represent(trained.model)
    )

    # ------------------------------------------------------------- state: resumed, loaded, new
    state, window = program.init(trained.initial, trained.init_key), []
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    if origin is not None:
        grid = trained.model.grid(data.image_shape(config.data.image_size))
        params = _fitted(origin, config, grid, program.gather(state.params))
        state = state.replace(params=program.init(step_lib.identity, params))
        logger.info("starting from %s", origin.path)
    elif latest is not None:
        state, window = checkpoints.restore(state)
        logger.info("continuing from %s", checkpoints.path(first_step))
    logger.info(
        "%s with %s parameters, steps %d to %d, %d images each, on %d x %s",
        config.model.variant, f"{parameters:,}", first_step, total_steps, config.batch_size,
        jax.device_count(), jax.devices()[0].device_kind,
    )  # fmt: skip

    # ---------------------------------------------------------------------------------- loop
    def tested() -> dict[str, float]:
        columns = _test_columns(_sums(program, state.params, test_batches))
        if state.average is not None:
            columns |= _polyak_columns(_sums(program, state.average, test_batches))
        return columns

    def probed() -> dict[str, float]:
        scores = probe(_represented(program, state.params))
        return {name: mean for name, (mean, _) in fewshot.summary(scores).items()}

    writer = MetricWriter(
        workdir,
        first_step=first_step,
        total_steps=total_steps,
        active=jax.process_index() == 0,
        more_columns=[f"fewshot_{shots}" for shots in config.fewshot.shots] if probe else [],
    )
    running, meter, result = [], _Meter(), {}

    def finished() -> list[dict[str, np.ndarray]]:
        """Waits for the steps so far; returns the metrics of those that have no row yet."""
        window.extend(program.gather(running))
        running.clear()
        if window and window[-1]["nonfinite"] > trained.max_skipped:
            folder = _save_nonfinite(workdir, state, config, class_names)
            step = int(state.step) + 1
            ids = data.batch_ids(
                train_source, step, batch_size=config.batch_size, seed=config.seed,
                skipped=skipped_images,
            )  # fmt: skip
            raise FloatingPointError(_nonfinite(window, step, trained.max_skipped, folder, ids))
        return window

    with (
        _stop_signals() as stop, contextlib.closing(checkpoints), contextlib.closing(writer)
    ):  # fmt: skip
        if first_step < total_steps:
            batch = program.put_batch(next(batches))
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = program.update(state, batch)
            last = step == total_steps
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
                row |= _means(finished())
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


def _total_steps(config: ConfigDict, images: int) -> int:
    """Returns the length of a run that trains on so many images."""
    if config.total_steps:
        return config.total_steps
    steps = config.epochs * images / config.batch_size
    if steps > 2**31 - 1:
        raise ValueError(
            f"epochs={config.epochs:g} of {images} images in batches of {config.batch_size} are "
            f"{steps:.3g} steps, and a run has fewer than 2**31: take fewer epochs."
        )
    return max(1, round(steps))


class TrainStep(NamedTuple):
    """What a configuration trains.

    Attributes:
      model: the module that is trained; an objective may have it in another.
      objective: what it is trained for.
      update: what `step.make_update` returns.
      max_skipped: updates that it may refuse in a row.
      key: the run's, for `update`.
      initial: a key -> the state before the first step.
      init_key: for `initial`.
    """

    model: nn.Module
    objective: objectives.Objective
    update: Callable[..., Any]
    max_skipped: int
    key: jax.Array
    initial: Callable[[jax.Array], step_lib.TrainState]
    init_key: jax.Array


def train_step(config: ConfigDict, *, num_classes: int, total_steps: int) -> TrainStep:
    """Returns the model, objective, update and initial state of a configuration.

    Args:
      config: see `vit_jax.config.default`.
      num_classes: of the head; with objective="masked_patches" there is none.
      total_steps: length of the run: the schedule's.
    """
    masked = config.objective == "masked_patches"
    model = models.build(
        config.model.variant,
        num_classes=0 if masked else num_classes,
        dtype=config.dtype,
        **config_lib.model_overrides(config),
    )
    if masked:
        objective = objectives.masked_patches(
            model, target=config.masked.target, fraction=config.masked.fraction
        )
    else:
        objective = objectives.classification(
            model, label_smoothing=config.optim.label_smoothing, mixup=config.data.mixup
        )
    learning_rate = optim.schedule(config.optim, total_steps)
    optimizer = optim.optimizer(config.optim, learning_rate)
    max_skipped = config.max_skipped_updates if config.on_nonfinite == "skip" else 0
    init_key, update_key = jax.random.split(jax.random.key(config.seed))
    update = step_lib.make_update(
        objective,
        optimizer,
        learning_rate,
        accumulate_steps=config.accumulate_steps,
        polyak=config.optim.polyak,
        max_skipped=max_skipped,
    )
    initial = functools.partial(
        step_lib.initial_state,
        objective.model,
        optimizer,
        data.image_shape(config.data.image_size),
        polyak=config.optim.polyak,
    )
    return TrainStep(model, objective, update, max_skipped, update_key, initial, init_key)


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
    config_lib.validate(config)
    workdir = checkpoint_lib.make_workdir(workdir)
    checkpoint = interop.restore(config.init_from or workdir)
    if not checkpoint.num_classes:
        raise ValueError(
            f"{checkpoint.path} has no head to classify with: fine-tune from it, or take "
            f"--config.job=fewshot, which looks at its representations."
        )
    dataset = data.open_dataset(config.data.name, config.data.dir)
    known, found = checkpoint.class_names, dataset.class_names
    if (known and known != found) or checkpoint.num_classes != len(found):
        told = _few(known) if known else f"{checkpoint.num_classes} classes"
        raise ValueError(
            f"{checkpoint.path} tells {told} apart, but {config.data.name} has {_few(found)}: "
            f"choose data with its classes."
        )
    eval_batches = _eval_batches(config, _data_options(config, checkpoint))
    _, source = data.open_source(dataset, "test", config.data.test)
    batches = eval_batches(source, num_classes=len(found))
    objective = objectives.classification(checkpoint.model(dtype=config.dtype), confusion=True)
    program = parallel.body(config)(objective.evaluate)
    start = time.monotonic()
    sums = _sums(program, _placed(program, checkpoint.params), batches)
    seconds = time.monotonic() - start
    columns = _test_columns(sums)
    if checkpoint.average is not None:
        average = _placed(program, checkpoint.average)
        columns |= _polyak_columns(_sums(program, average, batches))
    table = workdir / "confusion_matrix.csv"
    if jax.process_index() == 0:
        counts = zip(found, sums["confusion"].astype(int), strict=True)
        write_table(
            table, [["true \\ predicted", *found], *([name, *row] for name, row in counts)]
        )
    return {
        "step": checkpoint.step,
        **columns,
        "images_per_second": round(int(sums["count"]) / seconds, 1),
        "checkpoint": checkpoint.path,
        "confusion_matrix": str(table),
    }


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
    config_lib.validate(config)
    workdir = checkpoint_lib.make_workdir(workdir)
    checkpoint = interop.restore(config.init_from or workdir)
    if config.init_average:
        checkpoint = checkpoint.averaged()
    probe = _probe(config, _eval_batches(config, _data_options(config, checkpoint)))
    represent = fewshot.represent(checkpoint.model(dtype=config.dtype))
    program = parallel.body(config)(represent=represent)
    scores = probe(_represented(program, _placed(program, checkpoint.params)))
    table = workdir / "fewshot.csv"
    if jax.process_index() == 0:
        write_table(table, [fewshot.Score._fields, *scores])
    columns = {}
    for name, (mean, deviation) in fewshot.summary(scores).items():
        columns |= {name: mean, f"{name}_std": deviation}
    return {
        "step": checkpoint.step, **columns, "checkpoint": checkpoint.path, "table": str(table)
    }  # fmt: skip


def _probe(config: ConfigDict, batches: Callable[..., Iterable[data.Batch]]) -> fewshot.FewShot:
    """Returns the few-shot evaluation that the configuration describes."""
    own = config.data if config.fewshot.name is None else config_lib.default().data
    dataset = data.open_dataset(config.fewshot.name or config.data.name, config.data.dir)
    return fewshot.FewShot(
        data.open_source(dataset, "train", config.fewshot.train or own.train)[1],
        data.open_source(dataset, "test", config.fewshot.test or own.test)[1],
        num_classes=len(dataset.class_names),
        shots=config.fewshot.shots,
        seeds=config.fewshot.seeds,
        batches=batches,
        skip=config.data.on_error == "skip",
    )


def _eval_batches(
    config: ConfigDict, options: ConfigDict, skipped: data.Skipped | None = None
) -> Callable[..., Iterable[data.Batch]]:
    """Returns (source, num_classes=) -> this process's evaluation batches of it."""
    return functools.partial(
        data.eval_batches,
        options=options,
        batch_size=config.eval_batch_size // jax.process_count(),
        process=jax.process_index(),
        processes=jax.process_count(),
        skipped=skipped,
    )


def _data_options(config: ConfigDict, checkpoint: checkpoint_lib.Checkpoint) -> ConfigDict:
    """Returns `config.data` with the image size of a checkpoint, where it is known."""
    options = config.data.copy_and_resolve_references()
    if checkpoint.image_shape is not None:
        with options.ignore_type():  # one side or two
            options.image_size = checkpoint.image_shape
    return options


def _placed(program: parallel.Parallel, params: Any) -> Any:
    """Returns parameters on the devices."""
    return program.init(step_lib.identity, jax.tree.map(np.asarray, params))


def _represented(
    program: parallel.Parallel, params: Any
) -> Callable[[data.Batch], dict[str, np.ndarray]]:
    """Returns batch -> the representations of its examples, on the host."""
    return lambda batch: program.gather(program.represent(params, program.put_batch(batch)))


def _origin(config: ConfigDict) -> checkpoint_lib.Checkpoint:
    """Returns what `config.init_from` names, which must be of the configured model."""
    adaptable = (
        "dropout", "stochastic_depth", "pool", "pre_logits", "gelu", "norm_epsilon",
        "kernel_epsilon",
    )  # fmt: skip
    overrides = config_lib.model_overrides(config)
    origin = interop.restore(
        config.init_from,
        variant=config.model.variant,
        **{key: value for key, value in overrides.items() if key not in adaptable},
    )
    return origin.averaged() if config.init_average else origin


def _inherit(config: ConfigDict, origin: ConfigDict) -> ConfigDict:
    """Returns a copy with what weights are computed with, where `config` leaves it open."""
    config = config.copy_and_resolve_references()
    for key in ("gelu", "norm_epsilon", "kernel_epsilon", "positions", "positions_at", "pool"):
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
def _stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields step -> whether to stop after it, which the first Ctrl-C or SIGTERM asks for.

    A second one ends the process at once. Several processes stop after the same step when one gets
    a SIGTERM: JAX's preemption service, which has that signal since they joined, tells the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python allows handlers in the main thread only
        return
    together = jax.process_count() > 1
    came = []  # when signals did

    def handle(number, frame):
        came.append(time.monotonic())
        if came[-1] - came[0] > _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping(step):
        stop = multihost_utils.reached_preemption_sync_point(step) if together else bool(came)
        if stop:  # while the state is saved, nothing of ours must be waited for
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        return stop

    numbers = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


_REPEATED = 0.5  # seconds: `timeout` sends two signals where it means one


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _save_nonfinite(
    workdir: epath.Path, state: step_lib.TrainState, config: ConfigDict, names: tuple[str, ...]
) -> epath.Path:
    """Saves the state before a refused update apart from the good ones; returns the workdir."""
    folder = workdir / "nonfinite" / f"step_{int(state.step) + 1}"
    with contextlib.closing(checkpoint_lib.Checkpoints(folder, keep=1)) as checkpoints:
        checkpoints.save(state, config, names)
    return folder


def _nonfinite(
    window: list[dict[str, np.ndarray]],
    step: int,
    max_skipped: int,
    folder: epath.Path,
    ids: list[str],
) -> str:
    """Returns the message about the refused update at `step`, after writing its batch's ids."""
    metrics = next(m for m in window if m["nonfinite"] == max_skipped + 1)
    before = f", and {max_skipped} in a row before it were skipped" if max_skipped else ""
    listed = folder / "batch.txt"
    listed.write_text("\n".join(ids) + "\n")
    few = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return (
        f"At step {step} the loss is {metrics['loss']:g} and the gradient's norm "
        f"{metrics['grad_norm']:g}, at a learning rate of {metrics['learning_rate']:g}{before}. "
        f"Its batch was {few}, listed in {listed}; {folder} holds the state before it, for "
        f"init_from. "
        f"The run's own checkpoints are as they were. Where the images are all right, a lower "
        f"optim.lr, a longer optim.warmup_steps or a smaller optim.clip_norm helps; "
        f"--config.on_nonfinite=skip skips up to max_skipped_updates in a row."
    )


def _means(window: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the training columns of a row: means over the steps since the last row.

    Refused ones are left out, if there are others.
    """
    last = window[-1]
    window = [metrics for metrics in window if not metrics["nonfinite"]] or window
    columns = {name: float(np.mean([m[name] for m in window]))
               for name in last if name not in ("nonfinite", "skipped")}
    for name in {"loss", "accuracy"} & set(columns):
        columns[f"train_{name}"] = columns.pop(name)
    columns["learning_rate"] = float(last["learning_rate"])
    columns["skipped_updates"] = int(last["skipped"])
    return columns


def _sums(program: parallel.Parallel, params: Any, batches: Iterable[data.Batch]) -> dict[str, Any]:
    """Returns the sums of an objective's `evaluate` over all batches, on the host."""
    total = collections.Counter()

    def add(sums):
        for name, value in program.gather(sums).items():
            total[name] += value.astype(np.float64)

    running = None
    for batch in batches:
        following = program.evaluate(params, program.put_batch(batch))
        if running is not None:  # wait for a batch only when the next is on its way
            add(running)
        running = following
    add(running)
    return total


def _test_columns(sums: step_lib.Metrics) -> dict[str, float]:
    return {f"test_{name}": value for name, value in step_lib.means(sums).items()}


def _polyak_columns(sums: step_lib.Metrics) -> dict[str, float]:
    return {f"polyak_{name}": value for name, value in _test_columns(sums).items()}


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
