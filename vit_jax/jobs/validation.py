"""Whether a configuration can be run: each key alone, then keys that can't be combined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.config.defaults import default
from vit_jax.config.keys import (
    image_shape,
    look_up,
    model_attributes,
    overlap,
    run_config,
    short_repr,
)
from vit_jax.jobs.key_checks import check_keys
from vit_jax.jobs.loggers import missing_packages
from vit_jax.models.params import parameter_shapes
from vit_jax.models.vit import VisionTransformer


def validate(config: ConfigDict, *, device_count: int | None = None) -> None:
    """Checks a configuration before anything is read, built or compiled.

    Args:
      config: as `default` returns it, with values changed.
      device_count: devices that share a batch; None for all that JAX sees.

    Raises:
      ValueError: lists every problem, one a line, each with its key and what would fit. It is the
        only error that is raised, whatever the configuration holds.
    """
    _require_config(config)
    devices = jax.device_count() if device_count is None else device_count
    _require_none(_problems(config, devices))


def validate_keys(config: ConfigDict) -> None:
    """Checks each key of a configuration by itself. Other values may be set before it is run.

    Args:
      config: as `default` returns it, with values changed.

    Raises:
      ValueError: as `validate`.
    """
    _require_config(config)
    _require_none(entry.problem for entry in check_keys(config) if entry.problem)


def _require_config(config: Any) -> None:
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"A configuration is a ConfigDict, as vit_jax.config.default() returns it, not "
            f"{short_repr(config)}."
        )


def _require_none(problems: Iterable[str]) -> None:
    if lines := [" ".join(problem.split()) for problem in problems]:
        raise ValueError("The configuration can't be run:\n- " + "\n- ".join(lines))


def _problems(config: ConfigDict, devices: int) -> Iterator[str]:
    """Yields what is wrong with keys alone, then what can't be combined among the right ones."""
    entries = list(check_keys(config))
    yield from (entry.problem for entry in entries if entry.problem)
    wrong = [entry.key for entry in entries if entry.problem]
    config = default()  # stands in for the wrong keys
    config.update_from_flattened_dict({e.key: e.value for e in entries if not e.problem})

    def conflicts(single: ConfigDict) -> list[str]:
        return [
            conflict.message
            for conflict in _conflicts(single, devices, config.job)
            if not any(overlap(a, b) for a in conflict.keys for b in wrong)
        ]

    shared = conflicts(config)
    yield from shared
    if config.job != "compare" or any(overlap("compare.runs", key) for key in wrong):
        return
    if config.compare.epochs:
        yield from _unread_lengths(config, config)
    if not config.compare.runs:
        yield "compare.runs is empty: give each run a name and what makes it different."
    for name in config.compare.runs:
        single = run_config(config, name)
        if config.compare.epochs:  # any of these lengths will do
            yield from _unread_lengths(config, config.compare.runs[name], f"compare.runs.{name}.")
            single.epochs, single.total_steps = float(config.compare.epochs[0]), None
        for message in conflicts(single):
            if message not in shared:
                yield f"compare.runs.{name}: {message}"


def _unread_lengths(config: ConfigDict, source: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields a message for each length of training that `compare.epochs` takes the place of."""
    for key in ("total_steps", "epochs"):
        if look_up(source, key, None) is not None:
            yield (
                f"{prefix}{key}={short_repr(source[key])} would not be read, because "
                f"compare.epochs={short_repr(config.compare.epochs)} has the lengths: leave it "
                f"out, or set compare.epochs to ()."
            )


class Conflict(NamedTuple):
    """Values that can't be combined, though each can be set.

    Attributes:
      keys: all keys and sections that it depends on.
      message: what is wrong, and what would fit.
    """

    keys: tuple[str, ...]
    message: str


def _conflicts(config: ConfigDict, devices: int, job: str) -> Iterator[Conflict]:
    """Yields every conflict of a configuration whose keys are right.

    Args:
      config: the job's configuration, or that of one of its runs.
      devices: that share a batch.
      job: the job of the whole configuration: "compare" for one of its runs.
    """
    yield from _job_conflicts(config, job)
    yield from _balance_conflicts(config)
    yield from _stopping_conflicts(config)
    yield from _batch_conflicts(config, devices)
    yield from _parallel_conflicts(config, devices)
    yield from _model_conflicts(config)


def _job_conflicts(config: ConfigDict, job: str) -> Iterator[Conflict]:
    trains = config.job not in ("evaluate", "fewshot")
    for message in missing_packages(config.loggers if trains else ()):
        yield Conflict(("job", "loggers"), message)
    has_length = config.total_steps is not None or config.epochs is not None
    if trains and not has_length and not (config.job == "compare" and config.compare.epochs):
        yield Conflict(
            ("job", "total_steps", "epochs", "compare.epochs"),
            "neither total_steps nor epochs is set: one of them gives the run its length.",
        )
    if trains and config.init_average and config.init_from is None:
        yield Conflict(
            ("job", "init_average", "init_from"),
            "init_average=True needs init_from, whose average a run can start from.",
        )
    predicts_pixels = config.objective == "masked_patches" and config.masked.target == "pixels"
    if predicts_pixels and job in ("sweep", "compare"):
        yield Conflict(
            ("job", "objective", "masked.target"),
            f"job='{job}' goes by accuracy, and masked.target='pixels' has none: take "
            f"'mean_colour' or 'downsized'.",
        )


def _balance_conflicts(config: ConfigDict) -> Iterator[Conflict]:
    if config.data.sampling != "balanced" or config.job in ("evaluate", "fewshot"):
        return
    if config.objective != "classification":
        yield Conflict(
            ("job", "objective", "data.sampling"),
            f"data.sampling='balanced' draws by labels, and objective='{config.objective}' reads "
            f"none: take 'uniform'.",
        )
    elif config.data.class_weights == "balanced":
        yield Conflict(
            ("job", "objective", "data.sampling", "data.class_weights"),
            "data.sampling and data.class_weights are both 'balanced', which makes up twice for "
            "classes with few images: take one of them.",
        )


def _stopping_conflicts(config: ConfigDict) -> Iterator[Conflict]:
    best, patience = config.checkpoint.best, config.early_stopping.patience
    if config.job in ("evaluate", "fewshot"):
        return
    if patience and best is None:
        yield Conflict(
            ("job", "early_stopping.patience", "checkpoint.best"),
            f"early_stopping.patience={patience} needs checkpoint.best, the metric that it goes "
            f"by, such as 'test_accuracy'.",
        )
    every = "fewshot.every" if (best or "").startswith(("fewshot_", "knn_")) else "eval_every"
    if best is not None and not look_up(config, every, 0) and (patience or every != "eval_every"):
        yield Conflict(
            ("job", "early_stopping.patience", "checkpoint.best", every),
            f"{every}=0 measures nothing on the way, but checkpoint.best='{best}' is to be "
            f"measured at intervals: set {every}.",
        )
    if (best or "").startswith("polyak_") and not config.optim.polyak:
        yield Conflict(
            ("job", "checkpoint.best", "optim.polyak"),
            f"checkpoint.best='{best}' needs a Polyak average: set optim.polyak.",
        )


def _batch_conflicts(config: ConfigDict, devices: int) -> Iterator[Conflict]:
    by_devices, accumulate = f"the {devices} devices", config.accumulate_steps or 1
    and_steps = f" x accumulate_steps={accumulate}" if accumulate > 1 else ""
    for keys, parts, by in (
        (("batch_size", "accumulate_steps"), devices * accumulate, by_devices + and_steps),
        (("eval_batch_size",), devices, by_devices),
    ):
        size = config[keys[0]]
        if size % parts:
            fits = max(parts, size // parts * parts)
            yield Conflict(
                keys,
                f"{keys[0]}={size} can't be split evenly over {by}: take a multiple of {parts}, "
                f"such as {fits}.",
            )


def _parallel_conflicts(config: ConfigDict, devices: int) -> Iterator[Conflict]:
    if config.fsdp is None:
        return
    if config.parallel != "sharded":
        yield Conflict(
            ("fsdp", "parallel"),
            f"fsdp={config.fsdp} is for parallel='sharded': with parallel='{config.parallel}' the "
            f"state is replicated.",
        )
    elif devices % config.fsdp:
        yield Conflict(
            ("fsdp", "parallel"),
            f"fsdp={config.fsdp} must divide the number of devices, {devices}.",
        )


def _model_conflicts(config: ConfigDict) -> Iterator[Conflict]:
    if config.job in ("evaluate", "fewshot"):  # whose model is that of the weights
        return
    variant, size = config.model.variant, config.data.image_size
    try:
        model = models.build(variant, num_classes=1, dtype=config.dtype, **model_attributes(config))
    except ValueError as error:
        yield Conflict(("model", "dtype"), f"model: {error}")
        return
    keys: tuple[str, ...] = ("model", "data.image_size")
    try:
        grid = model.grid(image_shape(size))
    except ValueError as error:
        yield Conflict(keys, f"data.image_size={size} with {variant}: {error}")
        return
    yield from _eval_size_conflicts(config, model)
    for message in _trained_conflicts(config, model):
        yield Conflict(("model", "objective", "optim.freeze", "optim.layer_decay"), message)
    if config.objective == "masked_patches":
        keys = (*keys, "objective", "masked.target")
        for message in _masked_conflicts(config, model, grid):
            yield Conflict(keys, message)


def _eval_size_conflicts(config: ConfigDict, model: nn.Module) -> Iterator[Conflict]:
    name, size, variant = "data.eval_image_size", config.data.eval_image_size, config.model.variant
    if size is None:
        return
    try:
        shapes = [parameter_shapes(model, x) for x in (config.data.image_size, size)]
    except ValueError as error:
        yield Conflict(("model", name), f"{name}={size} with {variant}: {error}")
        return
    if shapes[0] != shapes[1]:
        yield Conflict(
            ("model", "data.image_size", name),
            f"{name}={size} needs a model without learned positions, which are for one size: set "
            f"model.positions='sincos'; or convert the finished run by `python -m vit_jax.convert "
            f"RUN OUT --image_size=…`, which resizes them, and evaluate it.",
        )


def _trained_conflicts(config: ConfigDict, model: nn.Module) -> Iterator[str]:
    freeze, decay, variant = config.optim.freeze, config.optim.layer_decay, config.model.variant
    lora_rank = config.model.lora_rank
    if freeze != "none" and config.objective == "masked_patches":
        yield (
            f"optim.freeze={freeze!r} is for fine-tuning, and objective='masked_patches' trains "
            f"the whole encoder: set optim.freeze='none'."
        )
    if lora_rank and config.objective == "masked_patches":
        yield (
            f"model.lora_rank={lora_rank} is for fine-tuning, and objective='masked_patches' "
            f"trains the whole encoder: set model.lora_rank=0."
        )
    if lora_rank and (freeze == "encoder" or freeze == model.depth):
        yield (
            f"model.lora_rank={lora_rank} would change nothing with optim.freeze={freeze!r}, which "
            f"freezes LoRA's updates of all blocks, too: set optim.freeze='none', and LoRA alone "
            f"is trained with the head."
        )
    if not isinstance(model, VisionTransformer):
        if isinstance(freeze, int):
            yield (
                f"optim.freeze={freeze} counts the blocks of a ViT or a hybrid, and {variant} is a "
                f"ResNet: take 'none' or 'encoder'."
            )
        if decay != 1:
            yield (
                f"optim.layer_decay={decay:g} counts the blocks of a ViT or a hybrid, and "
                f"{variant} is a ResNet: set optim.layer_decay=1."
            )
    elif isinstance(freeze, int):
        if freeze > model.depth:
            yield (
                f"optim.freeze={freeze} is more than the {model.depth} blocks of the model: take "
                f"{model.depth} or fewer, 'none' or 'encoder'."
            )
        if model.scan:
            yield (
                f"optim.freeze={freeze} would save nothing with model.scan=True, whose loop "
                f"computes the gradients of all blocks: set model.scan=False, or take 'none' or "
                f"'encoder'."
            )


def _masked_conflicts(config: ConfigDict, model: nn.Module, grid: tuple[int, int]) -> Iterator[str]:
    if not isinstance(model, VisionTransformer):
        yield f"objective='masked_patches' needs a ViT or a hybrid, not {config.model.variant}."
        return
    if config.data.eval_image_size is not None:
        yield "data.eval_image_size is for objective='classification': leave it out."
    after_pooling = {
        "pre_logits": model.pre_logits,
        "projection": model.projection,
        "pool='map'": model.pool == "map",
        "final_norm='after_pool'": model.final_norm == "after_pool",
    }
    for what in (what for what, is_set in after_pooling.items() if is_set):
        yield f"objective='masked_patches' has no use for model.{what}: leave it out."
    size, (height, width) = config.data.image_size, model.stride
    if image_shape(size) != (grid[0] * height, grid[1] * width):
        yield (
            f"data.image_size={size}: objective='masked_patches' needs sides that are "
            f"multiples of a patch's {height}x{width} pixels."
        )
    if config.masked.target == "downsized" and (height % 4 or width % 4):
        yield (
            f"masked.target='downsized' needs patches whose sides are multiples of 4, not "
            f"{height}x{width}."
        )
