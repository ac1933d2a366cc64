"""What the logits of weights are for, where their file doesn't say it."""

from __future__ import annotations

import functools
import logging
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import printable

logger = logging.getLogger(__name__)

_CLASSES = pathlib.Path(__file__).with_name("imagenet2012.tsv")
_COUNT = 1000  # of its classes
# What names of files and folders of weights for ImageNet-1k contain.
_SAYS_IMAGENET = re.compile("imagenet-?2012|imagenet-?1k|in1k|ilsvrc", re.IGNORECASE)


@functools.cache
def imagenet_classes() -> Mapping[str, str]:
    """Returns {WordNet id: lemmas} of the 1,000 classes, in the order of the logits.

    The order is that of the ids as text, as in tfds's `imagenet2012` and in all published heads.
    The lemmas are WordNet 3.0's, separated by ", ".

    Example:
      >>> next(iter(imagenet_classes().items()))
      ('n01440764', 'tench, Tinca tinca')
    """
    lines = _CLASSES.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {wordnet_id: lemmas for wordnet_id, lemmas in rows}


def with_class_names(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint with ImageNet-1k's names if it has 1,000 logits and no names.

    A warning says so, unless the checkpoint's path names ImageNet-1k. Another checkpoint is
    returned as it is.
    """
    if checkpoint.class_names or checkpoint.num_classes != _COUNT:
        return checkpoint
    if not _SAYS_IMAGENET.search(checkpoint.path):
        logger.warning(
            "%s has 1,000 logits and no names of classes: it is assumed that they are those of "
            "ImageNet-1k, in the order of WordNet ids.",
            printable(checkpoint.path),
        )
    return checkpoint._replace(class_names=tuple(imagenet_classes().values()))


def check_head(checkpoint: Checkpoint) -> None:
    """Warns if a head is untrained, and logs that its classes have no names if they haven't.

    The heads of some published weights of ImageNet-21k are all zeros.

    Args:
      checkpoint: with a head.
    """
    where = printable(checkpoint.path)
    if not any(np.any(np.asarray(x)) for x in checkpoint.params["head"].values()):
        logger.warning(
            "The head of %s is untrained: its parameters are all 0, so all its %d classes get the "
            "same probability. Fine-tune from it first.",
            *(where, checkpoint.num_classes),
        )
    elif not checkpoint.class_names:
        logger.info(
            "%s has no names of its %d classes: they are shown by number, counted from 0.",
            *(where, checkpoint.num_classes),
        )
