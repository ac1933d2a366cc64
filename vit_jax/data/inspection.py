"""What is found by reading all images of a data set: damage, sizes, and copies of the same file."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import grain

from vit_jax.common.bars import progress_bar
from vit_jax.common.names import printable
from vit_jax.data.dataset import Dataset, ExampleError, Label, Source
from vit_jax.data.pipeline import check_label, decode_example
from vit_jax.data.read_ahead import read_all


class Inspected(NamedTuple):
    """What was found of one image.

    Attributes:
      id: the example's id.
      problem: why it can't be used; None if it can.
      label: its label; the other attributes, too, are only those of an image that can be used.
      width, height: in pixels.
      num_bytes: of the encoded image.
      digest: a hash of these bytes: two images with the same one are copies.
    """

    id: str
    problem: ExampleError | None = None
    label: Label = ()
    width: int = 0
    height: int = 0
    num_bytes: int = 0
    digest: bytes = b""


def inspect_images(
    source: Source, *, num_classes: int, threads: int | None = None, progress: bool = True
) -> list[Inspected]:
    """Reads and decodes every example, and returns what is found, in order.

    Args:
      source: the examples.
      num_classes: every label must be below it.
      threads: number of threads that read and decode. None for one on each CPU.
      progress: True to show a progress bar on stderr.
    """

    def inspect(index: int) -> Inspected:
        try:
            image, example = decode_example(source, index)
            check_label(example, num_classes)
        except ExampleError as error:
            return Inspected(error.id, error)
        height, width, _ = image.shape
        data = example.image if isinstance(example.image, bytes) else example.image.tobytes()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return Inspected(example.id, None, example.label, width, height, len(data), digest)

    found = read_all(grain.MapDataset.range(len(source)).map(inspect), threads)
    bar = progress_bar(found, total=len(source), desc="checking", unit=" images", active=progress)
    return list(bar)


def problems_of(images: Iterable[Inspected]) -> list[ExampleError]:
    """Returns why images can't be used, in order."""
    return [image.problem for image in images if image.problem]


def describe_sizes(images: Iterable[Inspected]) -> str:
    """Returns the sizes of the images that can be used, in one line; "" if none can.

    The smallest, the largest and the median are those by their number of pixels.
    """
    found = sorted(
        (x for x in images if not x.problem), key=lambda x: (x.width * x.height, x.width)
    )
    if not found:
        return ""
    small, median, large = (
        f"{x.width} x {x.height}" for x in (found[0], found[len(found) // 2], found[-1])
    )
    size = sum(x.num_bytes for x in found) / 1e6
    sizes = small if small == large else f"{small} to {large}, median {median}"
    return f"sizes (width x height): {sizes} pixels; {size:.3g} MB in files"


Leak = tuple[tuple[str, Inspected], tuple[str, Inspected]]  # two images, with their splits


class Copies(NamedTuple):
    """Images whose encoded bytes are the same.

    Attributes:
      leaks: for each image that has a copy in a split before its own: this copy, and the image.
      relabelled: for each image that has a copy in its own split with another label: this copy, and
        the image.
      others: how many images of a split are copies of earlier ones in it.
    """

    leaks: list[Leak]
    relabelled: list[tuple[Inspected, Inspected]]
    others: int


def find_copies(splits: Mapping[str, Sequence[Inspected]]) -> Copies:
    """Finds the images that are byte by byte the same as others.

    An example that is itself in several of the splits counts for the first of them.

    Args:
      splits: {name of a split: what was found of its images}.
    """
    count = Counter(x.digest for images in splits.values() for x in images if x.digest)
    groups: dict[bytes, dict[str, tuple[str, Inspected]]] = {}
    for split, images in splits.items():
        for image in images:
            if count[image.digest] > 1:
                groups.setdefault(image.digest, {}).setdefault(image.id, (split, image))
    leaks, relabelled, others = [], [], 0
    for group in groups.values():
        seen: dict[str, Inspected] = {}
        for split, image in group.values():
            if split in seen:
                others += 1
                if seen[split].label != image.label:
                    relabelled.append((seen[split], image))
            elif seen:
                leaks.append((next(iter(seen.items())), (split, image)))
            seen.setdefault(split, image)
    return Copies(leaks, relabelled, others)


def divide(
    images: Sequence[Inspected], lengths: Mapping[str, int]
) -> dict[str, Sequence[Inspected]]:
    """Returns the images of each split, of which one comes after another."""
    ends = itertools.accumulate(lengths.values())
    return {
        name: images[end - length : end]
        for (name, length), end in zip(lengths.items(), ends, strict=True)
    }


def describe_leaks(dataset: Dataset, leaks: Iterable[Leak]) -> list[str]:
    """Returns a text for each of `Copies.leaks`: both images, and their splits."""
    return [
        f"{_in_folder(dataset, b)} ({split_b}) = {_in_folder(dataset, a)} ({split_a})"
        for (split_a, a), (split_b, b) in leaks
    ]


def _in_folder(dataset: Dataset, image: Inspected) -> str:
    """Returns an image's id, of a folder its path there."""
    return image.id.removeprefix(f"{printable(dataset.name)}{os.sep}")


def describe_copies(dataset: Dataset, copies: Copies) -> list[str]:
    """Returns a line for each image with a copy in another split or class, and one for the rest."""
    lines = [
        f"in two splits, byte for byte the same: {line}"
        for line in describe_leaks(dataset, copies.leaks)
    ]
    lines += [
        f"with two labels, byte for byte the same: {_in_folder(dataset, b)} = "
        f"{_in_folder(dataset, a)}"
        for a, b in copies.relabelled
    ]
    if copies.others:
        lines.append(f"{copies.others} images have a copy, byte for byte, in their own split")
    return lines
