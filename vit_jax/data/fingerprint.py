"""What tells the data of a run from other data: the names of its classes and of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, from_system
from vit_jax.data.dataset import Dataset, Source, classes_of
from vit_jax.data.folders import FolderDataset, FolderSource
from vit_jax.data.parquet import ParquetDataset
from vit_jax.data.splits import absolute_parts


class Fingerprint(NamedTuple):
    """What is stored of the data that a run reads.

    Attributes:
      class_names: the names of the classes, by label. () if the run reads no labels.
      splits: by "train" and "test" a dictionary: `split`, such as "train[:85%]"; `images`, their
        number; and `ids`, a hash of their sorted names. None if it is unknown.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Mapping[str, Any]] | None


def fingerprint(dataset: Dataset, *, labels: bool, **splits: tuple[str, Source]) -> Fingerprint:
    """Returns the fingerprint of what a run reads of a data set; no image is read.

    It is the same on every machine. The name of a folder's image is its path in the folder, with
    its labels if a labels.csv gives them. Images of other data sets have no names: these are told
    by the data set's name, with its version, or of Parquet files by the files' names and all
    labels, and by the numbers of the split's first and last example.

    Args:
      dataset: what `open_dataset` returns.
      labels: False if the run reads no labels.
      **splits: "train" and "test": a split and its examples, as `open_source` returns them.
    """
    found = {}
    for part, (split, source) in splits.items():
        ids = b"\0".join(sorted(_ids(dataset, split, source)))
        hashed = hashlib.blake2b(ids, digest_size=16).hexdigest()
        found[part] = {"split": split, "images": len(source), "ids": hashed}
    return Fingerprint(tuple(dataset.class_names) if labels else (), found)


def _ids(dataset: Dataset, split: str, source: Source) -> list[bytes]:
    """Returns names that tell the images of a split from others: one for each, or for all."""
    if isinstance(dataset, FolderDataset) and isinstance(source, FolderSource):
        start = len(str(dataset.folder / "x")) - 1
        names = []
        for path, label in source.files:
            labels = f"\t{classes_of(label)}" if dataset.has_labels_file else ""  # else in the path
            names.append(f"{from_system(str(path)[start:])}{labels}")
        return [name.encode("utf-8", "surrogateescape") for name in names]
    parts = absolute_parts(split, dataset.splits)
    name = dataset.content if isinstance(dataset, ParquetDataset) else dataset.name
    return [f"{name} {p.splitname} {p.from_} {p.to}".encode() for p in parts]


def find_differences(
    old: Fingerprint, new: Fingerprint, parts: Sequence[str] = ("train", "test")
) -> list[str]:
    """Returns how data differ from those of an earlier run: a sentence for each difference.

    Args:
      old: of the earlier run.
      new: of the data as they are now.
      parts: the splits that are compared.
    """
    found = []
    names, names_now = (tuple(map(class_name, x.class_names)) for x in (old, new))
    if names and names_now and names != names_now:
        found.append(_class_difference(names, names_now))
    if old.splits is None or new.splits is None:
        return found
    for part in parts:
        before, now = old.splits[part], new.splits[part]
        if before["ids"] == now["ids"]:
            continue
        if before["split"] != now["split"]:
            was, is_now = (f"{x['split']} ({x['images']} images)" for x in (before, now))
            found.append(f"the {part} split was {was}, is {is_now}")
        elif before["images"] != now["images"]:
            count = f"{before['images']} images, has {now['images']}"
            found.append(f"the {part} split, {now['split']}, had {count}")
        else:
            found.append(
                f"the {part} split, {now['split']}, has {now['images']} images as before, but some "
                f"are others, or have other names or labels"
            )
    return found


def _class_difference(old: Sequence[str], new: Sequence[str]) -> str:
    before, now = set(old), set(new)
    gone = [name for name in old if name not in now]
    added = [name for name in new if name not in before]
    texts = [f"gone: {first_few(gone)}"] if gone else []
    texts += [f"new: {first_few(added)}"] if added else []
    pairs = enumerate(zip(old, new, strict=False))
    texts += [f"label {i} was {a!r}, is {b!r}" for i, (a, b) in pairs if a != b][:1]
    return f"the classes changed ({'; '.join(texts)})"
