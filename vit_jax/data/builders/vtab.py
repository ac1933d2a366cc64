"""VTAB-1k: 19 tasks of 1,000 training examples each (Zhai et al., arXiv 1910.04867).

Data sets, splits and labels are those of github.com/google-research/task_adaptation (data/*.py). If
tfds has no validation split, that code takes the validation examples from train, after 60, 80 or
90 % of it; here the numbers of the examples are written out, for the sizes that its tests state.
That code names versions of the data sets; here `prepare.open_builder` chooses them. By issue 18
of that repository, KITTI 3.2 has the same data as the 3.1 that it names, and Pets 4 has repaired a
few photos that were damaged in Pets 3.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from vit_jax.common.messages import closest

Record = Mapping[str, Any]
_PEDESTRIAN = 3  # KITTI's classes below: car, van, truck


class Labels(NamedTuple):
    """Classes that are computed from an example's features.

    Attributes:
      names: the names of the classes.
      of: takes an example as tfds's `as_data_source` yields it, where a `Sequence` is a list of
        values, and returns its class; a negative number if the example has no annotations.
    """

    names: tuple[str, ...]
    of: Callable[[Record], int]


class Task(NamedTuple):
    """A task of VTAB, a row of `TASKS`. Its splits are in the syntax of tfds.

    Attributes:
      group: "natural", "specialized" or "structured".
      dataset: the name of the data set in tfds, with its config.
      num_classes: number of classes.
      val200: the 200 validation examples.
      test: all test examples.
      label: the name of a feature with named classes, or `Labels`.
      image: takes the bytes of an encoded image, returns those of the image to use.
    """

    group: str
    dataset: str
    num_classes: int
    val200: str
    test: str
    label: str | Labels = "label"
    image: Callable[[bytes], bytes] = bytes

    @property
    def train800(self) -> str:
        """The 800 training examples."""
        return "train[:800]"

    @property
    def train800val200(self) -> str:
        """The 1,000 examples of the final training: `train800` and `val200`."""
        return f"{self.train800}+{self.val200}"


def _clevr_count(record: Record) -> int:
    """Returns the number of objects, 3 to 10, as a class 0 to 7."""
    return len(record["objects"]["size"]) - 3


def _clevr_distance(record: Record) -> int:
    """Returns the class of the nearest object's depth, or -1 if there are no annotations."""
    depths = [place[2] for place in record["objects"]["pixel_coords"]]  # in the scene's units
    return bisect.bisect_left((8, 8.5, 9, 9.5, 10), min(depths)) if depths else -1


def _kitti_distance(record: Record) -> int:
    """Returns the class of the nearest vehicle's depth; 3 if there is no vehicle."""
    types, places = record["objects"]["type"], record["objects"]["location"]  # metres
    vehicles = [xyz[2] for kind, xyz in zip(types, places, strict=True) if kind < _PEDESTRIAN]
    return bisect.bisect_left((8, 20), min(vehicles)) if vehicles else 3


def _sixteenths(feature: str, count: int) -> Labels:
    """Returns 16 classes, each of which joins neighbours of a feature's values 0 to count - 1."""
    return Labels(tuple(map(str, range(16))), lambda record: int(record[feature]) * 16 // count)


def _white(png: bytes) -> bytes:
    """Returns the PNG of an image of zeros and ones with 255 in the place of the ones."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        image.point(lambda value: 255 * value).save(file, "PNG", compress_level=1)
    return file.getvalue()


_COUNT = Labels(tuple(f"{n} objects" for n in range(3, 11)), _clevr_count)
_DEPTH = Labels(("to 8", "to 8.5", "to 9", "to 9.5", "to 10", "above 10"), _clevr_distance)
_METRES = Labels(("to 8 m", "to 20 m", "above 20 m", "no vehicle"), _kitti_distance)
_COLUMN, _ANGLE = _sixteenths("label_x_position", 32), _sixteenths("label_orientation", 40)
_VAL, _DSPR = "validation[:200]", ("train[589824:590024]", "train[663552:]")
_SNORB = ("test[:200]", "test[50%:]")
_RETINA = "diabetic_retinopathy_detection/btgraham-300"  # to be downloaded by hand, as resisc45
TASKS = {
    #                   group         tfds name      classes  val200               test    label
    "caltech101":  Task("natural",     "caltech101",        102, "train[2754:2954]",   "test"),
    "cifar100":    Task("natural",     "cifar100",          100, "train[45000:45200]", "test"),
    "dtd":         Task("natural",     "dtd",                47, _VAL,                 "test"),
    "flowers102":  Task("natural",     "oxford_flowers102", 102, _VAL,                 "test"),
    "pets":        Task("natural",     "oxford_iiit_pet",    37, "train[2944:3144]",   "test"),
    "sun397":      Task("natural",     "sun397/tfds",       397, _VAL,                 "test"),
    "svhn":        Task("natural",     "svhn_cropped",       10, "train[65931:66131]", "test"),
    "camelyon":    Task("specialized", "patch_camelyon",      2, _VAL,                 "test"),
    "eurosat":     Task("specialized", "eurosat/rgb", 10, "train[16200:16400]", "train[21600:]"),
    "resisc45":    Task("specialized", "resisc45",    45, "train[18900:19100]", "train[25200:]"),
    "retinopathy": Task("specialized", _RETINA,        5, _VAL,                 "test"),
    "clevr_count": Task("structured", "clevr",     8, "train[63000:63200]", "validation", _COUNT),
    "clevr_dist":  Task("structured", "clevr",     6, "train[63000:63200]", "validation", _DEPTH),
    "dmlab":       Task("structured", "dmlab",     6, _VAL,                 "test"),
    "kitti_dist":  Task("structured", "kitti",     4, _VAL,                 "test", _METRES),
    "dspr_loc":    Task("structured", "dsprites", 16, *_DSPR, _COLUMN, _white),
    "dspr_ori":    Task("structured", "dsprites", 16, *_DSPR, _ANGLE, _white),
    "snorb_azim":  Task("structured", "smallnorb", 18, *_SNORB, "label_azimuth"),
    "snorb_elev":  Task("structured", "smallnorb", 9, *_SNORB, "label_elevation"),
}  # fmt: skip


def task(name: str) -> Task:
    """Returns a row of `TASKS`.

    Raises:
      ValueError: there is no such task; the message lists all.
    """
    if name not in TASKS:
        raise ValueError(
            f"VTAB has no task {name!r}{closest(name, TASKS)}: take one of {', '.join(TASKS)}."
        )
    return TASKS[name]
