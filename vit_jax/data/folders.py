"""A folder of images as a data set: a subfolder for each class, or for each split of classes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from vit_jax.common.files import folders_beside
from vit_jax.common.messages import closest
from vit_jax.data.dataset import Example, ExampleError
from vit_jax.data.splits import absolute_parts

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
_FOLDER_SEED = 0  # of the order inside a folder, which decides what `train[:85%]` holds
T = TypeVar("T")


class FolderSource:
    """Examples that are files.

    Attributes:
      files: the path and the label of each.
    """

    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, label = self.files[index]
        try:
            return Example(path.read_bytes(), label, str(path))
        except OSError as error:
            raise ExampleError(str(path), f"can't be read: {error.strerror or error}") from error


class FolderDataset:
    """Images in `<class>/*`, which are one split, "train", or in `train|val|test/<class>/*`.

    The order inside a split is a fixed permutation. Every slice of it holds all classes in their
    proportions, so that `train[:85%]` and `train[85%:]` are a stratified partition.

    Attributes:
      folder: the path of the folder.
      class_names: names of the class folders in alphabetical order, of all splits together.
      splits: names of the splits, with their numbers of images.

    Raises:
      FileNotFoundError: there is no such folder, or it has no images.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            hint = closest(str(root), folders_beside(root))
            raise FileNotFoundError(
                f"There is no folder {str(folder)!r} to read images from{hint}."
            )
        split_folders = [root / name for name in SPLIT_FOLDERS if (root / name).is_dir()]
        classes = {d.name for s in split_folders or [root] for d in s.iterdir() if d.is_dir()}
        self.class_names = tuple(sorted(name for name in classes if not name.startswith(".")))
        self._files = {
            split.name if split_folders else "train": self._stratified(split)
            for split in split_folders or [root]
        }
        self.splits: Mapping[str, int] = {name: len(files) for name, files in self._files.items()}
        if not sum(self.splits.values()):
            loose = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir())
            if loose:
                raise FileNotFoundError(
                    f"{root} holds images itself ({loose}), but no folders of them: each class "
                    f"needs a folder there that has the class's name, <class>/*."
                )
            raise FileNotFoundError(
                f"There are no images in {root}: expected <class>/* or train|val|test/<class>/* "
                f"with files named {', '.join(IMAGE_SUFFIXES)}."
            )

    def _stratified(self, folder: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        """Returns the files and labels below a folder, with the classes mixed evenly."""
        return mix_classes(
            [
                sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
                for name in self.class_names
            ]
        )

    def source(self, split: str) -> FolderSource:
        """Returns the examples of a split such as "train[:85%]" or "train+val".

        Raises:
          ValueError: the syntax is wrong, or there is no such split.
        """
        parts = absolute_parts(split, self.splits)
        return FolderSource([x for p in parts for x in self._files[p.splitname][p.from_ : p.to]])


def mix_classes(classes: Sequence[Sequence[T]]) -> list[tuple[T, int]]:
    """Returns the members of some classes with their labels, in a fixed order that mixes classes.

    The members of a class are shuffled and spread evenly over [0, 1]; this sorts all classes. Every
    slice of the result holds all classes in their proportions.

    Args:
      classes: for each label the members of its class, in an order that is always the same.
    """
    rng = np.random.Generator(np.random.Philox(_FOLDER_SEED))
    ranked = []
    for label, members in enumerate(classes):
        order = enumerate(rng.permutation(len(members)))
        ranked += [((i + 0.5) / len(members), label, int(number)) for i, number in order]
    return [(classes[label][number], label) for _, label, number in sorted(ranked)]
