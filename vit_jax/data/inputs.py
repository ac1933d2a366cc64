"""All that a run reads, opened in one call, for this JAX process."""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.data.batch import Batch
from vit_jax.data.checks import (
    require_decodable,
    require_loss_for_labels,
    require_test_labels,
    require_trainable,
    warn_of_test_split,
)
from vit_jax.data.class_balance import class_weights
from vit_jax.data.dataset import Dataset, Source, is_multi_label
from vit_jax.data.fingerprint import Fingerprint, fingerprint
from vit_jax.data.pipeline import Shard, eval_batches, train_batches
from vit_jax.data.skipped import SkippedImages
from vit_jax.data.sources import open_dataset, open_source

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What a training run reads.

    Attributes:
      dataset: the data set.
      class_names: the names of its classes, by label.
      train_split: the split to train on, such as "train[:85%]".
      test_split: the split to test on.
      train_source: the examples of the training split.
      test_source: the examples of the test split.
      class_weights: the weight of each class in the loss, by label. None if they have none.
      train_batches: an endless iterator of this process's training batches. It reads nothing until
        `pipeline.seek` starts it at a step, or a batch is taken.
      test_batches: this process's batches of the test split, an iterable to go through many times.
      make_eval_batches: (source, num_classes=) -> this process's evaluation batches of any source.
      skipped_images: the ids of the images skipped so far, in all these batches.
      fingerprint: tells these data from others.
    """

    dataset: Dataset
    class_names: tuple[str, ...]
    train_split: str
    test_split: str
    train_source: Source
    test_source: Source
    class_weights: tuple[float, ...] | None
    train_batches: grain.DatasetIterator
    test_batches: Iterable[Batch]
    make_eval_batches: Callable[..., Iterable[Batch]]
    skipped_images: SkippedImages
    fingerprint: Fingerprint

    def describe_labels(self) -> dict[str, Any]:
        """Returns what a loss has to know of the labels: `multi_label` and `class_weights`."""
        multi_label = is_multi_label(self.train_source)
        return {"multi_label": multi_label, "class_weights": self.class_weights}

    def with_eval_batch_size(self, batch_size: int) -> Inputs:
        """Returns the same inputs with another `config.eval_batch_size`."""
        make = functools.partial(
            self.make_eval_batches, batch_size=batch_size // jax.process_count()
        )
        batches = make(self.test_source, num_classes=len(self.class_names))
        return self._replace(make_eval_batches=make, test_batches=batches)

    def check_decodable(self, options: ConfigDict) -> None:
        """Decodes every image of both splits, if they are of a folder; see `require_decodable`.

        The first process shows a progress bar on stderr.

        Args:
          options: `config.data`.

        Raises:
          ValueError: some images can't be read or decoded; the message lists them.
        """
        splits = (self.train_split, self.test_split)
        require_decodable(self.dataset, splits, options, progress=jax.process_index() == 0)


def open_inputs(
    config: ConfigDict, *, labels: bool = True, dataset: Dataset | None = None
) -> Inputs:
    """Opens the data set of a training run, checks its size and classes, and logs them.

    No image is read, but the first to test on of a tfds data set, for its label, and what
    `class_balance.labels_of` reads for `data.class_weights` and `data.sampling`. All processes must
    call this. The batches are this process's part: `config.batch_size` and `config.eval_batch_size`
    are of all processes together.

    Args:
      config: see `vit_jax.config.default`.
      labels: False if the objective reads no labels: then a class may have no images.
      dataset: what `config.data.name` stands for. None opens what it names.

    Raises:
      FileNotFoundError: there is no such folder, or it has no images.
      ValueError: there is no such data set or split, the training split has fewer images than a
        batch, some of its classes have none, images have several labels and `optim.loss` takes one,
        the test split has no labels, the weights of the classes can't be used, or the processes
        see different images.
      ImportError, ConnectionError: as `open_dataset`.
    """
    if dataset is None:
        dataset = open_dataset(config.data.name, config.data.dir)
    class_names = dataset.class_names
    train_split, train_source = train = open_source(dataset, "train", config.data.train)
    test_split, test_source = test = open_source(dataset, "test", config.data.test)
    logger.info(
        "%s: %d classes; train on %s (%d images), test on %s (%d images)",
        printable(config.data.name),
        len(class_names),
        train_split,
        len(train_source),
        test_split,
        len(test_source),
    )
    require_trainable(
        dataset,
        train_split,
        batch_size=config.batch_size,
        labels=labels,
    )
    warn_of_test_split(dataset, train_split, test_split, labels=labels)
    if labels:
        require_loss_for_labels(train_source, config.optim.loss, config.data.name)
        require_test_labels(dataset, test_source, test_split)
    weights = class_weights(config.data, train_source, class_names) if labels else None
    data = fingerprint(dataset, labels=labels, train=train, test=test)
    _check_same_on_all(data, config.data.name)
    skipped = SkippedImages()
    batches = train_batches(
        train_source,
        config.data,
        num_classes=len(class_names),
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        shard=_this_shard(),
        skipped=skipped,
    )
    evaluation = evaluation_batches(config, config.data, skipped)
    return Inputs(
        dataset=dataset,
        class_names=class_names,
        train_split=train_split,
        test_split=test_split,
        train_source=train_source,
        test_source=test_source,
        class_weights=weights,
        train_batches=batches,
        test_batches=evaluation(test_source, num_classes=len(class_names)),
        make_eval_batches=evaluation,
        skipped_images=skipped,
        fingerprint=data,
    )


def evaluation_batches(
    config: ConfigDict, options: ConfigDict, skipped: SkippedImages | None = None
) -> Callable[..., Iterable[Batch]]:
    """Returns (source, num_classes=) -> this process's evaluation batches of the source.

    Args:
      config: the run's configuration; `eval_batch_size` is of all processes together.
      options: `config.data`, or a copy of it with a checkpoint's image size.
      skipped: gets the images that are skipped. None doesn't collect them.
    """
    return functools.partial(
        eval_batches,
        options=options,
        batch_size=config.eval_batch_size // jax.process_count(),
        shard=_this_shard(),
        skipped=skipped,
    )


def _check_same_on_all(data: Fingerprint, name: str) -> None:
    """Raises ValueError, in every process, if not all have the same fingerprint of their data."""
    if jax.process_count() == 1:
        return
    hashed = np.uint32(zlib.crc32(repr(data).encode()))
    found = np.ravel(multihost_utils.process_allgather(hashed))
    if other := [str(process) for process, x in enumerate(found) if x != found[0]]:
        raise ValueError(
            f"The processes see different images: in {printable(name)}, classes or files of "
            f"process {first_few(other)} are not those of process 0. Give all of them copies of "
            f"the same data, or one shared folder."
        )


def _this_shard() -> Shard:
    return Shard(jax.process_index(), jax.process_count())
