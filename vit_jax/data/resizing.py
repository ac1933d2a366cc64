"""Resizing, and the crops of evaluation: from an image to what a model sees of it.

Images are uint8 RGB arrays (h, w, 3). Sizes are (height, width) in pixels. An exported model's
program has a copy of what is said here, see `inference.program`: that needs NumPy, OpenCV and
Pillow alone.

`EVAL_CROPS` are the crops that `config.data.eval_crop` chooses from, and `EVAL_RESIZES` the ways of
resizing that `config.data.eval_resize` chooses from. A further one is a function and a row here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

# ------------------------------------------------------------------- without antialiasing


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image resized to `size`, which may have another aspect ratio."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_window(
    image: np.ndarray, whole: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Returns a part of the image resized to `whole`.

    Where `whole` is much larger than `size`, it is never made: each pixel of the part is computed
    from the four around it, in the fixed-point numbers of OpenCV's resize, and has the same bits.

    Args:
      image: uint8 RGB (height, width, 3).
      whole: (h, w) that the image would be resized to.
      corner: (top, left) of the part, in `whole`.
      size: (h, w) of the part.
    """
    (top, left), (height, width) = corner, size
    if whole[0] * whole[1] <= 4 * height * width:
        return resize(image, whole)[top : top + height, left : left + width]
    neighbours, shares = [], []
    for first, count, new, old in zip(corner, size, whole, image.shape[:2], strict=True):
        at = ((np.arange(first, first + count) + 0.5) * (old / new) - 0.5).astype(np.float32)
        low = np.floor(at)
        neighbours.append([(low.astype(int) + i).clip(0, old - 1) for i in (0, 1)])
        shares.append(np.rint((at - low) * 2048).astype(np.int32))
    (above, below), (before, after) = neighbours
    down, right = shares[0][:, None, None], shares[1][:, None]
    upper, lower = (
        (image[rows[:, None], before] * (2048 - right) + image[rows[:, None], after] * right) >> 4
        for rows in (above, below)
    )
    part = (((2048 - down) * upper >> 16) + (down * lower >> 16) + 2) >> 2
    return part.astype(np.uint8)


# ----------------------------------------------------------------------- with antialiasing

FILTERS = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic_antialias": Image.Resampling.BICUBIC,
    "lanczos_antialias": Image.Resampling.LANCZOS,
    "box_antialias": Image.Resampling.BOX,
}
EVAL_RESIZES = ("bilinear", *FILTERS)  # the first doesn't antialias
_REACH = 3  # of the widest filter, Lanczos's, in pixels of the smaller image
_MOST_READ, _MOST_MADE = 2**15, 2**13  # pixels of a side, by a filter
_STRIP = 2**20  # pixels that Pillow copies at once


def antialiased_window(
    image: np.ndarray,
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    filter: Image.Resampling,
) -> np.ndarray:
    """Returns a part of the image resized to `whole` by Pillow, with antialiasing.

    It has the bits of Pillow's `resize` of the whole image, except for strips. A side of the image
    that has more than 32,768 pixels is averaged down to as many first. A side of `whole` that has
    more than 8,192 is never made: Pillow then rounds the filter's weights in another way, and most
    pixels that differ do so by 1. Memory follows `size` and the image's longer side.

    Args:
      image: uint8 RGB (height, width, 3).
      whole, corner, size: as for `resize_window`.
      filter: Pillow's.
    """
    rows, columns = map(_find_span, image.shape[:2], whole, corner, size)
    is_tall = image.shape[0] > 100 * image.shape[1] and whole[0] < image.shape[0]
    image = _average(_average(image[rows.read, columns.read], 0), 1)
    if not is_tall:  # the order is Pillow's, which rounds after each of the two
        image = _resize_columns(image, columns, filter)
    image = _resize_columns(image.swapaxes(0, 1), rows, filter).swapaxes(0, 1)
    if is_tall:
        image = _resize_columns(image, columns, filter)
    return np.ascontiguousarray(image)


class _Span(NamedTuple):
    """What is read of one side of an image, and what becomes of it.

    Attributes:
      read: the pixels that are read.
      box: where the resized pixels begin and end, as shares of these.
      new: the number of pixels that they are resized to.
      kept: those of them that are kept.
    """

    read: slice
    box: tuple[float, float]
    new: int
    kept: slice


def _find_span(old: int, new: int, first: int, count: int) -> _Span:
    """Returns how to make `count` pixels from `first` on of a side of `old` resized to `new`."""
    if new <= _MOST_MADE:
        return _Span(slice(0, old), (0.0, 1.0), new, slice(first, first + count))
    scale = old / new
    reach = math.ceil(_REACH * max(scale, 1)) + 1
    low = max(0, int(first * scale) - reach)
    high = min(old, math.ceil((first + count) * scale) + reach)
    start, end = ((x * scale - low) / (high - low) for x in (first, first + count))
    return _Span(slice(low, high), (start, end), count, slice(0, count))


def _average(image: np.ndarray, axis: int) -> np.ndarray:
    """Returns an image in which pixels along an axis are averaged until `_MOST_READ` are left."""
    side = image.shape[axis]
    if side <= _MOST_READ:
        return image
    step = math.ceil(side / _MOST_READ)
    lines = np.moveaxis(image, axis, 0)
    sums = np.zeros((math.ceil(side / step), *lines.shape[1:]), np.uint32)
    counts = np.zeros((len(sums), 1, 1), np.uint32)
    for first in range(step):
        part = lines[first::step]
        sums[: len(part)] += part
        counts[: len(part)] += 1
    return np.moveaxis(((sums + counts // 2) // counts).astype(np.uint8), 0, axis)


def _resize_columns(image: np.ndarray, span: _Span, filter: Image.Resampling) -> np.ndarray:
    """Returns an image whose width is resized; its rows stay, and are copied a few at a time."""
    height, width = image.shape[:2]
    resized = np.empty((height, span.kept.stop - span.kept.start, 3), np.uint8)
    left, right = (share * width for share in span.box)
    count = max(1, _STRIP // max(width, span.new))
    for top in range(0, height, count):
        strip = Image.fromarray(np.ascontiguousarray(image[top : top + count]))
        box = (left, 0, right, strip.height)
        strip = strip.resize((span.new, strip.height), filter, box=box)
        resized[top : top + count] = np.asarray(strip)[:, span.kept]
    return resized


# --------------------------------------------------------------------- crops in evaluation


def central_crop(
    image: np.ndarray,
    size: tuple[int, int],
    fraction: float,
    resizing: str = "bilinear",
    *,
    down: bool = False,
) -> np.ndarray:
    """Resizes the image until it just covers `size` / `fraction`, and returns its centre of `size`.

    The aspect ratio stays the same. With antialiasing, sizes are rounded as timm and torchvision
    do. If an odd number of pixels is cut off, these round half of it to an even number;
    transformers rounds it down, as `down=True` does.
    """
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width) / fraction
    whole = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if resizing != "bilinear":
        whole = _cover_as_timm(image.shape[:2], _divide(size, fraction))
    return _keep_centre(image, whole, size, resizing, down=down)


def _cover_as_timm(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Returns (h, w) of an image that is resized until it just covers `size`."""
    ratio = min(shape[0] / size[0], shape[1] / size[1])
    if size[0] == size[1]:
        height, width = (int(size[0] * side / min(shape)) for side in shape)
    else:
        height, width = (round(side / ratio) for side in shape)
    return height, width


def squash_and_central_crop(
    image: np.ndarray, size: tuple[int, int], fraction: float, resizing: str = "bilinear"
) -> np.ndarray:
    """Resizes the image to `size` / `fraction`, and returns its centre of `size`.

    The aspect ratio becomes that of `size`.
    """
    whole = round(size[0] / fraction), round(size[1] / fraction)
    if resizing != "bilinear":
        whole = _divide(size, fraction)
    return _keep_centre(image, whole, size, resizing)


def _divide(size: tuple[int, int], fraction: float) -> tuple[int, int]:
    """Returns `size` / `fraction` rounded down; 248 if the fraction is 224 / 248, whatever bits."""
    height, width = (math.floor(side / fraction + 1e-9) for side in size)
    return height, width


def _keep_centre(
    image: np.ndarray,
    whole: tuple[int, int],
    size: tuple[int, int],
    resizing: str,
    *,
    down: bool = False,
) -> np.ndarray:
    """Returns the centre, of `size`, of the image resized to `whole`; for `down` see above."""
    (top, left) = (new - side for new, side in zip(whole, size, strict=True))
    if resizing == "bilinear":
        return resize_window(image, whole, (top // 2, left // 2), size)
    corner = (top // 2, left // 2) if down else (round(top / 2), round(left / 2))
    return antialiased_window(image, whole, corner, size, FILTERS[resizing])


# From an image, the result's (h, w), a share and a name in `EVAL_RESIZES` to a part of the image,
# uint8 (h, w, 3), by the names that `config.data.eval_crop` takes.
EVAL_CROPS: dict[str, Callable[[np.ndarray, tuple[int, int], float, str], np.ndarray]] = {
    "central": central_crop,
    "central_down": lambda image, size, fraction, resizing: central_crop(
        image, size, fraction, resizing, down=True
    ),
    "squash": squash_and_central_crop,
    "whole": lambda image, size, fraction, resizing: _keep_centre(image, size, size, resizing),
}

# ------------------------------------------------------------------ decoding at a reduced scale


def find_factor(sides: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Returns the largest of 8, 4, 2 and 1 by which sides can be divided and still cover a target.

    Args:
      sides: (h, w) in pixels of an image or of a part of it.
      target: (h, w) in pixels.
    """
    return next(
        factor
        for factor in (8, 4, 2, 1)
        if factor == 1 or all(a // factor >= b for a, b in zip(sides, target, strict=True))
    )


def find_view_factor(
    shape: tuple[int, ...], size: tuple[int, int], crop: str, fraction: float
) -> int:
    """Returns what an image's sides can be divided by before the crop.

    Args:
      shape: (h, w) of the image, in pixels.
      size: (h, w) of the result.
      crop: a name of `config.data.eval_crop`, or "resize" of `config.data.crop`.
      fraction: side of the crop / side that the image is resized to; "whole" doesn't read it.
    """
    share = 1 if crop == "whole" else fraction
    return find_factor(shape, tuple(math.ceil(side / share) for side in size))
