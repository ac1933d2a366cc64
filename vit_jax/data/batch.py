"""The layout of a batch: the names, shapes and dtypes of its arrays."""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


def layout(
    batch_size: int, image_shape: tuple[int, int], *, label_shape: tuple[int, ...] = ()
) -> Layout:
    """Returns the shape and dtype of every array of a batch, by name.

    Args:
      batch_size: number of examples, b.
      image_shape: height and width of the images in pixels, (h, w).
      label_shape: (c,), the number of classes, if an image may have several labels.

    Returns:
      `image`: uint8 (b, h, w, 3), RGB. The device scales it to [-1, 1].
      `label`: int32 (b,), the class, counted from 0. Or bool (b, c), True for every class of the
        image.
      `mask`: bool (b,). False if the entry is no example, but fills up the batch of an evaluation.
    """
    return {
        "image": ((batch_size, *image_shape, 3), np.dtype(np.uint8)),
        "label": ((batch_size, *label_shape), np.dtype(np.bool_ if label_shape else np.int32)),
        "mask": ((batch_size,), np.dtype(np.bool_)),
    }


def empty_batch(
    batch_size: int, image_shape: tuple[int, int], *, label_shape: tuple[int, ...] = ()
) -> Batch:
    """Returns a batch without examples: black images, label 0, and False in the mask.

    Arguments: see `layout`.
    """
    arrays = layout(batch_size, image_shape, label_shape=label_shape).items()
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in arrays}
