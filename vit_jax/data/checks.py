"""Checks of a data set before a run: enough images, no empty classes, and every image decodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ml_collections import ConfigDict

from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.dataset import (
    Dataset,
    ExampleError,
    Label,
    Source,
    classes_of,
    is_multi_label,
)
from vit_jax.data.folders import FolderDataset, FolderSource, parts_of
from vit_jax.data.inspection import (
    describe_copies,
    describe_leaks,
    describe_sizes,
    divide,
    find_copies,
    inspect_images,
    problems_of,
)
from vit_jax.data.parquet import ParquetDataset, ParquetSource
from vit_jax.data.pipeline import check_label
from vit_jax.data.sources import open_folder
from vit_jax.data.splits import count_shared, default_splits, own_test_split

logger = logging.getLogger(__name__)

Listed = FolderDataset | ArrayDataset | ParquetDataset  # whose labels are all known

_DEEPER = "If the classes, or train/ and test/, are one folder deeper, name that folder."
_LISTED = 20  # how many bad images, or classes without images, an error names


def require_trainable(dataset: Dataset, split: str, *, batch_size: int, labels: bool) -> None:
    """Raises an error if a split lacks the images or classes that training needs; reads no image.

    Args:
      dataset: what `open_dataset` returns.
      split: the split to train on, such as "train[:85%]".
      batch_size: number of examples in a step, over all processes.
      labels: False if training does not use the classes.

    Raises:
      ValueError: the split has fewer images than a batch; or the data set has fewer than two
        classes; or it is a folder or of arrays, and the split has no images of some classes. The
        message names what is lacking.
    """
    images = len(dataset.source(split))
    if images < batch_size:
        raise ValueError(
            f"The split {split} has {images} images, fewer than batch_size={batch_size}: take a "
            f"smaller batch, such as --config.batch_size={2 ** (max(1, images).bit_length() - 1)}, "
            f"or a larger split as data.train."
        )
    if not labels:
        return
    if len(dataset.class_names) < 2 and not is_multi_label(dataset.source(split)):
        raise ValueError(
            f"There is only one class, {first_few(dataset.class_names)}, so there is nothing to "
            f"tell apart: give images of two or more. A folder has a subfolder for each class. "
            f"{_DEEPER}"
        )
    if isinstance(dataset, Listed) and (empty := find_empty_classes(dataset, split)):
        where = dataset.folder if isinstance(dataset, FolderDataset) else "The data set"
        raise ValueError(
            f"{where} has no images to train on ({split}) for {len(empty)} of its "
            f"{len(dataset.class_names)} classes: {first_few(empty, _LISTED)}. Add images of them, "
            f"or leave these classes out, or, if data.train is a part, take a larger one."
        )


def require_loss_for_labels(source: Source, loss: str, data: str, checkpoint: str = "") -> None:
    """Raises an error if images may have several labels, or none, and the loss needs one.

    Args:
      source: examples to train or to test on; none is read.
      loss: `config.optim.loss`.
      data: the name of the data set, for the message.
      checkpoint: what was trained with this loss; "" for the run that is to begin.

    Raises:
      ValueError: the loss is not "sigmoid". If the labels are those of a labels.csv, the message
        names an image.
    """
    if loss == "sigmoid" or not is_multi_label(source):
        return
    files = source.files if isinstance(source, FolderSource) else ()
    counts = ((path, len(classes_of(label))) for path, label in files)
    example = next((f" ({printable(x)} has {n})" for x, n in counts if n != 1), "")
    advice = "To train on all labels, set --config.optim.loss=sigmoid."
    if checkpoint:
        advice = f"{printable(checkpoint)} was trained with it: take one trained with 'sigmoid'."
    raise ValueError(
        f"Images of {printable(data)} can have several labels, or none{example}, and "
        f"optim.loss='{loss}' takes one label an image. {advice}"
    )


def require_one_label(source: Source, data: str) -> None:
    """Raises ValueError if images may have several labels, of which few-shot evaluation needs one.

    Args:
      source: examples to draw from; none is read.
      data: the name of the data set, for the message.
    """
    if is_multi_label(source):
        raise ValueError(
            f"Few-shot evaluation draws images of each class, and those of {printable(data)} can "
            f"have several labels, or none: name data with one label an image as fewshot.name, or "
            f"set fewshot.every=0."
        )


def warn_of_test_split(dataset: Dataset, train: str, test: str, *, labels: bool) -> None:
    """Warns if a test split has images to train on, or lacks classes; reads no image.

    Classes are only looked for in a folder and in arrays.

    Args:
      dataset: what `open_dataset` returns.
      train: the split to train on, such as "train[:85%]".
      test: the split to test on.
      labels: False if training does not use the classes.
    """
    trained, tested = (parts_of(dataset, split) for split in (train, test))
    if shared := count_shared(trained, tested, dataset.splits):
        logger.warning(
            "%d of the %d test images (%s) are among those to train on (%s): the test metrics are "
            "not those of new images. To change this, set data.train and data.test.",
            *(shared, len(dataset.source(test)), test, train),
        )
    if not labels or not isinstance(dataset, Listed):
        return
    if empty := find_empty_classes(dataset, test):
        logger.warning("%s", _untested(dataset, empty, test))


def _untested(dataset: Dataset, empty: list[str], test: str) -> str:
    """Returns a message about the classes that a test split lacks."""
    message = (
        f"The test split, {test}, has no images of {len(empty)} of the {len(dataset.class_names)} "
        f"classes: {first_few(empty)}. The test metrics say nothing about them."
    )
    if isinstance(dataset, FolderDataset):
        message += (
            " Add images, or choose the test images yourself, in folders test/CLASS beside "
            "train/CLASS, or take a larger part with data.train and data.test."
        )
    return message


def require_test_labels(dataset: Dataset, source: Source, split: str) -> None:
    """Raises an error if the first example of a test split has no label, as in ImageNet's own.

    Folders and arrays, whose images all have labels, aren't looked at.

    Args:
      dataset: what `open_dataset` returns.
      source: the examples of the split.
      split: the split to test on.

    Raises:
      ValueError: the label is not that of a class; names the other splits.
    """
    if isinstance(dataset, Listed):
        return
    try:
        example = source[0]
    except ExampleError:  # a damaged one is named, or skipped, when it is needed
        return
    try:
        check_label(example, len(dataset.class_names))
    except ExampleError as error:
        others = [name for name in dataset.splits if name != split]
        raise ValueError(
            f"The test split {split} can't be used: {error}. Name another split, such as one of "
            f"{first_few(others)}: --config.data.test=SPLIT."
        ) from error


def find_empty_classes(dataset: Listed, split: str) -> list[str]:
    """Returns the names of the classes that have no image in a split; reads no image.

    Args:
      dataset: what `open_dataset` returns for a folder, or of arrays.
      split: such as "train[:85%]".

    Raises:
      ValueError: the syntax is wrong, or there is no such split.
    """
    source = dataset.source(split)
    if isinstance(source, ParquetSource):
        labels: Iterable[Label] = source.labels
    else:
        members = source.files if isinstance(source, FolderSource) else source.examples
        labels = [label for _, label in members]
    found = {x for label in labels for x in classes_of(label)}
    return [name for label, name in enumerate(dataset.class_names) if label not in found]


def require_decodable(
    dataset: Dataset, splits: Iterable[str], options: ConfigDict, *, progress: bool = True
) -> None:
    """Decodes every image in some splits of a folder or of files, so that none stops the run later.

    Their sizes are logged. A warning names images of two splits that are the same byte for byte.
    Nothing is decoded for a tfds data set, with `options.check=False`, or with
    `options.on_error="skip"`.

    Args:
      dataset: what `open_dataset` returns.
      splits: names of splits, such as ("train", "test").
      options: `config.data`.
      progress: True to show a progress bar on stderr.

    Raises:
      ValueError: some images can't be read or decoded. The message lists them, and says what the
        user can do.
    """
    checked = options.check and options.on_error == "stop"
    if not checked or not isinstance(dataset, Listed):
        return
    names, num_classes = list(splits), len(dataset.class_names)
    source_of = dataset.encoded if isinstance(dataset, ArrayDataset) else dataset.source
    source: Source = source_of("+".join(names))
    if not len(source):
        return
    images = inspect_images(source, num_classes=num_classes, progress=progress)
    if problems := problems_of(images):
        listed = first_few([f"- {problem}" for problem in problems], _LISTED, "\n")
        lists_all = (
            f" (`python -m vit_jax.data check {dataset.folder}` lists all)"
            if isinstance(dataset, FolderDataset)
            else ""
        )
        raise ValueError(
            f"{len(problems)} of {len(source)} images can't be used:\n{listed}\n"
            f"Remove or repair them{lists_all}, or skip them with --config.data.on_error=skip. "
            f"With --config.data.check=false, a run starts without this check, and stops at the "
            f"first."
        )
    logger.info("%s: %s", printable(dataset.name), describe_sizes(images))
    lengths = {name: len(source_of(name)) for name in names}
    if leaks := find_copies(divide(images, lengths)).leaks:
        logger.warning(
            "%d images are byte for byte the same as images of another split: %s. A test on images "
            "that were trained on says little about new ones: leave out one of each.",
            *(len(leaks), first_few(describe_leaks(dataset, leaks))),
        )


def check_folder(folder: str) -> tuple[list[str], list[str]]:
    """Decodes every image of a folder, in all its splits; shows a progress bar on stderr.

    Returns:
      A line for each image that can't be used and for each class without images to train on; and
      the lines of a summary: the images of each class and split, images that are the same byte for
      byte, what in the folder is not used, the sizes, and a count of everything.

    Raises:
      FileNotFoundError, ValueError: as `FolderDataset`.
    """
    dataset = open_folder(folder)
    train, test = default_splits(dataset.splits)
    others = [name for name in dataset.splits if name != "train"]
    divided = [*dataset.splits] if own_test_split(dataset.splits) else [train, test, *others]
    everything = "+".join(divided)
    source = dataset.source(everything)
    names = [printable(name) for name in dataset.class_names]
    images = inspect_images(source, num_classes=len(names))
    problems = problems_of(images)
    empty = find_empty_classes(dataset, train if "train" in dataset.splits else everything)
    lines = [printable(problem) for problem in problems]
    lines += [f"class {printable(name)}: has no images to train on" for name in empty]
    counts = zip(*(dataset.count_images(split).values() for split in dataset.splits), strict=True)
    summary = [
        f"class {name}: "
        + ", ".join(f"{n} in {split}" for n, split in zip(row, dataset.splits, strict=True))
        for name, row in zip(names, counts, strict=True)
    ]
    if untested := find_empty_classes(dataset, test):
        summary.append(_untested(dataset, untested, test))
    if len(names) == 1:
        summary.append(f"There is only one class. {_DEEPER}")
    lengths = {name: len(dataset.source(name)) for name in divided}
    summary += describe_copies(dataset, find_copies(divide(images, lengths)))
    if isinstance(dataset, FolderDataset):
        summary += dataset.describe_labels()
    summary += dataset.describe_unused()
    if sizes := describe_sizes(images):
        summary.append(sizes)
    summary.append(
        f"{printable(dataset.folder)}: {len(source)} images in {len(names)} classes; "
        f"{len(problems)} images can't be used, {len(empty)} classes are empty"
    )
    return lines, summary
