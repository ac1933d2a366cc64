"""Whether the data of a job are those of an earlier run."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import class_name, printable
from vit_jax.config.keys import comparable_name, is_folder
from vit_jax.data.builders import vtab
from vit_jax.data.dataset import Dataset, Source
from vit_jax.data.fingerprint import Fingerprint, find_differences, fingerprint
from vit_jax.data.folders import FolderDataset, parts_of
from vit_jax.data.splits import borders, default_splits, is_sliced

logger = logging.getLogger(__name__)

OTHER_ORDER = (
    "an earlier version of vit_jax read this folder in another order, and perhaps fewer images"
)
OTHER_SPLIT = "an earlier version of vit_jax held out other images"


def find_changes(
    old: Fingerprint,
    new: Fingerprint,
    dataset: Dataset,
    *,
    parts: Sequence[str] = ("train", "test"),
    is_finished: bool = False,
) -> list[str]:
    """Returns how data differ from those of an earlier run: a sentence for each difference.

    Args:
      old: of the earlier run. Version 0.1 stored nothing of the splits: it read folders otherwise.
      new: of the data as they are now.
      dataset: the data set as it is now.
      parts: the splits that must be the same. Those that `old` or `new` lacks are left out.
      is_finished: True if the earlier run has no steps left: then its order doesn't matter.
    """
    stored = old.splits or {}
    known = [part for part in parts if part in stored and part in (new.splits or {})]
    found = find_differences(old, new, known)
    if old.splits is None and new.splits is not None and isinstance(dataset, FolderDataset):
        if was_split_otherwise(dataset, *(new.splits[x]["split"] for x in ("train", "test"))):
            found.append(f"{OTHER_ORDER}, and held out other images")
        elif not is_finished:
            found.append(OTHER_ORDER)
    return found


def refuse_changes(
    config: ConfigDict, found: Sequence[str], *, where: str, advice: str, may_go_on: bool = True
) -> None:
    """Refuses data that are not those of an earlier run.

    Args:
      config: the run's. With `checkpoint.other_data` nothing is refused.
      found: what `find_changes` returned.
      where: the checkpoint or result of the earlier run, for the message.
      advice: what the user can do.
      may_go_on: False if `checkpoint.other_data` doesn't help.

    Raises:
      ValueError: the data differ; lists the differences, and says what can be done.
    """
    message = "".join(f"\n- {difference}" for difference in found)
    if message and not (config.checkpoint.other_data and may_go_on):
        raise ValueError(
            f"{where} was trained on other data than {printable(config.data.name)} now holds:"
            f"{message}\n{advice}"
        )
    if message:
        logger.info("%s was trained on other data:%s", where, message)


def was_split_otherwise(dataset: Dataset, *splits: str) -> bool:
    """Returns True if version 0.1 took other images for some splits.

    Args:
      dataset: the data set that is opened. Version 0.1 divided folders of images in another way.
      *splits: such as "train[85%:]". A whole split, such as "test", has the same images.
    """
    return isinstance(dataset, FolderDataset) and any(map(is_sliced, splits))


def splits_of_run(
    checkpoint: Checkpoint, name: str, dataset: Dataset, *, moved: bool = False
) -> tuple[str, str] | None:
    """Returns the (train, test) splits of a checkpoint's run if it was trained on these data.

    Args:
      checkpoint: its configuration says what it was trained on, if it comes from a run of ours.
      name: the `data.name` of the data set.
      dataset: the data set that is opened.
      moved: True to take two folders for the same data if they have the same classes.

    Returns:
      None if it was trained on other data, or nothing is known of them.
    """
    trained_on = checkpoint.config.data
    if not checkpoint.step:
        return None
    may_have_moved = moved and is_folder(trained_on.name) and _is_folder_of(checkpoint, dataset)
    if not (may_have_moved or _is_same(trained_on.name, name)):
        return None
    train, test = default_splits(dataset.splits)
    return trained_on.train or train, trained_on.test or test


def _is_same(a: str, b: str) -> bool:
    """Returns True if two values of `data.name` name the same data, in any version or config."""

    def bare(name: str) -> str:
        if is_folder(name):
            return comparable_name(name)
        if name.startswith("vtab/"):
            name = vtab.task(name.removeprefix("vtab/")).dataset
        return re.split("[:/]", name)[0]

    return bare(a) == bare(b)


def warn_of_other_images(
    checkpoint: Checkpoint, name: str, dataset: Dataset, split: str, source: Source
) -> None:
    """Warns if a checkpoint is tested on the test split of its run, and this has other images.

    Args:
      checkpoint: as for `splits_of_run`.
      name: the `data.name` of the data set.
      dataset: the data set that is opened. A folder may have moved.
      split: what the checkpoint, or a run that starts from it, is tested on.
      source: the split's examples.
    """
    splits = splits_of_run(checkpoint, name, dataset, moved=True)
    if splits is None:
        return
    trained, tested, now = (_borders(dataset, x) for x in (*splits, split))
    if checkpoint.data is None:
        names = {name for name, _, _ in trained} & {name for name, _, _ in now}
        found = [OTHER_SPLIT] if names and was_split_otherwise(dataset, split) else []
    elif now == tested:
        new = fingerprint(dataset, labels=False, test=(split, source))
        found = find_differences(Fingerprint((), checkpoint.data), new, parts=("test",))
    else:
        found = []
    if not found:
        return
    if checkpoint.data is None or _moves_images(dataset, split):
        logger.warning(
            "%s may have been trained on some images of %s, and the accuracy may be too high. They "
            "are not those that its run held out: %s.",
            *(printable(checkpoint.path), split, found[0]),
        )
    else:
        logger.warning(
            "%s was not measured on these images before: %s. Its test accuracy then can't be "
            "compared with this one.",
            *(printable(checkpoint.path), found[0]),
        )


def _is_folder_of(checkpoint: Checkpoint, dataset: Dataset) -> bool:
    """Returns True if a data set is a folder whose classes have the names of a checkpoint's."""
    names, others = (tuple(map(class_name, x.class_names)) for x in (checkpoint, dataset))
    return isinstance(dataset, FolderDataset) and bool(names) and names == others


def _borders(dataset: Dataset, split: str) -> list[tuple[str, int, int]]:
    """Returns (name, first example, end) of each part of a split; [] if there is no such split."""
    try:
        parts = parts_of(dataset, split)
    except ValueError:  # the run's folder had other splits
        return []
    return sorted((part.splitname, *borders(part, dataset.splits)) for part in parts)


def _moves_images(dataset: Dataset, split: str) -> bool:
    """Returns True if images move between slices when others are added or removed."""
    parts = [part for part in split.split("+") if is_sliced(part)]
    return bool(parts) and not (
        isinstance(dataset, FolderDataset) and all("%" in part for part in parts)
    )
