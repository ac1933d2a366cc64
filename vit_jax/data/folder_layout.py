"""Which splits and classes a folder of images has, and what in it is not used."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vit_jax.common.messages import first_few
from vit_jax.common.names import check_distinct, class_of_folder, from_system, printable
from vit_jax.data.dataset import Label
from vit_jax.data.image_files import (
    IMAGE_SUFFIXES,
    ImageFiles,
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

    A folder that has the name of a split is one if it has folders with images. Otherwise it is a
    class, if its images lie in it directly and there are other classes beside it. Images in
    subfolders of a class are the class's.

    Raises:
      FileNotFoundError: there are no images, or none in folders of classes.
      ValueError: two folders are the same split, a folder may be a split or a class, or the names
        of two classes are written alike.
      ReadError: a folder can't be read.
    """
    children = subfolders(root)
    named = [path for path in children if path.name.lower() in _ALL_SPLITS]
    named.sort(key=lambda path: [*_ALL_SPLITS].index(path.name.lower()))
    inside = {path: {x: list_images(x) for x in subfolders(path)} for path in named}
    direct = {path: list_images(path, below=False) for path in (root, *named)}
    loose = {path: len(found.images) for path, found in direct.items()}
    filled = [path for path in named if any(found.images for found in inside[path].values())]
    others = {path: list_images(path) for path in children if path not in named}
    other_images = {path: len(found.images) for path, found in others.items() if found.images}
    if other_images and (doubtful := [path for path in filled if loose[path]]):
        raise ValueError(
            f"{printable(doubtful[0])} may be a split or a class: it holds images and folders of "
            f"images, beside {_names(other_images)}. If it is a class, give it another name. If it "
            f"is a split, move the images that lie in it directly into a folder of their class."
        )
    unused_images, unused = [], direct[root].unused
    if loose[root]:
        unused_images.append(f"{loose[root]} images that lie in no folder of a class")
    is_class = other_images and not filled and sum(loose[path] > 0 for path in named) <= 1
    if is_class or not named:
        others |= {path: list_images(path) for path in named}
        classes = [*others]
        files = {"train": _merge(others, unused)}
    else:
        _check_different(path for path in named if loose[path] or path in filled)
        unused_images += [
            f"{loose[path]} images that lie in {_names([path])} itself, in no folder of a class"
            for path in named
            if loose[path]
        ]
        unused_images += [
            f"{count} images in {_names([path])}, which is no split, but lies beside "
            f"{_names(named)}"
            for path, count in other_images.items()
        ]
        files, classes = {}, [path for inner in inside.values() for path in inner]
        for path in named:
            files[_ALL_SPLITS[path.name.lower()]] = _merge(inside[path], unused)
            unused += direct[path].unused
    check_distinct((from_system(path.name) for path in classes), f"folders in {printable(root)}")
    names = sorted({name for found in files.values() for name in found})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    with_images = {split: x for split, x in files.items() if any(x.values())}
    if not with_images:
        raise FileNotFoundError(_no_images(root, loose, unused))
    number = {name: label for label, name in enumerate(names)}
    labelled: dict[str, list[tuple[pathlib.Path, Label]]] = {
        split: [(path, number[name]) for name, paths in found.items() for path in paths]
        for split, found in with_images.items()
    }
    return Layout(tuple(names), labelled, unused_images, count_unused(unused))


def split_of_folder(folder: pathlib.Path) -> str | None:
    """Returns the split that a folder is by its name; None if it is none."""
    return _ALL_SPLITS.get(folder.name.lower())


def _merge(
    folders: Mapping[pathlib.Path, ImageFiles], unused: Counter[str]
) -> dict[str, list[pathlib.Path]]:
    """Returns the images of every class, and adds what isn't used to `unused`."""
    classes: dict[str, list[pathlib.Path]] = {}
    for path, found in sorted(folders.items()):
        classes.setdefault(class_of_folder(path), []).extend(found.images)
        unused += found.unused
    return classes


def _check_different(splits: Iterable[pathlib.Path]) -> None:
    """Raises ValueError if two folders are the same split."""
    found = sorted(splits)
    for row in _SPLITS:
        same = [path for path in found if path.name.lower() in row]
        if len(same) > 1:
            raise ValueError(
                f"{_names(same)} in {printable(same[0].parent)} are the same split: put their "
                f"images into one folder, or give one of them another name."
            )


def _no_images(root: pathlib.Path, loose: Mapping[pathlib.Path, int], unused: Counter[str]) -> str:
    for path, count in sorted(loose.items()):
        if count:
            return (
                f"{printable(path)} holds images itself ({count}), but no folders of them: each "
                f"class needs a folder there that has the class's name, <class>/*."
            )
    there = f" It holds {count_unused(unused)}." if unused else ""
    return (
        f"There are no images in {printable(root)}: expected {_EXPECTED} with files named "
        f"{', '.join(IMAGE_SUFFIXES)}.{there}"
    )


def _names(paths: Iterable[pathlib.Path]) -> str:
    return first_few(f"{path.name}/" for path in sorted(paths))
