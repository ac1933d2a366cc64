"""A file of arrays with names of another code base, and how our parameters are read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.models import masked
from vit_jax.weights import layout
from vit_jax.weights.layout import Layout, Place, Shape

UNCHANGED = (0.5, 0.5, 0.5)  # mean and standard deviation that give [-1, 1], as our models take
CLASSES = "single_label_classification"  # one class an image: a softmax gives the probabilities
MULTI_LABEL = "multi_label_classification"  # a sigmoid gives the probability of each class
PROJECTION = "projection"  # into the space that images and texts share


class TensorFile(NamedTuple):
    """An opened file of arrays.

    Attributes:
      path: the file's path, for messages.
      shapes: shapes of its arrays, by their names in the file.
      read: returns the array of a name. It raises ValueError if the file is damaged.
      layouts: the ways in which its format names arrays.
      model: what the file says of its model: "variant", and attributes as `models.build` takes
        them. {} if it says nothing.
      image_size: (height, width) in pixels. None if the file does not say it.
      class_names: names of the classes, in the order of the logits. () if the file does not say
        them.
      problem_type: what the head answers, as Hugging Face names it: `CLASSES`, `MULTI_LABEL`, or
        another; or `PROJECTION`. None if the file does not say it.
      mean, std: what was subtracted from pixels in [0, 1], and what the difference was divided by,
        for red, green and blue. None if nothing says it.
      view: how images are resized and cut in evaluation: fields of `data.transforms.View`. {} if
        nothing says it.
      architecture: timm's name of the model. "" if it is not known.
      changes: what the reader did to the arrays, a sentence each.
    """

    path: str
    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    layouts: tuple[Layout, ...]
    model: Mapping[str, Any] = MappingProxyType({})
    image_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()
    problem_type: Any = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    view: Mapping[str, Any] = MappingProxyType({})
    architecture: str = ""
    changes: tuple[str, ...] = ()


def refused_head(file: TensorFile, num_classes: int) -> str:
    """Returns why a file's head can't be kept, "" if it tells classes or there is none."""
    problem_type = file.problem_type or ("regression" if num_classes == 1 else CLASSES)
    if num_classes == 0 or problem_type in (CLASSES, MULTI_LABEL):
        return ""
    reason = "it has a single output, as for regression or for yes and no"
    if file.problem_type == PROJECTION:
        reason = "it projects images into the space that they share with texts"
    elif file.problem_type:
        reason = f"the config.json beside it has problem_type={file.problem_type!r}"
    return (
        f"{file.path}: the head doesn't tell the classes of an image: {reason}. A softmax of what "
        f"it gives would be no probability. Leave the head out: num_classes=0 in vit_jax.load, "
        f"--num_classes=0 in `python -m vit_jax.convert`. Fine-tuning from it needs neither."
    )


class LazyArray:
    """A float32 array that is computed when NumPy asks for it, by `np.asarray`.

    Args:
      shape: its shape.
      compute: returns an array with as many numbers, in the same order.
    """

    def __init__(self, shape: Shape, compute: Callable[[], np.ndarray]):
        self.shape, self._compute = shape, compute

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self._compute(), np.float32)
        return np.asarray(array.reshape(self.shape), dtype)

    def reshaped(self, shape: Shape) -> LazyArray:
        """Returns the same numbers as an array of another shape."""
        return LazyArray(shape, self._compute)


def stored_array(file: TensorFile, place: Place) -> LazyArray:
    """Returns one of our parameters in a file; reading it raises ValueError if it is not finite."""

    def read() -> np.ndarray:
        array = file.read(place.theirs)
        if array.dtype.kind not in "fiu" and array.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"{file.path}: {place.theirs} holds {array.dtype}, not numbers.")
        if array.dtype.kind in "iu" and array.dtype.itemsize == 1:
            raise ValueError(
                f"{file.path}: {place.theirs} holds {array.dtype}: quantised weights, without the "
                f"factors that make numbers of them. Take weights that are not quantised."
            )
        array = np.asarray(place.unpack(array), np.float32)
        if not np.isfinite(array).all():
            bad = np.count_nonzero(~np.isfinite(array))
            raise ValueError(
                f"{file.path}: {bad} of the {array.size} values of {place.theirs} are NaN or "
                f"infinite; weights must be finite, so the file is damaged or its training failed."
            )
        return array

    return LazyArray(place.shape, read)


def file_arrays(
    checkpoint: Checkpoint, layouts: tuple[Layout, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the (name, float32 array) pairs of a file that stores a checkpoint's parameters.

    Args:
      checkpoint: parameters are read one by one.
      layouts: those of the format. The first one that has a place for every parameter is taken.

    Raises:
      ValueError: the format has no place for some parameters, which are named, or its readers would
        compute something else.
    """
    if checkpoint.config.model.positions_at == "shared":
        raise ValueError(
            f"{checkpoint.path} adds its positions before every block (positions_at='shared'), "
            f"which only Orbax can record: readers of other formats would add them once."
        )
    if extra := [name for name in masked.PARAMETERS if name in checkpoint.params]:
        raise ValueError(
            f"{checkpoint.path} comes from masked patch prediction, and no format but Orbax has a "
            f"place for its {' and '.join(extra)}: leave them out by num_classes=0."
        )
    params = flatten_dict(checkpoint.params, sep="/")
    for theirs, slot in layout.slots(layouts, params).items():
        yield theirs, slot.join(np.asarray(params[name], np.float32) for name in slot.ours)
