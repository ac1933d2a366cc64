"""Keys of the command line that the job doesn't read, so that nobody expects them to count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from vit_jax.config.keys import look_up, run_config
from vit_jax.models import attributes

logger = logging.getLogger(__name__)


class Unread(NamedTuple):
    """Keys that are not read under a condition.

    Attributes:
      keys: keys and sections, in full.
      when: configuration -> True if they are not read.
      reason: why, as a clause after "because".
    """

    keys: tuple[str, ...]
    when: Callable[[ConfigDict], bool]
    reason: str


_OF_TRAINING = (
    *("objective", "seed", "batch_size", "total_steps", "epochs", "accumulate_steps"),
    *("data.crop", "data.crop_area", "data.flip", "data.mixup", "data.check"),
    *("data.cutmix", "data.cutmix_probability", "data.three_augment", "data.colour_jitter"),
    *("data.erase", "data.class_weights", "data.sampling"),
    *("data.randaugment", "data.randaugment_magnitude", "optim", "masked", "fewshot.every"),
    *("log_every", "eval_every", "checkpoint", "on_nonfinite", "max_skipped_updates"),
    "loggers",
    "early_stopping",
    *("init_resize", "init_head"),
)


# Of the model, what is not taken from the checkpoint that a job tests.
_OF_RUN = ("model.variant", *(f"model.{name}" for name in attributes.names("run", "device")))


def _trains(config: ConfigDict) -> bool:
    return config.job not in ("evaluate", "fewshot")


# Of several rows that fit, the first gives the reason.
UNREAD = (
    Unread(
        (*_OF_RUN, *_OF_TRAINING, "data.eval_image_size"),
        lambda c: not _trains(c),
        "the job trains nothing, and takes the checkpoint's model",
    ),
    Unread(
        ("data.train", "fewshot"),
        lambda c: c.job == "evaluate",
        "job='evaluate' reads only the test split",
    ),
    Unread(
        ("init_average",),
        lambda c: c.job == "evaluate",
        "job='evaluate' tests the average, if there is one, beside the parameters",
    ),
    Unread(
        ("data.name", "data.train", "data.test"),
        lambda c: c.job == "fewshot" and c.fewshot.name is not None,
        "fewshot.name names the data",
    ),
    Unread(("calibrate",), lambda c: c.job != "evaluate", "job is not 'evaluate'"),
    Unread(("sweep",), lambda c: c.job != "sweep", "job is not 'sweep'"),
    Unread(("compare",), lambda c: c.job != "compare", "job is not 'compare'"),
    Unread(("optim.lr",), lambda c: c.job == "sweep", "job='sweep' tries the rates of sweep.lr"),
    Unread(
        ("epochs",),
        lambda c: c.total_steps is not None,
        "total_steps is set, too, and gives the length",
    ),
    Unread(
        (
            *("fewshot.shots", "fewshot.seeds", "fewshot.neighbours"),
            *("fewshot.name", "fewshot.train", "fewshot.test"),
        ),
        lambda c: _trains(c) and not c.fewshot.every,
        "fewshot.every is 0",
    ),
    Unread(
        ("masked",),
        lambda c: c.objective != "masked_patches",
        "objective is not 'masked_patches'",
    ),
    Unread(
        (
            *("data.mixup", "optim.loss", "optim.label_smoothing", "optim.head_lr"),
            *("model.head_bias", "init_head"),
        ),
        lambda c: c.objective != "classification",
        "objective is not 'classification'",
    ),
    Unread(
        ("data.cutmix", "data.cutmix_probability", "data.class_weights"),
        lambda c: c.objective != "classification",
        "objective is not 'classification'",
    ),
    Unread(
        ("data.cutmix_probability",),
        lambda c: not (c.data.mixup and c.data.cutmix),
        "data.mixup or data.cutmix is 0",
    ),
    Unread(("optim.lr_end",), lambda c: c.optim.decay == "constant", "optim.decay is 'constant'"),
    Unread(("optim.momentum",), lambda c: c.optim.name == "adam", "optim.name is 'adam'"),
    Unread(("optim.beta1", "optim.beta2"), lambda c: c.optim.name == "sgd", "optim.name is 'sgd'"),
    Unread(
        ("optim.layer_decay",),
        lambda c: c.optim.freeze == "encoder",
        "optim.freeze is 'encoder', and only the head is trained",
    ),
    Unread(("model.lora_alpha",), lambda c: not c.model.lora_rank, "model.lora_rank is not set"),
    Unread(("data.crop_area",), lambda c: c.data.crop == "resize", "data.crop is 'resize'"),
    Unread(
        ("data.crop_fraction",),
        lambda c: (c.data.crop != "resize" or not _trains(c)) and c.data.eval_crop == "whole",
        "neither data.crop is 'resize' nor data.eval_crop 'central' or 'squash'",
    ),
    Unread(
        ("data.randaugment_magnitude",),
        lambda c: not c.data.randaugment,
        "data.randaugment is 0",
    ),
    Unread(("init_resize", "init_head"), lambda c: c.init_from is None, "init_from is None"),
    Unread(
        ("data.class_map",),
        lambda c: c.job != "evaluate" and c.init_head != "keep",
        "only job='evaluate' and init_head='keep' pair classes",
    ),
    Unread(
        ("max_skipped_updates",),
        lambda c: c.on_nonfinite != "skip",
        "on_nonfinite is not 'skip'",
    ),
)


def log_unread_keys(config: ConfigDict, keys: Iterable[str]) -> None:
    """Warns of keys that the job doesn't read: a line for each reason.

    Args:
      config: valid. With `job="compare"`, a key is read if one of the runs reads it.
      keys: those that the user set, in full, such as those of a command line.
    """
    configs = [config]
    if config.job == "compare":
        configs = [run_config(config, name) for name in config.compare.runs]
        for single in configs:
            single.job = "compare"
    by_reason: dict[str, list[str]] = {}
    for key in keys:
        if reason := _reason(config, configs, key):
            by_reason.setdefault(reason, []).append(key)
    for reason, unread in by_reason.items():
        logger.warning("Not read: %s, because %s.", ", ".join(unread), reason)


def _reason(config: ConfigDict, configs: Sequence[ConfigDict], key: str) -> str:
    """Returns why a key is not read, or "" if it is read.

    Args:
      config: the whole configuration.
      configs: those of its runs.
      key: in full.
    """
    for row in UNREAD:
        concerned = any(f"{key}.".startswith(f"{unread}.") for unread in row.keys)
        if concerned and all(map(row.when, configs)):
            return row.reason
    runs = config.compare.runs.values() if config.job == "compare" else ()
    if runs and all(look_up(run, key, None) is not None for run in runs):
        return "each of compare.runs sets it"
    return ""
