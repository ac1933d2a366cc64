"""What a run starts from: its newest checkpoint, pretrained weights, or random parameters."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint, read_run
from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.config.defaults import default
from vit_jax.config.keys import (
    all_keys,
    comparable_name,
    image_shape,
    look_up,
    model_attributes,
    overlap,
    short_repr,
)
from vit_jax.data.fingerprint import Fingerprint
from vit_jax.data.inputs import Inputs
from vit_jax.data.transforms import NEW_RUN, view_of
from vit_jax.jobs import initial_head
from vit_jax.jobs.initial_head import choose_head
from vit_jax.jobs.pending import HostMetrics
from vit_jax.jobs.same_data import find_changes, refuse_changes, warn_of_other_images
from vit_jax.models import attributes
from vit_jax.models.lora import split_lora
from vit_jax.training.parallel import Parallel
from vit_jax.training.setup import Setup, run_length
from vit_jax.training.step import TrainState
from vit_jax.training.trained import join_params
from vit_jax.weights import surgery
from vit_jax.weights.api import load_for_new_head
from vit_jax.weights.catalogue import published_source

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
      config: the run's. Attributes of the model that it leaves None are taken from the checkpoint
        or the pretrained weights; keys of the view of evaluation, from the checkpoint or `View`.
      checkpoints: the run's.
      latest: the step of the newest checkpoint, None if there is none.
      pretrained: the weights that `init_from` names, None if they are not needed.
      keeps_head: True if the run starts with the head of `pretrained`.
      saved: the configuration of that checkpoint, None if there is none.
      data: the fingerprint of the data that the checkpoint was trained on, None if there is none.
    """

    config: ConfigDict
    checkpoints: CheckpointManager
    latest: int | None = None
    pretrained: Checkpoint | None = None
    keeps_head: bool = False
    saved: ConfigDict | None = None
    data: Fingerprint | None = None

    @property
    def step(self) -> int:
        """The number of updates that are done."""
        return self.latest or 0

    @property
    def accumulate_steps(self) -> int | None:
        """The number of micro-batches up to the newest checkpoint, None if there is none."""
        # A checkpoint of an early version has no such key.
        return None if self.saved is None else self.saved.get("accumulate_steps") or 1

    def check_same_data(self, inputs: Inputs) -> bool:
        """Refuses data that are not those of the run so far, see `same_data.refuse_changes`.

        It warns if the pretrained weights may have been trained on images of the test split.

        Returns:
          True if a run goes on with other data, because the user says so.
        """
        dataset, now = inputs.dataset, inputs.fingerprint
        if self.pretrained is not None:
            test = (inputs.test_split, inputs.test_source)
            warn_of_other_images(self.pretrained, self.config.data.name, dataset, *test)
        if self.data is None or self.saved is None:
            return False
        same_test = self.config.data.test == self.saved.data.test
        found = find_changes(
            self.data,
            now,
            dataset,
            parts=("train", "test") if same_test else ("train",),
            is_finished=self.step >= run_length(self.config, len(inputs.train_source)),
        )
        where = self.checkpoints.path(self.step)
        before, classes = len(self.data.class_names), len(now.class_names)
        fits = before == classes or not (before and classes)
        advice = (
            "Take the run's own data, or another --workdir, or go on with these: "
            "--config.checkpoint.other_data=true."
            if fits
            else f"Its head is for {before} classes, and these data have {classes}: take the run's "
            f"own data, or another --workdir, with --config.init_from={where}."
        )
        refuse_changes(self.config, found, where=where, advice=advice, may_go_on=fits)
        return bool(found)

    def with_head(self, class_names: Sequence[str] | None) -> Start:
        """Returns the start with the first head, see `initial_head.choose_head`.

        Args:
          class_names: the names of the classes of the run's data; None if it reads no labels.
        """
        if self.pretrained is None:
            return self
        config, pretrained, is_kept = choose_head(self.config, self.pretrained, class_names)
        return self._replace(config=config, pretrained=pretrained, keeps_head=is_kept)

    def first_state(self, setup: Setup, program: Parallel) -> tuple[TrainState, list[HostMetrics]]:
        """Returns the state, placed on the devices, and the pending metrics.

        Raises:
          ValueError: the checkpoint or the pretrained weights don't fit the model. The message
            names every parameter that is missing, unexpected or of another shape.
        """
        state = program.init(setup.init_state, setup.init_key)
        if self.latest is not None:
            logger.info("continuing from %s", self.checkpoints.path(self.latest))
            return self.checkpoints.restore(state)
        if self.pretrained is not None:
            logger.info("starting from %s", self.pretrained.path)
            initial = program.gather(state.params)
            params = _adapted(self.pretrained, self.config, setup, initial, self.keeps_head)
            state = state.replace(params=program.place(params))
        return state, []


def find_start(config: ConfigDict, workdir: epath.Path) -> Start:
    """Finds what a run starts from. No image is read.

    Args:
      config: valid.
      workdir: the run's folder.

    Raises:
      ValueError: the newest checkpoint is another configuration's, or damaged, or the weights of
        `init_from` can't be used; says why.
      FileNotFoundError: there is nothing that `init_from` names.
    """
    checkpoints = CheckpointManager(
        workdir, config.checkpoint.keep, fallback=config.checkpoint.fallback
    )
    if (latest := checkpoints.latest_step()) is not None:
        saved, data = read_run(workdir)
        config = _with_attributes_of(saved, config, *initial_head.INPUT)
        config = with_view(config, saved.data)
        check_same_run(config, saved, checkpoints.path(latest))
        return Start(config, checkpoints, latest=latest, saved=saved, data=data)
    config = with_view(config, ConfigDict(NEW_RUN))
    if config.init_from is not None:
        pretrained = _load_pretrained(config)
        config = _with_attributes_of(pretrained.config, config)
        return Start(config, checkpoints, pretrained=pretrained)
    if config.init_expected:
        logger.warning(
            "Fine-tuning starts from random parameters, because init_from is None. To start from "
            "weights of %s, add for example --config.init_from=%s. It takes a published name, "
            "hf://ORGANISATION/NAME, a file of weights, or the workdir of a run.",
            config.model.variant,
            published_source(config.model.variant) or "WORKDIR",
        )
    return Start(config, checkpoints)


# ------------------------------------------------------------------------------ pretrained weights


def _load_pretrained(config: ConfigDict) -> Checkpoint:
    """Opens what `config.init_from` names, which must be of the configured model."""
    decided = attributes.of_kind(model_attributes(config), "size", "weights")
    pretrained = load_for_new_head(config.init_from, variant=config.model.variant, **decided)
    return pretrained.averaged() if config.init_average else pretrained


def with_view(config: ConfigDict, *others: ConfigDict) -> ConfigDict:
    """Returns a copy that has all keys of the view of evaluation, see `view_of`.

    Args:
      config: a run's.
      *others: the `data` of other configurations, for keys that the run's leaves None.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():  # an early one lacks a key
        config.data.update(view_of(config.data, *others)._asdict())
    return config


def _with_attributes_of(source: ConfigDict, config: ConfigDict, *more: str) -> ConfigDict:
    """Returns a copy that takes what belongs to the weights from `source` where it is None.

    Args:
      source, config: the configurations.
      *more: names of other attributes that are taken, too.
    """
    config = config.copy_and_resolve_references()
    for name in (*attributes.names("weights", "mathematics"), *more):
        if name in config.model and config.model[name] is None:
            config.model[name] = source.model.get(name)
    return config


def _adapted(
    pretrained: Checkpoint, config: ConfigDict, setup: Setup, initial: Any, keeps_head: bool
) -> Any:
    """Returns pretrained parameters for the grid of the run, with their head or `initial`'s.

    LoRA's parameters are `initial`'s.
    """
    new_head = {name: initial[name] for name in surgery.HEAD if name in initial}
    wanted, lora = split_lora(initial)
    params = surgery.adapt_params(
        pretrained.params,
        wanted,
        old_grid=pretrained.grid,
        new_grid=setup.model.grid(image_shape(config.data.image_size)),
        where=pretrained.path,
        head=None if keeps_head else new_head,
        method=config.init_resize,
    )
    return join_params(params, lora)


# -------------------------------------------------------------------- the run that a workdir holds

# Keys that may change when a run is resumed. First those that don't change the updates, except for
# the random numbers of dropout, stochastic depth and the corruption of patches, and for the pairs
# of mixup.
_COMPUTATION = (
    "parallel",
    "fsdp",
    "accumulate_steps",
    *(f"model.{name}" for name in attributes.names("device")),
)
_READING = ("data.dir", "data.threads", "data.prefetch", "data.check")
_MEASURING = (
    "data.test",
    "data.eval_image_size",
    "data.eval_crop",
    "data.eval_resize",
    "data.class_map",
    "eval_batch_size",
    "log_every",
    "loggers",
    "eval_every",
    "checkpoint",
    "fewshot",
)
_OTHER_JOBS = ("job", "sweep", "compare", "calibrate")
_READ_AT_THE_START = ("init_from", "init_expected", "init_resize", "init_average", "init_head")
# Then those that a user may change on purpose: a longer run, whose schedule ends later, and what to
# do about faults.
_DECIDED = (
    *("total_steps", "epochs", "early_stopping"),
    *("data.on_error", "on_nonfinite", "max_skipped_updates"),
)
MAY_CHANGE = (
    *_COMPUTATION,
    *_READING,
    *_MEASURING,
    *_OTHER_JOBS,
    *_READ_AT_THE_START,
    *_DECIDED,
)


def changes(config: ConfigDict, saved: ConfigDict) -> list[str]:
    """Returns the keys whose values differ such that something else would be trained.

    The keys of `MAY_CHANGE` don't count.

    Args:
      config: the run's, with the attributes that it takes from the saved one.
      saved: as a checkpoint has it, where tuples are lists. A key that it lacks has its default. A
        key that `default` lacks doesn't count.

    Returns:
      One text a key: "optim.lr was 0.01, is 0.03".
    """
    defaults, found = default(), []
    with contextlib.suppress(AttributeError, ValueError):  # a damaged one is compared as it is
        config, saved = with_view(config, saved.data), with_view(saved)
    for key in all_keys(defaults):
        if isinstance(defaults[key], ConfigDict) or any(overlap(key, free) for free in MAY_CHANGE):
            continue
        old, new = (_comparable(key, look_up(c, key, defaults[key])) for c in (saved, config))
        if old != new:
            found.append(f"{key} was {short_repr(old)}, is {short_repr(new)}")
    return found


def check_same_run(config: ConfigDict, saved: ConfigDict, where: str) -> None:
    """Refuses a configuration that would train something else than a saved one, see `changes`.

    Args:
      config: the run's, valid, with the attributes that it takes from the saved one. With
        `checkpoint.other_config` it is not refused, unless `model.lora_rank` differs: there would
        be other parameters.
      saved: as a checkpoint has it.
      where: the checkpoint, for the message.

    Raises:
      ValueError: they differ; lists the keys, and says what can be done.
    """
    message = "".join(f"\n- {change}" for change in changes(config, saved))
    rank = "model.lora_rank"
    new, old = (_comparable(rank, look_up(c, rank, None)) for c in (config, saved))
    if new != old:
        raise ValueError(
            f"{where} was trained with another configuration:{message}\nmodel.lora_rank can't be "
            f"changed in the middle of a run: take the run's own, or another --workdir with "
            f"init_from, which starts from the merged model."
        )
    if message and not config.checkpoint.other_config:
        raise ValueError(
            f"{where} was trained with another configuration:{message}\nTake the run's own values, "
            f"or another --workdir, or go on with these: --config.checkpoint.other_config=true."
        )
    if message:
        logger.info("going on with another configuration:%s", message)


def _comparable(key: str, value: Any) -> Any:
    """Returns a value such that two values which mean the same are equal."""
    if key == "data.name" and isinstance(value, str):
        return comparable_name(value)
    if key == "data.image_size" and isinstance(value, int):
        return value, value
    if key == "model.lora_rank":
        return value or None
    return tuple(value) if isinstance(value, list) else value
