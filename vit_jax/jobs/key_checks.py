"""What is wrong with each key of a configuration, whatever the other keys are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vit_jax.common.messages import closest
from vit_jax.config.defaults import default
from vit_jax.config.keys import no_such_key, short_repr, type_problem, value_types
from vit_jax.data import splits
from vit_jax.data.class_balance import SAMPLING
from vit_jax.data.pipeline import ON_ERROR
from vit_jax.data.resizing import EVAL_CROPS, EVAL_RESIZES
from vit_jax.data.transforms import DECODES, TRAIN_CROPS, is_colour
from vit_jax.jobs.initial_head import INIT_HEADS
from vit_jax.jobs.loggers import LOGGERS
from vit_jax.jobs.nonfinite import ON_NONFINITE
from vit_jax.models.attributes import DTYPES
from vit_jax.models.positions import RESIZES
from vit_jax.training.masked_patches import TARGETS
from vit_jax.training.objective import LOSSES
from vit_jax.training.optim import OPTIMIZERS, SCHEDULES
from vit_jax.training.parallel import STRATEGIES
from vit_jax.training.setup import OBJECTIVES


def choices() -> Mapping[str, Collection[str]]:
    """Returns the names that keys take: for each such key, the table that implements them."""
    # Imported here, because every job imports this file, to validate its configuration.
    from vit_jax.jobs.table import JOBS

    return {
        "job": JOBS,
        "objective": OBJECTIVES,
        "dtype": DTYPES,
        "parallel": STRATEGIES,
        "data.crop": TRAIN_CROPS,
        "data.eval_crop": EVAL_CROPS,
        "data.eval_resize": EVAL_RESIZES,
        "data.sampling": SAMPLING,
        "data.decode": DECODES,
        "data.on_error": ON_ERROR,
        "optim.name": OPTIMIZERS,
        "optim.decay": SCHEDULES,
        "optim.loss": LOSSES,
        "optim.momentum_dtype": DTYPES,
        "masked.target": TARGETS,
        "on_nonfinite": ON_NONFINITE,
        "init_resize": RESIZES,
        "init_head": INIT_HEADS,
    }


class Range(NamedTuple):
    """The values, among those of its type, that a key can be set to.

    Attributes:
      rule: which they are, as a message says it after "must be".
      holds: value -> something true if the key can be set to it.
    """

    rule: str
    holds: Callable[[Any], Any]


_ABOVE_0 = Range("above 0", lambda x: x > 0)
_FROM_0 = Range("0 or more", lambda x: x >= 0)
_SHARE = Range("in [0, 1]", lambda x: 0 <= x <= 1)
_SHARE_BELOW_1 = Range("in [0, 1)", lambda x: 0 <= x < 1)
_SHARE_ABOVE_0 = Range("in (0, 1]", lambda x: 0 < x <= 1)
_ALL_ABOVE_0 = Range("numbers above 0", lambda x: x and min(x) > 0)

RANGES: Mapping[str, Range] = {
    "seed": _FROM_0,
    "fsdp": _ABOVE_0,
    "data.name": Range("a folder of images or the name of a data set", str.strip),
    "data.crop_area": _SHARE_ABOVE_0,
    "data.crop_fraction": _SHARE_ABOVE_0,
    "data.background": Range("three whole numbers in 0…255", lambda x: is_colour(tuple(x))),
    "data.randaugment": _FROM_0,
    "data.randaugment_magnitude": Range("in [0, 30]", lambda x: 0 <= x <= 30),
    "data.colour_jitter": _FROM_0,
    "data.erase": _SHARE,
    "data.mixup": _FROM_0,
    "data.cutmix": _FROM_0,
    "data.cutmix_probability": _SHARE,
    "data.class_weights": Range("'none', 'balanced' or the path of a CSV file", str.strip),
    "data.threads": _ABOVE_0,
    "data.prefetch": _ABOVE_0,
    "batch_size": _ABOVE_0,
    "eval_batch_size": _ABOVE_0,
    "total_steps": _ABOVE_0,
    "epochs": _ABOVE_0,
    "accumulate_steps": _ABOVE_0,
    "optim.lr": _ABOVE_0,
    "optim.lr_end": _FROM_0,
    "optim.warmup_steps": _FROM_0,
    "optim.momentum": _SHARE_BELOW_1,
    "optim.beta1": _SHARE_BELOW_1,
    "optim.beta2": _SHARE_BELOW_1,
    "optim.weight_decay": _FROM_0,
    "optim.clip_norm": _FROM_0,
    "optim.label_smoothing": _SHARE_BELOW_1,
    "optim.polyak": _SHARE_BELOW_1,
    "optim.layer_decay": _SHARE_ABOVE_0,
    "optim.head_lr": _ABOVE_0,
    "masked.fraction": _SHARE_ABOVE_0,
    "fewshot.every": _FROM_0,
    "fewshot.shots": _ALL_ABOVE_0,
    "fewshot.seeds": _ABOVE_0,
    "fewshot.penalty": _ABOVE_0,
    "fewshot.neighbours": _ABOVE_0,
    "sweep.lr": _ALL_ABOVE_0,
    "sweep.held_out": Range("in (0, 1)", lambda x: 0 < x < 1),
    "compare.epochs": Range("numbers above 0", lambda x: not x or min(x) > 0),
    "compare.seeds": _ABOVE_0,
    "log_every": _ABOVE_0,
    "loggers": Range(
        f"distinct names among {', '.join(LOGGERS)}",
        lambda x: set(x) <= set(LOGGERS) and len(set(x)) == len(x),
    ),
    "eval_every": _FROM_0,
    "checkpoint.every": _FROM_0,
    "checkpoint.keep": _ABOVE_0,
    "checkpoint.best": Range(
        "a metric of a test, such as test_accuracy, test_loss or fewshot_5",
        lambda x: x.startswith(("test_", "polyak_test_", "fewshot_", "knn_")),
    ),
    "early_stopping.patience": _FROM_0,
    "max_skipped_updates": _ABOVE_0,
}

SPLITS = ("data.train", "data.test", "fewshot.train", "fewshot.test")


def value_problem(key: str, value: Any) -> str:
    """Returns what is wrong with the value of a key, or "" if the key can be set to it.

    Args:
      key: a full key of `default`, such as "optim.lr".
      value: anything.
    """
    problem = type_problem(key, value)
    if problem or value is None:
        return problem
    known, allowed = choices().get(key), RANGES.get(key)
    if known and value not in known:
        names = " or ".join(map(repr, known))
        return f"{key}={short_repr(value)} is unknown: {names}{closest(value, known)}."
    if allowed and not allowed.holds(value):
        example = value_types()[key].example
        return f"{key}={short_repr(value)} must be {allowed.rule}{example}."
    if key in SPLITS:
        try:
            splits.parse_split(value)
        except ValueError as error:
            return f"{key}: {error}"
    return ""


class Entry(NamedTuple):
    """One key of a configuration, checked.

    Attributes:
      key: in full; "" for one that `default` doesn't have.
      value: as the configuration has it; None if the key is missing, or `default` lacks it.
      problem: what is wrong with it; "" if it is right.
    """

    key: str
    value: Any
    problem: str


def check_keys(
    config: ConfigDict,
    known: ConfigDict | None = None,
    prefix: str = "",
    *,
    complete: bool = True,
) -> Iterator[Entry]:
    """Yields an entry for every key that the configuration has or should have.

    Args:
      config: a configuration, or a section of one.
      known: the same section of `default`; None for all of it.
      prefix: what the section's keys start with, such as "optim.".
      complete: True if a missing key is a problem.
    """
    known = default() if known is None else known
    try:
        found = list(config)
    except TypeError:  # a ConfigDict sorts its keys, which numbers among texts prevent
        section = prefix.removesuffix(".") or "the configuration"
        yield Entry("", None, f"{section} has keys that are not text.")
        found = []
    for key in found:
        if key not in known:
            yield Entry("", None, no_such_key(f"{prefix}{key}"))
    for key, default_value in known.items():
        name = f"{prefix}{key}"
        if key not in config:
            if complete:
                missing = f"{name} is missing: start from vit_jax.config.default()."
                yield Entry(name, None, missing)
            continue
        value = _get(config, key)
        problem = value_problem(name, value)
        if problem or not isinstance(default_value, ConfigDict):
            yield Entry(name, value, problem)
        elif name != "compare.runs":
            yield from check_keys(value, default_value, f"{name}.", complete=complete)
        elif problems := list(_run_problems(value)):
            yield from (Entry(name, value, problem) for problem in problems)
        else:
            yield Entry(name, value, "")


def _run_problems(runs: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the keys of `compare.runs`, whatever the other keys are."""
    try:
        names = list(runs)
    except TypeError:
        names = [None]
    if not all(isinstance(name, str) and any(map(str.isalnum, name)) for name in names):
        yield "compare.runs: a run's name is text, with a letter or a digit in it."
        return
    for name in names:
        run = _get(runs, name)
        if not isinstance(run, ConfigDict):
            yield f"compare.runs.{name}={short_repr(run)} must be a ConfigDict of other values."
        elif fixed := [key for key in ("job", "seed", "compare") if key in run]:
            keys = ", ".join(fixed)
            yield f"compare.runs.{name}: job='compare' sets {keys} itself: leave it out."
        else:
            for entry in check_keys(run, complete=False):
                if entry.problem:
                    yield f"compare.runs.{name}: {entry.problem}"


def _get(config: ConfigDict, key: str) -> Any:
    """Returns the value of a key, or the error that reading it raises."""
    try:
        return config[key]
    except Exception as error:  # a reference to what isn't there, or can't be computed
        return error
