"""Checks"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

import grain
from ml_collections import ConfigDict
from tqdm import tqdm

from vit_jax.data.pipeline import check_label, decode_example
from vit_jax.data.sources import Dataset, ExampleError, FolderDataset, Source
from vit_jax.data.splits import split_size

_LISTED = 20  # bad images, or classes without any, that an error names


def require_trainable(dataset: Dataset, split: str, *, batch_size: int, labels: bool) -> None:
    """Checks that a split has the images and classes that training needs; reads no image.

    Args:
      dataset: what `open_dataset` returns.
      split: to train on, such as "train[:85%]".
      batch_size: examples a step, over all processes.
      labels: False where the classes don't matter.

    Raises:
      ValueError: the split has fewer images than a batch, the data set has fewer than two classes,
        or a class has no images to train on (which is known of folders only); says which.
    """
    images = split_size(split, dataset.splits)
    if images < batch_size:
        raise ValueError(
            f"The split {split} has {images} images, fewer than batch_size={batch_size}: take a "
            f"smaller batch, or a larger split as data.train."
        )
    if not labels:
        return
    if len(dataset.class_names) < 2:
        raise ValueError(
            f"There is only one class, {', '.join(dataset.class_names)}, so there is nothing to "
            f"tell apart: a folder of images needs a subfolder for each of two or more classes."
        )
    if isinstance(dataset, FolderDataset) and (empty := dataset.empty_classes(split)):
        raise ValueError(
            f"{dataset.folder} has no images to train on ({split}) for {len(empty)} of its "
            f"{len(dataset.class_names)} classes: {_few(empty, ', ')}. Add images to their "
            f"folders, or remove these folders."
        )


def require_decodable(
    dataset: Dataset, splits: Iterable[str], options: ConfigDict, *, progress: bool = True
) -> None:
    """Decodes every image of some splits of a folder, so that a run doesn't stop at one later.

    Does nothing for tfds data, nor with `options.check=False` or `options.on_error="skip"`.

    Args:
      dataset: what `open_dataset` returns.
      splits: such as ("train", "test").
      options: `config.data`.
      progress: shows a progress bar on stderr.

    Raises:
      ValueError: images can't be read or decoded; lists them, and says what can be done.
    """
    checked = options.check and options.on_error == "stop"
    if not checked or not isinstance(dataset, FolderDataset):
        return
    source = dataset.source("+".join(splits))
    problems = find_undecodable(source, num_classes=len(dataset.class_names), progress=progress)
    if problems:
        listed = _few([f"- {problem}" for problem in problems], "\n")
        raise ValueError(
            f"{len(problems)} of {len(source)} images can't be used:\n{listed}\n"
            f"Remove or repair them (`python -m vit_jax.data check {dataset.folder}` lists all), "
            f"or skip them with --config.data.on_error=skip. With --config.data.check=false, a run "
            f"starts without looking, and stops at the first."
        )


def find_undecodable(
    source: Source, *, num_classes: int, threads: int | None = None, progress: bool = True
) -> list[ExampleError]:
    """Decodes every example, and returns what is wrong with each that can't be used, in order.

    Args:
      source: the examples.
      num_classes: labels must be below it.
      threads: that read and decode; None for one each CPU.
      progress: shows a progress bar on stderr.
    """

    def problem(number: int) -> tuple[ExampleError] | tuple[()]:
        try:
            _, example = decode_example(source, number)
            check_label(example, num_classes)
        except ExampleError as error:
            return (error,)
        return ()

    threads = threads or os.cpu_count() or 1
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    found = grain.MapDataset.range(len(source)).map(problem).to_iter_dataset(reading)
    bar = tqdm(
        found,
        total=len(source),
        desc="checking",
        unit=" images",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    return [error for errors in bar for error in errors]


def _few(items: Sequence[str], separator: str) -> str:
    """Joins the first items, and says how many more there are."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join([*items[:_LISTED], *more])


def report(folder: str) -> bool:
    """Prints what is wrong with a folder's images and classes; returns whether anything is."""
    dataset = FolderDataset(folder)
    everything = "+".join(dataset.splits)
    source = dataset.source(everything)
    problems = find_undecodable(source, num_classes=len(dataset.class_names))
    empty = dataset.empty_classes("train" if "train" in dataset.splits else everything)
    for problem in problems:
        print(problem)
    for name in empty:
        print(f"class {name}: has no images to train on")
    print(
        f"{dataset.folder}: {len(source)} images in {len(dataset.class_names)} classes; "
        f"{len(problems)} images can't be used, {len(empty)} classes are empty"
    )
    return bool(problems or empty)
