"""What a run starts from: its own newest checkpoint, init_from, or random parameters."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys, get, model_attributes, overlap, shown
from vit_jax.weights import surgery
from vit_jax.weights.api import load

logger = logging.getLogger(__name__)

# What may change when a run goes on, because no update of the parameters depends on it…
_FREE = (
    "job",
    "parallel",
    "fsdp",
    "accumulate_steps",  # … but for what dropout and Mixup draw
    "model.implementation",
    "model.remat",
    "model.scan",
    "data.dir",
    "data.test",
    "data.eval_crop",
    "data.threads",
    "data.prefetch",
    "data.check",
    "eval_batch_size",
    "log_every",
    "eval_every",
    "checkpoint",
    "fewshot",
    "sweep",
    "compare",
    "init_from",
    "init_resize",
    "init_average",  # a run reads them once, at its start
    # … or because it is for those who know: a longer run, whose schedule then ends later, and what
    # to do about faults.
    "total_steps",
    "epochs",
    "data.on_error",
    "on_nonfinite",
    "max_skipped_updates",
)


def changes(config: ConfigDict, saved: ConfigDict) -> list[str]:
    """Returns what makes a configuration train something else than a saved one.

    Keys that may change in the middle of a run don't count: where and how fast it computes, how
    long it is (`total_steps`, `epochs`: the schedule ends where the run does), what is measured and
    kept on the way, and what is read only at its start.

    Args:
      config: of the run to be, with what it inherits from the saved one.
      saved: as a checkpoint has it, where tuples have become lists. Keys it lacks, of a version
        that didn't have them, count as their default; keys that are no more don't count.

    Returns:
      One text a key: "optim.lr was 0.01, is 0.03".
    """
    usual, told = default(), []
    for key in all_keys(usual):
        if isinstance(usual[key], ConfigDict) or any(overlap(key, free) for free in _FREE):
            continue
        old, new = (_resolved(key, get(c, key, usual[key])) for c in (saved, config))
        if old != new:
            told.append(f"{key} was {shown(old)}, is {shown(new)}")
    return told


def check_same_run(config: ConfigDict, saved: ConfigDict, where: str) -> None:
    """Refuses to go on with what another configuration began, see `changes`.

    Args:
      config: valid, of the run to be, with what it inherits from the saved one;
        `checkpoint.other_config` lets it go on.
      saved: as a checkpoint has it.
      where: the checkpoint, for the message.

    Raises:
      ValueError: they differ; lists by which keys, and what can be done.
    """
    told = "".join(f"\n- {change}" for change in changes(config, saved))
    if told and not config.checkpoint.other_config:
        raise ValueError(
            f"{where} is of another configuration:{told}\nTake the run's own values, or another "
            f"--workdir, or go on with these: --config.checkpoint.other_config=true."
        )
    if told:
        logger.info("going on with another configuration:%s", told)


def _resolved(key: str, value: Any) -> Any:
    """Returns a value such that those that mean the same are equal."""
    if key == "data.name" and os.path.isdir(folder := os.path.expanduser(str(value))):
        return os.path.realpath(folder)
    if key == "data.image_size" and isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value


def load_pretrained(config: ConfigDict) -> Checkpoint:
    """Returns what `config.init_from` names, which must be of the configured model."""
    adaptable = (
        "dropout",
        "stochastic_depth",
        "pool",
        "pre_logits",
        "gelu",
        "norm_epsilon",
        "kernel_epsilon",
    )
    overrides = model_attributes(config)
    origin = load(
        config.init_from,
        variant=config.model.variant,
        **{key: value for key, value in overrides.items() if key not in adaptable},
    )
    return origin.averaged() if config.init_average else origin


def inherit(config: ConfigDict, origin: ConfigDict) -> ConfigDict:
    """Returns a copy with what weights are computed with, where `config` leaves it open."""
    config = config.copy_and_resolve_references()
    for key in ("gelu", "norm_epsilon", "kernel_epsilon", "positions", "positions_at", "pool"):
        if config.model[key] is None:
            config.model[key] = origin.model.get(key)
    return config


def adapted_params(
    origin: Checkpoint, config: ConfigDict, grid: tuple[int, int], fresh: Any
) -> Any:
    """Returns the parameters of `origin` with the head of `fresh`, fitted to its grid."""
    params = surgery.adapt(
        origin.params,
        fresh,
        old_grid=grid(origin),
        new_grid=grid,
        where=origin.path,
        head={name: fresh[name] for name in surgery.HEAD if name in fresh},
        method=config.init_resize,
    )
    return jax.tree.map(np.asarray, params)
