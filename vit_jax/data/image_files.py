"""Which files of a folder are images: the same ones for training, `data check` and `predict`."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
from collections import Counter
from typing import NamedTuple

from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.data.dataset import ReadError
from vit_jax.data.reading import PERMANENT, retry

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff"),
)
# What other systems leave beside files, in small letters. Hidden files and folders are it, too.
_SYSTEM_FILES = {
    *("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"),
    *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
}
_LEFT_BY_SYSTEMS = "files that other systems leave (.DS_Store, Thumbs.db…)"

logger = logging.getLogger(__name__)


class ImageFiles(NamedTuple):
    """What a folder holds.

    Attributes:
      images: the paths of the images, in order.
      unused: {what else there is: how often}.
    """

    images: list[pathlib.Path]
    unused: Counter[str]


def is_system_file(name: str) -> bool:
    """Returns True for the name of a file or folder that is hidden or left by another system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def list_images(folder: pathlib.Path) -> ImageFiles:
    """Returns the images in a folder and below it, by their suffixes, which may be in any case.

    Links are followed after all else is read, and each folder is read once. So a link to a folder
    that is read already, or to one that holds `folder`, adds nothing, and links in a circle end. A
    link that leads nowhere counts as an image: it is reported when it is read. A warning names
    folders that may not be read.

    Raises:
      ReadError, MemoryError: a folder can't be read at the moment, see `reading.retry`.
    """
    images: list[pathlib.Path] = []
    unused: Counter[str] = Counter()
    unreadable = []
    top = pathlib.Path(os.path.realpath(folder))
    waiting, links, read = [folder], collections.deque[pathlib.Path](), set()
    while waiting or links:
        inside = waiting.pop() if waiting else links.popleft()
        real = os.path.realpath(inside)
        if real in read or real in map(str, top.parents):
            unused["links to a folder that is read already"] += 1
            continue
        read.add(real)
        try:
            entries = _entries(inside)
        except ReadError as error:
            if not error.permanent:
                raise
            unreadable.append(str(error))
            continue
        for entry, is_folder in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_system_file(entry.name):
                unused[_LEFT_BY_SYSTEMS] += 1
            elif is_folder:
                (links if entry.is_symlink() else waiting).append(inside / entry.name)
            elif suffix not in IMAGE_SUFFIXES:
                unused[f"{suffix} files" if suffix else "files without a suffix"] += 1
            elif _may_be_read(entry):
                images.append(inside / entry.name)
            else:
                unused["pipes, sockets and devices"] += 1
    if unreadable:
        unused["folders that can't be read"] += len(unreadable)
        logger.warning(
            "%d folders can't be read, so no image in them is used: %s",
            *(len(unreadable), first_few(unreadable, separator=" ")),
        )
    return ImageFiles(sorted(images), unused)


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in a folder, in order, without those that other systems leave.

    Raises:
      ReadError, MemoryError: the folder can't be read, see `reading.retry`.
    """
    found = _entries(folder)
    return [folder / x.name for x, is_folder in found if is_folder and not is_system_file(x.name)]


def count_unused(unused: Counter[str]) -> str:
    """Returns "3 .txt files, 1 .heic files", the most frequent first."""
    return first_few((f"{count} {what}" for what, count in unused.most_common()), most=10)


def _entries(folder: pathlib.Path) -> list[tuple[os.DirEntry[str], bool]]:
    """Returns what is in a folder, in the order of the names, and whether each is a folder."""

    def read() -> list[tuple[os.DirEntry[str], bool]]:
        with os.scandir(folder) as scan:
            found = [(entry, _is_folder(entry)) for entry in scan]
        return sorted(found, key=lambda pair: pair[0].name)

    return retry(read, printable(folder))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # of a link to itself, or to what may not be looked at
        if error.errno in PERMANENT:
            return False
        raise


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Returns False for what would block: a pipe, a socket, a device, or a link to one."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()
