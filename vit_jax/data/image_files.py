"""Which files of a folder are images: the same ones for training, `data check` and `predict`."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from typing import NamedTuple

from vit_jax.common.messages import first_few

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff"),
)
# What other systems leave beside files, in small letters. Hidden files and folders are it, too.
_COMPANIONS = {
    *("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"),
    *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}
_COMPANION_FILES = "files that other systems leave (.DS_Store, Thumbs.db…)"


class ImageFiles(NamedTuple):
    """What a folder holds.

    Attributes:
      images: the paths of the images, in order.
      unused: {what else there is: how often}.
    """

    images: list[pathlib.Path]
    unused: Counter[str]


def is_companion(name: str) -> bool:
    """Returns True for the name of a file or folder that is hidden or left by another system."""
    return name.startswith(".") or name.lower() in _COMPANIONS


def list_images(folder: pathlib.Path, *, below: bool = True) -> ImageFiles:
    """Returns the images in a folder, by their suffixes, which may be in any case.

    Links are followed, and a folder that several links lead to is read once, so that links in a
    circle end. A link that leads nowhere counts as an image: it is reported when it is read.

    Args:
      folder: a path.
      below: False to leave out its subfolders.
    """
    images: list[pathlib.Path] = []
    unused: Counter[str] = Counter()
    waiting, read = [folder], set()
    while waiting:
        inside = waiting.pop()
        real = os.path.realpath(inside)
        if real in read:
            unused["links to a folder that is read already"] += 1
            continue
        read.add(real)
        try:
            with os.scandir(inside) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            unused[f"folders that can't be read ({error.strerror})"] += 1
            continue
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_companion(entry.name):
                unused[_COMPANION_FILES] += 1
            elif _is_folder(entry):
                waiting += [inside / entry.name] * below
            elif suffix not in IMAGE_SUFFIXES:
                unused[f"{suffix} files" if suffix else "files without a suffix"] += 1
            elif _may_be_read(entry):
                images.append(inside / entry.name)
            else:
                unused["pipes, sockets and devices"] += 1
    return ImageFiles(sorted(images), unused)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder, in order, without those that other systems leave."""
    with os.scandir(folder) as scan:
        names = [x.name for x in scan if _is_folder(x) and not is_companion(x.name)]
    return [folder / name for name in sorted(names)]


def count_unused(unused: Counter[str]) -> str:
    """Returns "3 .txt files, 1 .heic files", the most frequent first."""
    return first_few((f"{count} {what}" for what, count in unused.most_common()), most=10)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises an error for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Returns False for what would block: a pipe, a socket, a device, or a link to one."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()
