"""Which splits and classes a folder of images has, and what in it is not used."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vit_jax.common.messages import first_few
from vit_jax.common.names import check_distinct, class_name, from_system, printable
from vit_jax.data.dataset import Label
from vit_jax.data.image_files import (
    IMAGE_SUFFIXES,
    count_unused,
    list_images,
    subfolders,
)

# The split of a folder that has this name, in any case. Two names of a row are the same split.
_SPLITS = (
    {"train": "train", "training": "train"},
    {"val": "val", "valid": "valid", "validation": "validation"},
    {"test": "test", "testing": "test"},
)
_ALL_SPLITS = {name: split for row in _SPLITS for name, split in row.items()}
_NO_CLASS = "the only folder in it is no class of the training split"
_EXPECTED = "<class>/* or train|val|test/<class>/*"


class Layout(NamedTuple):
    """The images of a folder.

    Attributes:
      class_names: in order.
      files: {split: [(path, label)]}, of every split that has images. The labels of all are numbers
        of classes, or those of all are tuples of them, see `dataset.is_multi_label`.
      unused_images: the images of the folder that are not used, and why, a text each.
      other_files: what else there is, such as "3 .txt files"; "" if there is nothing.
      has_labels_file: True if the labels are those of a labels.csv.
    """

    class_names: tuple[str, ...]
    files: Mapping[str, list[tuple[pathlib.Path, Label]]]
    unused_images: list[str]
    other_files: str
    has_labels_file: bool = False


def find_layout(root: pathlib.Path) -> Layout:
    """Finds the splits and classes of a folder. No image is read.

    A folder that has the name of a split is one if it has folders with images. Otherwise `train` is
    a class, if its images lie in it directly and there are other classes beside it. Any other split
    whose images lie in it directly has no labels, and is not used. Nor is one whose images lie in a
    single folder that is no class of the training split. Images in subfolders of a class are the
    class's.

    Raises:
      FileNotFoundError: there are no images, or none in folders of classes.
      ValueError: two folders are the same split, a folder may be a split or a class, or the names
        of two classes are written alike.
      ReadError: a folder can't be read.
    """
    found = _list(root)
    named, others = [*found.splits], found.others
    filled = [name for name in named if any(found.splits[name].values())]
    loose = {name: len(images) for name, images in found.loose.items()}
    other_images = {name: len(images) for name, images in others.items() if images}
    if other_images and (doubtful := [name for name in filled if name in loose]):
        raise ValueError(
            f"{printable(root / doubtful[0])} may be a split or a class: it holds images and "
            f"folders of images, beside {_names(other_images)}. If it is a class, give it another "
            f"name. If it is a split, move the images that lie in it directly into a folder of "
            f"their class."
        )
    unused = [f"{loose[x]} images that lie in no folder of a class" for x in loose if x == _ROOT]
    bare = [name for name in named if name in loose and name not in filled]
    to_train_on = [name for name in bare if _ALL_SPLITS[name.lower()] == "train"]
    if not named or (other_images and not filled and not (to_train_on and len(bare) > 1)):
        unused += [_unlabelled(name, loose[name]) for name in bare if name not in to_train_on]
        classes = others | {name: found.loose[name] for name in to_train_on}
        return _number(root, {"train": classes}, found, unused)
    _check_different(root, {*bare, *filled})
    unused += [
        f"{loose[name]} images that lie in {_names([name])} itself, in no folder of a class"
        for name in filled
        if name in loose
    ]
    unused += [_unlabelled(name, loose[name]) for name in bare]
    with_labels = _drop_unlabelled(found.splits)
    unused += [
        _unlabelled(name, sum(map(len, found.splits[name].values())), _NO_CLASS)
        for name in filled
        if name not in with_labels
    ]
    unused += [
        f"{count} images in {_names([name])}, which is no split, but lies beside {_names(named)}"
        for name, count in other_images.items()
    ]
    splits = {_ALL_SPLITS[name.lower()]: folders for name, folders in with_labels.items()}
    return _number(root, splits, found, unused)


_Folders = dict[str, list[pathlib.Path]]  # the images by the names of folders
_ROOT = ""  # stands for the folder itself


class _Found(NamedTuple):
    """The images of a folder, by where they lie.

    Attributes:
      splits: {folder with the name of a split: {folder in it: its images}}.
      others: {any other folder: its images}.
      loose: {folder with the name of a split, or `_ROOT`: the images that lie in it directly}. Only
        those that have some.
      unused: {what else there is: how often}.
    """

    splits: dict[str, _Folders]
    others: _Folders
    loose: _Folders
    unused: Counter[str]


def _list(root: pathlib.Path) -> _Found:
    children = [path.name for path in subfolders(root)]
    named = [path for path in children if path.lower() in _ALL_SPLITS]
    named.sort(key=lambda name: [*_ALL_SPLITS].index(name.lower()))
    listed = list_images(root)
    found = _Found(
        {name: {path.name: [] for path in subfolders(root / name)} for name in named},
        {name: [] for name in children if name not in named},
        {},
        listed.unused,
    )
    for path in listed.images:
        first, *rest = path.parts[len(root.parts) :]
        if not rest:
            found.loose.setdefault(_ROOT, []).append(path)
        elif first not in found.splits:
            found.others.setdefault(first, []).append(path)
        elif len(rest) == 1:
            found.loose.setdefault(first, []).append(path)
        else:
            found.splits[first].setdefault(rest[0], []).append(path)
    return found


def _drop_unlabelled(splits: Mapping[str, _Folders]) -> dict[str, _Folders]:
    """Returns the splits without those whose single folder is no class of the training split."""
    found = {
        name: {_class_of(folder) for folder, images in folders.items() if images}
        for name, folders in splits.items()
    }
    train = next((x for name, x in found.items() if _ALL_SPLITS[name.lower()] == "train"), set())
    return {
        name: folders
        for name, folders in splits.items()
        if len(train) < 2 or len(found[name]) != 1 or found[name] <= train
    }


def _unlabelled(name: str, count: int, why: str = "they lie in no folder of a class") -> str:
    return f"{count} images in {name}/, a split without labels: {why}"


def _number(
    root: pathlib.Path,
    splits: Mapping[str, _Folders],
    found: _Found,
    unused_images: list[str],
) -> Layout:
    """Returns a layout, whose labels are the numbers of the classes in their order."""
    folders = (from_system(name) for split in splits.values() for name in split)
    check_distinct(folders, f"folders in {printable(root)}")
    names = sort_classes({_class_of(name) for split in splits.values() for name in split})
    if not any(images for split in splits.values() for images in split.values()):
        raise FileNotFoundError(_no_images(root, found))
    number = {name: label for label, name in enumerate(names)}
    files: dict[str, list[tuple[pathlib.Path, Label]]] = {
        split: [(path, number[_class_of(name)]) for name, x in folders.items() for path in x]
        for split, folders in splits.items()
        if any(folders.values())
    }
    return Layout(names, files, unused_images, count_unused(found.unused))


def _class_of(folder: str) -> str:
    return class_name(from_system(folder))


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of classes in alphabetical order, or, if all are numbers, in theirs."""
    found = sorted(names)
    return tuple(sorted(found, key=int) if all(x.isdecimal() for x in found) else found)


def split_of_name(name: str) -> str | None:
    """Returns the split that a folder or a file is by its name; None if it is none."""
    return _ALL_SPLITS.get(name.lower())


def _check_different(root: pathlib.Path, splits: Iterable[str]) -> None:
    """Raises ValueError if two folders are the same split."""
    for row in _SPLITS:
        same = [name for name in sorted(splits) if name.lower() in row]
        if len(same) > 1:
            raise ValueError(
                f"{_names(same)} in {printable(root)} are the same split: put their images into "
                f"one folder, or give one of them another name."
            )


def _no_images(root: pathlib.Path, found: _Found) -> str:
    for name, images in sorted(found.loose.items()):
        return (
            f"{printable(root / name)} holds images itself ({len(images)}), but no folders of "
            f"them: each class needs a folder there that has the class's name, <class>/*."
        )
    there = f" It holds {count_unused(found.unused)}." if found.unused else ""
    return (
        f"There are no images in {printable(root)}: expected {_EXPECTED} with files named "
        f"{', '.join(IMAGE_SUFFIXES)}.{there}"
    )


def _names(folders: Iterable[str]) -> str:
    return first_few(f"{name}/" for name in sorted(folders))
