"""A file labels.csv beside images: it gives each of them several labels, or one, or none."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections import Counter
from collections.abc import Sequence

from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, printable
from vit_jax.data.dataset import ExampleError, Label
from vit_jax.data.folder_layout import Layout, sort_classes, split_of_name
from vit_jax.data.image_files import IMAGE_SUFFIXES, count_unused, list_images, subfolders
from vit_jax.data.reading import read_file

LABELS_FILE = "labels.csv"
_NOT_MEANT = f"If a {LABELS_FILE} isn't meant to give the labels, give it another name."
_Labels = dict[pathlib.Path, frozenset[str]]  # of images


def find_labels(root: pathlib.Path) -> Layout | None:
    """Returns the images that a folder's labels.csv names; None if there is no such file.

    The file has a line "file,label;label" for each image. The path is seen from the file's folder.
    A first line that names no image is a header. If every path begins with the folder of a split,
    such as train/, these are the splits; otherwise all images are the split "train". Instead, each
    folder of a split can have a labels.csv of its own. A label's name is what its text says,
    without spaces around it. If every image has one label, labels are numbers, not tuples.

    Raises:
      ValueError: a line can't be used, or names an image that isn't there or has another line; or
        it isn't clear which files give the labels. The message names line or files.
      FileNotFoundError: no image is named.
      ReadError: a folder or file can't be read.
    """
    splits = {path: name for path in subfolders(root) if (name := split_of_name(path.name))}
    files = [x / LABELS_FILE for x in (root, *splits) if os.path.lexists(x / LABELS_FILE)]
    if not files:
        return None
    if files[0].parent != root and len(files) < len(splits):
        lacking = [f"{x.name}/" for x in splits if x / LABELS_FILE not in files]
        raise ValueError(
            f"{printable(files[0])} gives the labels of its split, but {first_few(lacking)} beside "
            f"it has none: each split needs a {LABELS_FILE}. {_NOT_MEANT}"
        )
    if files[0].parent == root and len(files) > 1:
        raise ValueError(
            f"{printable(files[0])} and {printable(files[1])} may both give labels: leave one of "
            f"them. {_NOT_MEANT}"
        )
    labels = {path: names for file in files for path, names in _read(file).items()}
    if not labels:
        raise FileNotFoundError(f"{printable(files[0])} names no images. {_NOT_MEANT}")
    names = sort_classes({name for found in labels.values() for name in found})
    number = {name: i for i, name in enumerate(names)}
    has_splits = all(root / path.relative_to(root).parts[0] in splits for path in labels)
    multi_label = any(len(found) != 1 for found in labels.values())
    found: dict[str, list[tuple[pathlib.Path, Label]]] = {}
    for path, of_image in labels.items():
        split = splits[root / path.relative_to(root).parts[0]] if has_splits else "train"
        label = tuple(sorted(number[x] for x in of_image))
        found.setdefault(split, []).append((path, label if multi_label else label[0]))
    listed = list_images(root)
    left = sum(path not in labels for path in listed.images)
    unused = [f"{left} images that {LABELS_FILE} doesn't name"] if left else []
    other = listed.unused - Counter({".csv files": len(files)})
    return Layout(names, found, unused, count_unused(other), has_labels_file=True)


def _read(file: pathlib.Path) -> _Labels:
    """Returns the labels of each image that a labels.csv names, by the image's path."""
    try:
        text = read_file(file).decode("utf-8-sig")
        rows = [*csv.reader(io.StringIO(text, newline=""), strict=True)]
    except ExampleError as error:
        raise ValueError(f"{error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{printable(file)} isn't a CSV file in UTF-8: {error}.") from error
    found: _Labels = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and not _names_image(row[0])):
            continue
        try:
            path = file.parent / _relative_path(row)
            if path in found:
                raise ValueError(f"{row[0]} has another line before")
        except ValueError as error:
            where = f"{printable(file)}, line {number}"
            raise ValueError(f"{where}: {printable(error)}. {_NOT_MEANT}") from None
        found[path] = frozenset(class_name(x.strip()) for x in row[1].split(";") if x.strip())
    if missing := [x for x in found if x.is_dir() or not os.path.lexists(x)]:
        some = first_few(printable(path.relative_to(file.parent)) for path in missing)
        raise ValueError(
            f"{printable(file)} names {len(missing)} of {len(found)} images that aren't in its "
            f"folder: {some}. A path is seen from the folder of the file."
        )
    return found


def _names_image(name: str) -> bool:
    return os.path.splitext(name.strip())[1].lower() in IMAGE_SUFFIXES


def _relative_path(row: Sequence[str]) -> pathlib.PurePath:
    """Returns the path in a row "file,label;label"; raises ValueError if the row isn't one."""
    if len(row) != 2:
        raise ValueError(
            f"expected file,label;label and found {len(row)} cells: labels are separated by ; and "
            f"a cell with a comma in it is in quotes"
        )
    path = pathlib.PurePath(row[0].strip())
    if not _names_image(path.name):
        raise ValueError(f"{row[0]!r} is no image: files are named {', '.join(IMAGE_SUFFIXES)}")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{row[0]!r} is no path inside the folder of the file")
    return path
