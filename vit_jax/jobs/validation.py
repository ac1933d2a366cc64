"""Whether a configuration can be run: each key by itself, then what does not go together."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.config.defaults import default
from vit_jax.config.keys import (
    image_shape,
    model_attributes,
    no_such_key,
    one_of,
    overlap,
    run_config,
    shown,
    type_of,
)
from vit_jax.data import splits
from vit_jax.models.positions import RESIZES
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.masked_patches import TARGETS

JOBS = ("train", "evaluate", "fewshot", "sweep", "compare")
OBJECTIVES = ("classification", "masked_patches")
OPTIMIZERS = ("sgd", "adam")
DECAYS = ("cosine", "linear", "constant")
CROPS = ("inception", "resize")
EVAL_CROPS = ("central", "whole")
DTYPES = ("float32", "bfloat16")
PARALLEL = ("pmap", "sharded")
ON_FAULT = ("stop", "skip")


def validate(config: ConfigDict, *, device_count: int | None = None) -> None:
    """Checks a configuration before anything is read, built or compiled.

    Args:
      config: as `default` returns it, with values changed.
      device_count: devices the batch is spread over; None for all that JAX sees.

    Raises:
      ValueError: lists every problem found, one a line, each with its key and what would fit. It
        is the only error, whatever the configuration holds.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"A configuration is a ConfigDict, as vit_jax.config.default() returns it, not "
            f"{shown(config)}."
        )
    devices = jax.device_count() if device_count is None else device_count
    if problems := [" ".join(problem.split()) for problem in _problems(config, devices)]:
        raise ValueError("The configuration can't be run:\n- " + "\n- ".join(problems))


def _problems(config: ConfigDict, devices: int) -> Iterator[str]:
    """Yields what is wrong with each key by itself, then what can't be combined of the others."""
    wrong, right = [], {}
    for key, value, problem in _entries(config, default()):
        if problem:
            wrong.append(key)
            yield problem
        else:
            right[key] = value
    config = default()
    config.update_from_flattened_dict(right)

    def combined(single: ConfigDict) -> list[str]:
        return [
            problem
            for keys, problem in _combinations(single, devices, config.job)
            if not any(overlap(a, b) for a in keys for b in wrong)
        ]

    told = combined(config)
    yield from told
    if config.job != "compare" or any(overlap("compare.runs", key) for key in wrong):
        return
    if not config.compare.runs:
        yield "compare.runs is empty: give each run a name and what makes it different."
    for name in config.compare.runs:
        single = run_config(config, name)
        if config.compare.epochs:
            single.epochs, single.total_steps = float(config.compare.epochs[0]), None
        yield from (
            f"compare.runs.{name}: {problem}" for problem in combined(single) if problem not in told
        )


_CHOICES = {
    "job": JOBS,
    "objective": OBJECTIVES,
    "masked.target": tuple(TARGETS),
    "dtype": DTYPES,
    "parallel": PARALLEL,
    "init_resize": RESIZES,
    "data.crop": CROPS,
    "data.eval_crop": EVAL_CROPS,
    "data.on_error": ON_FAULT,
    "on_nonfinite": ON_FAULT,
    "optim.name": OPTIMIZERS,
    "optim.decay": DECAYS,
    "optim.momentum_dtype": DTYPES,
}
_SPLITS = ("data.train", "data.test", "fewshot.train", "fewshot.test")
# Keys, what their values must be, and whether one is.
_RANGES = (
    (
        (
            "batch_size",
            "eval_batch_size",
            "accumulate_steps",
            "total_steps",
            "epochs",
            "fsdp",
            "log_every",
            "checkpoint.keep",
            "data.threads",
            "data.prefetch",
            "optim.lr",
            "fewshot.seeds",
            "compare.seeds",
            "max_skipped_updates",
        ),
        "above 0",
        lambda x: x > 0,
    ),
    (
        (
            "seed",
            "eval_every",
            "checkpoint.every",
            "optim.warmup_steps",
            "optim.weight_decay",
            "optim.clip_norm",
            "data.mixup",
            "data.randaugment",
            "fewshot.every",
        ),
        "0 or more",
        lambda x: x >= 0,
    ),
    (
        ("optim.label_smoothing", "optim.momentum", "optim.beta1", "optim.beta2", "optim.polyak"),
        "in [0, 1)",
        lambda x: 0 <= x < 1,
    ),
    (
        ("data.crop_area", "data.crop_fraction", "masked.fraction"),
        "in (0, 1]",
        lambda x: 0 < x <= 1,
    ),
    (("sweep.held_out",), "in (0, 1)", lambda x: 0 < x < 1),
    (("data.randaugment_magnitude",), "in [0, 30]", lambda x: 0 <= x <= 30),
    (("fewshot.shots", "sweep.lr"), "numbers above 0", lambda x: x and min(x) > 0),
    (("compare.epochs",), "numbers above 0", lambda x: not x or min(x) > 0),
    (("data.name",), "a folder of images or the name of a data set", str.strip),
)


def _entries(
    config: ConfigDict, known: ConfigDict, prefix: str = "", *, complete: bool = True
) -> Iterator[tuple[str, Any, str]]:
    """Yields (key, value, problem) for every key there is or should be.

    The problem is "" where there is none, and so is the key where `default` has no such one.

    Args:
      config: the configuration, or a section of it.
      known: the same of `default`.
      prefix: of the section's keys.
      complete: whether no key may be missing.
    """
    try:
        found = list(config)
    except TypeError:  # they can't be sorted
        yield "", None, f"{prefix[:-1] or 'the configuration'} has keys that are not text."
        found = []
    for key in found:
        if key not in known:
            yield "", None, no_such_key(f"{prefix}{key}")
    for key, usual in known.items():
        name = f"{prefix}{key}"
        if key not in config:
            if complete:
                yield name, None, f"{name} is missing: start from vit_jax.config.default()."
            continue
        value = _value(config, key)
        if not isinstance(usual, ConfigDict):
            yield name, value, _misfit(name, value, usual, known.get_type(key))
        elif problem := _misfit(name, value, usual, ConfigDict):
            yield name, None, problem
        elif name == "compare.runs":
            problems = list(_run_problems(value))
            yield from ((name, None, problem) for problem in problems)
            if not problems:
                yield name, value, ""
        else:
            yield from _entries(value, usual, f"{name}.", complete=complete)


def _run_problems(runs: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the keys of `compare.runs`, each by itself."""
    try:
        names = list(runs)
    except TypeError:
        names = [None]
    if not all(isinstance(name, str) and any(map(str.isalnum, name)) for name in names):
        yield "compare.runs: a run's name is text, with a letter or a digit in it."
        return
    for name in names:
        different = _value(runs, name)
        if not isinstance(different, ConfigDict):
            yield f"compare.runs.{name}={shown(different)} must be a ConfigDict of other values."
            continue
        if own := [key for key in ("job", "seed", "compare") if key in different]:
            yield f"compare.runs.{name}: job='compare' sets {', '.join(own)} itself: leave it out."
            continue
        for _, _, problem in _entries(different, default(), complete=False):
            if problem:
                yield f"compare.runs.{name}: {problem}"


def _value(config: ConfigDict, key: str) -> Any:
    try:
        return config[key]
    except Exception as error:  # a reference to what isn't there, or can't be computed
        return error


def _misfit(key: str, value: Any, usual: Any, kind: type) -> str:
    """Returns what is wrong with a key's value, whatever the other keys are, or "".

    Args:
      usual: its default.
      kind: the type of its default, or that it can be set to where this is None.
    """
    if value is None and usual is None:
        return ""
    fits, rule, such = type_of(key, usual, kind)
    if not fits(value):
        return f"{key}={shown(value)} must be {rule}{such}{' or None' * (usual is None)}."
    if key in _CHOICES and value not in _CHOICES[key]:
        return f"{key}={shown(value)} is unknown: {one_of(_CHOICES[key], value)}."
    for keys, rule, fits in _RANGES:
        if key in keys and not fits(value):
            return f"{key}={shown(value)} must be {rule}{such}."
    if key in _SPLITS:
        try:
            splits.parse_split(value)
        except ValueError as error:
            return f"{key}: {error}"
    return ""


def _combinations(
    config: ConfigDict, devices: int, job: str
) -> Iterator[tuple[Collection[str], str]]:
    """Yields (keys or sections, what is wrong with them together); each by itself is right.

    Args:
      job: of the whole configuration, where `config` is one of its runs.
    """
    training = config.job not in ("evaluate", "fewshot")
    by_compare = config.job == "compare" and config.compare.epochs
    if training and not by_compare and config.total_steps is None and config.epochs is None:
        yield (
            ("job", "total_steps", "epochs", "compare.epochs"),
            ("neither total_steps nor epochs is set: one of them gives the run its length."),
        )
    if training and config.init_average and config.init_from is None:
        yield (
            ("job", "init_average", "init_from"),
            ("init_average=True needs init_from, whose average a run can start from."),
        )
    if job in ("sweep", "compare") and (config.objective, config.masked.target) == (
        "masked_patches",
        "pixels",
    ):
        yield (
            ("job", "objective", "masked.target"),
            (
                f"job='{job}' goes by accuracy, and masked.target='pixels' has none: take "
                f"'mean_colour' or 'downsized'."
            ),
        )
    yield from _batch_problems(config, devices)
    yield from _model_problems(config)


def _batch_problems(config: ConfigDict, devices: int) -> Iterator[tuple[Collection[str], str]]:
    for keys, parts in (
        (("batch_size", "accumulate_steps"), devices * config.accumulate_steps),
        (("eval_batch_size",), devices),
    ):
        key = keys[0]
        if (size := config[key]) % parts:
            fit = max(parts, size // parts * parts)
            by = f"the {devices} devices"
            if parts != devices:
                by += f" x accumulate_steps={config.accumulate_steps}"
            yield (
                keys,
                (
                    f"{key}={size} can't be split evenly over {by}: take a multiple of {parts}, such "
                    f"as {fit}."
                ),
            )
    if config.fsdp is None:
        return
    if config.parallel != "sharded":
        yield (
            ("fsdp", "parallel"),
            (
                f"fsdp={config.fsdp} is for parallel='sharded': '{config.parallel}' divides no state."
            ),
        )
    elif devices % config.fsdp:
        yield (
            ("fsdp", "parallel"),
            (f"fsdp={config.fsdp} must divide the number of devices, {devices}."),
        )


def _model_problems(config: ConfigDict) -> Iterator[tuple[Collection[str], str]]:
    try:
        model = models.build(
            config.model.variant, num_classes=1, dtype=config.dtype, **model_attributes(config)
        )
    except ValueError as error:
        yield ("model", "dtype"), f"model: {error}"
        return
    shape = image_shape(config.data.image_size)
    try:
        grid = model.grid(shape)
    except ValueError as error:
        yield (
            ("model", "data.image_size"),
            (f"data.image_size={config.data.image_size} with {config.model.variant}: {error}"),
        )
        return
    if config.objective == "masked_patches":
        keys = ("model", "data.image_size", "objective", "masked.target")
        yield from ((keys, problem) for problem in _masked_problems(config, model, shape, grid))


def _masked_problems(
    config: ConfigDict, model: nn.Module, shape: tuple[int, int], grid: tuple[int, int]
) -> Iterator[str]:
    if not isinstance(model, VisionTransformer):
        yield f"objective='masked_patches' needs a ViT or a hybrid, not {config.model.variant}."
        return
    if model.pre_logits:
        yield "objective='masked_patches' has no use for model.pre_logits: leave it out."
    patch = model.stride
    if shape != (grid[0] * patch[0], grid[1] * patch[1]):
        yield (
            f"data.image_size={config.data.image_size}: objective='masked_patches' needs sides "
            f"that the {patch[0]}x{patch[1]} pixels of a patch divide."
        )
    if config.masked.target == "downsized" and any(side % 4 for side in patch):
        yield (
            f"masked.target='downsized' needs patches whose sides 4 divides, not "
            f"{patch[0]}x{patch[1]}."
        )
