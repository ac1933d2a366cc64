"""The head that a run starts with: that of the pretrained weights, or a new one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import class_name, printable
from vit_jax.evaluation.pairing import BY_NUMBER, Pairing, pair_classes, with_classes

logger = logging.getLogger(__name__)

INIT_HEADS = ("keep", "new")  # what `config.init_head` takes, besides None
# Attributes of a model which say what its head reads.
INPUT = ("pool", "pre_logits", "projection")


class InitialHead(NamedTuple):
    """The head that a run starts with.

    Attributes:
      config: the run's. If the head is kept, its model has the layers that this head reads from.
      pretrained: the weights. If the head is kept, its logits are those of the run's classes.
      is_kept: False if the run starts with a new head.
    """

    config: ConfigDict
    pretrained: Checkpoint
    is_kept: bool


def choose_head(
    config: ConfigDict, pretrained: Checkpoint, class_names: Sequence[str] | None
) -> InitialHead:
    """Chooses the head that a run starts with, as `config.init_head` says, and logs it.

    The classes are paired as in an evaluation, see `pair_classes`. With None, the head is kept only
    if both have the same names of classes, in any order.

    Args:
      config: the run's, with the attributes that it takes from the weights.
      pretrained: the weights that the run starts from.
      class_names: the names of the classes of the run's data; None if its head predicts patches.

    Raises:
      ValueError: the head is to be kept, and is not for these classes or reads something else.
    """
    where, new = printable(pretrained.path), InitialHead(config, pretrained, is_kept=False)
    if class_names is None:
        logger.info(
            "The layers that predict patches are initialised at random: those of %s are not used.",
            where,
        )
        return new
    why_not = _why_not_kept(config, pretrained, class_names)
    if config.init_head == "keep" and why_not:
        raise ValueError(f"No head can be kept: {why_not}. Take init_head='new' or other weights.")
    if config.init_head == "new" or why_not:
        reason = why_not or f"init_head='new', and that of {where} is not used"
        count = len(class_names)
        logger.info("The head for %d classes is new: %s.", count, reason)
        return new
    try:
        pairing = pair_classes(pretrained, class_names, config.data.name, config.data.class_map)
    except ValueError as error:
        raise ValueError(
            f"The head of {where} can't be kept for these classes. {error} Or take a new head: "
            f"init_head='new'."
        ) from error
    _log_kept(pairing, where, pretrained.num_classes)
    return InitialHead(
        _with_input_of(pretrained, config),
        with_classes(pretrained, pairing, class_names),
        is_kept=True,
    )


def _why_not_kept(config: ConfigDict, pretrained: Checkpoint, class_names: Sequence[str]) -> str:
    """Returns why the head of pretrained weights can't be kept, or isn't by default; or ""."""
    where = printable(pretrained.path)
    if not pretrained.num_classes:
        return f"{where} has none"
    model = pretrained.model()
    for name in INPUT:
        wanted, own = config.model.get(name), getattr(model, name, None)
        if wanted is not None and wanted != own:
            return f"that of {where} is for a model with {name}={own!r}, not {wanted!r}"
    if config.init_head == "keep":
        return ""
    names, own_names = (sorted(map(class_name, x)) for x in (class_names, pretrained.class_names))
    if names == own_names:
        return ""
    unnamed = "" if own_names else " without names"
    return f"that of {where}, for {pretrained.num_classes} classes{unnamed}, is not used"


def _log_kept(pairing: Pairing, where: str, num_classes: int) -> None:
    """Logs that the head is kept, and how its logits were found."""
    count, logits = len(pairing.logits), list(pairing.logits)
    if pairing.by == BY_NUMBER:
        logger.warning(
            "The head of %s is kept: its %d logits are paired with the classes of the data by "
            "number. Nothing says that the order is the same.",
            *(where, count),
        )
        return
    change = ""
    if count < num_classes:
        change = f" Of its {num_classes} logits, those of these classes are kept."
    elif logits != sorted(logits):
        change = " Its logits are put into the order of the data's classes."
    logger.info(
        "The head of %s is kept for the %d classes, which are paired by %s.%s",
        *(where, count, pairing.by, change),
    )


def _with_input_of(pretrained: Checkpoint, config: ConfigDict) -> ConfigDict:
    """Returns a copy of a configuration whose model has the layers that a head reads from."""
    config, model = config.copy_and_resolve_references(), pretrained.model()
    for name in INPUT:
        if config.model.get(name) is None and getattr(model, name, None):
            config.model[name] = getattr(model, name)
    return config
