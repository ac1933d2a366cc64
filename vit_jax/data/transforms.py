"""Operations on one image, on the host: crop, resize and flip.

Images are uint8 RGB arrays (h, w, 3). Sizes are (height, width) in pixels. Every random operation
takes the `numpy.random.Generator` that it draws from. In training, resizing is bilinear without
antialiasing: the published models were trained on images resized in that way.

`TRAIN_CROPS` are the crops that `config.data.crop` chooses from. A further crop is a function and a
row here. Those of evaluation are in `data.resizing`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.decoding import decode, read_header
from vit_jax.data.jpeg_rows import keep_rows
from vit_jax.data.pixels import WHITE
from vit_jax.data.resizing import (
    EVAL_CROPS,
    EVAL_RESIZES,
    find_factor,
    find_view_factor,
    resize,
    resize_window,
)

# ----------------------------------------------------------------------------- crops in training


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image mirrored left to right, with probability one half."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def inception_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
) -> tuple[int, int, int, int]:
    """Returns a random rectangle of an image, (top, left, height, width) in pixels.

    It is Inception's crop (Szegedy et al., arXiv 1409.4842, section 6) as the published models were
    trained with it: TensorFlow's `sample_distorted_bounding_box`. The aspect ratio is drawn, then
    the height, both uniformly. So the density of the area A falls as 1 / sqrt(A). If a hundred
    draws in a row don't fit, the rectangle is the whole image.

    Args:
      height, width: of the image, in pixels.
      rng: where all is drawn from.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height.
    """
    least, most = (share * height * width for share in area)
    for _ in range(100):
        ratio = rng.uniform(*aspect)
        lowest, highest = (round(math.sqrt(x / ratio)) for x in (least, most))
        highest = min(highest, height, int((width + 0.5) / ratio))
        drawn = int(rng.integers(min(lowest, highest), highest + 1))
        for h in (drawn, drawn + 1, drawn - 1):  # rounding may leave the bounds by a pixel
            w = round(h * ratio)
            if least <= w * h <= most and 0 < w <= width and 0 < h <= height:
                return _at_random_place(height, width, h, w, rng)
    return 0, 0, height, width


def torchvision_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Returns a random rectangle of an image as torchvision's `RandomResizedCrop` draws it.

    The area is drawn uniformly, and so is the logarithm of the aspect ratio: rectangles are larger
    than those of `inception_window`, whose arguments and result it has. If ten draws in a row don't
    fit, the rectangle is the whole image.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _at_random_place(height, width, h, w, rng)
    return 0, 0, height, width


def _at_random_place(
    height: int, width: int, h: int, w: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Returns a rectangle of (h, w) pixels at a random place of an image of (height, width)."""
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def _cut(
    draw: Callable[..., tuple[int, int, int, int]],
    image: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    options: ConfigDict,
) -> np.ndarray:
    """Returns a random rectangle of an image, resized to (h, w)."""
    top, left, h, w = draw(*image.shape[:2], rng, area=(options.crop_area, 1.0))
    return resize(image[top : top + h, left : left + w], size)


def _resize_reduced(
    image: np.ndarray, factor: int, window: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Returns a rectangle of an image, resized to (h, w) bilinearly without antialiasing.

    Args:
      image: decoded at 1 / `factor` of its sides.
      factor: above 1.
      window: (top, left, height, width) of the rectangle, in pixels before that. Its borders may
        lie between those of pixels now.
      size: (h, w).
    """
    corner, sides = np.divide(window[:2], factor), np.divide(window[2:], factor)
    first, end = np.floor(corner).astype(int), np.ceil(corner + sides).astype(int)
    scale = sides / size
    shift = corner - first + scale / 2 - 0.5  # of the centre of the first pixel
    matrix = np.array([[scale[1], 0, shift[1]], [0, scale[0], shift[0]]])
    return cv2.warpAffine(
        image[first[0] : end[0], first[1] : end[1]],
        matrix,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def resize_and_random_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator, fraction: float
) -> np.ndarray:
    """Resizes the image to `size` / `fraction`, and returns a part of `size` at a random place."""
    height, width = (round(side / fraction) for side in size)
    top, left = rng.integers(height - size[0] + 1), rng.integers(width - size[1] + 1)
    return resize_window(image, (height, width), (int(top), int(left)), size)


# From (height, width) of an image, a random generator and `area` to a rectangle of it.
WINDOWS: dict[str, Callable[..., tuple[int, int, int, int]]] = {
    "inception": inception_window,
    "torchvision": torchvision_window,
}
# From an image, the result's (h, w), a random generator and `config.data` to a part of the image,
# uint8 (h, w, 3), by the names that `config.data.crop` takes.
TRAIN_CROPS: dict[
    str, Callable[[np.ndarray, tuple[int, int], np.random.Generator, ConfigDict], np.ndarray]
] = {
    **{name: functools.partial(_cut, draw) for name, draw in WINDOWS.items()},
    "resize": lambda image, size, rng, options: resize_and_random_crop(
        image, size, rng, view_of(options).crop_fraction
    ),
}


def training_view(
    image: bytes | np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    options: ConfigDict,
) -> np.ndarray:
    """Returns a random part of an image, as `config.data.crop` says, resized: uint8 (h, w, 3).

    With `config.data.decode="scaled"`, the part of a JPEG file is drawn before the file is decoded,
    at the smallest scale at which the part still covers `size`. It is the part that would be drawn
    of the whole image.

    Args:
      image: encoded, or uint8 RGB (height, width, 3).
      size: (h, w) of the result.
      rng: where all is drawn from.
      options: `config.data`; see `view_of` and `NEW_RUN`.

    Raises:
      ValueError, MemoryError: see `decode`.
    """
    view = view_of(options, NEW_RUN)
    crop = TRAIN_CROPS[options.crop]
    if isinstance(image, np.ndarray):
        return crop(image, size, rng, options)
    header = read_header(image) if view.decode == "scaled" else None
    if header is not None and options.crop in WINDOWS:
        window = WINDOWS[options.crop](*header[:2], rng, area=(options.crop_area, 1.0))
        factor = find_factor(window[2:], size)
        if factor > 1:
            decoded = decode(image, view.background, factor=factor)
            top, left = np.add(window[:2], header.before(factor))
            return _resize_reduced(decoded, factor, (top, left, *window[2:]), size)
        top, left, h, w = window
        if header.orientation == 1:
            image, first = keep_rows(image, top, top + h)
            top -= first
        decoded = decode(image, view.background)
        return resize(decoded[top : top + h, left : left + w], size)
    factor = 1
    if header is not None and options.crop == "resize":
        factor = find_view_factor(header[:2], size, options.crop, view.crop_fraction)
    return crop(decode(image, view.background, factor=factor), size, rng, options)


# ----------------------------------------------------------------------------- view in evaluation


DECODES = ("whole", "scaled")


class View(NamedTuple):
    """What a model sees of an image in evaluation: the keys of `config.data` that say it.

    The defaults hold where nothing says something else.

    Attributes:
      eval_crop: a row of `EVAL_CROPS`.
      crop_fraction: side of the crop / side that the image is resized to.
      eval_resize: a name in `EVAL_RESIZES`.
      decode: "scaled" decodes JPEG files at the smallest scale that still covers what they are
        resized to, "whole" doesn't.
      background: RGB that transparent pixels are laid over, each in 0…255.
    """

    eval_crop: str = "central"
    crop_fraction: float = 0.875
    eval_resize: str = "bilinear"
    decode: str = "whole"
    background: tuple[int, int, int] = WHITE

    def __str__(self) -> str:
        unread = {"crop_fraction"} if self.eval_crop == "whole" else set()
        # Of these, the default goes without saying.
        defaults = {"decode": "whole", "background": WHITE}
        unread |= {key for key, value in defaults.items() if getattr(self, key) == value}
        return ", ".join(f"data.{k}={x!r}" for k, x in self._asdict().items() if k not in unread)


NEW_RUN = {"decode": "scaled"}  # what a run that begins takes where its configuration says nothing


def view_of(*options: Mapping[str, Any] | ConfigDict) -> View:
    """Returns the view that sections of configurations ask for; the first that sets a key decides.

    Args:
      *options: each is a `config.data` or some keys of it. None sets nothing, as a missing key.

    Raises:
      ValueError: a value is unknown, as in a damaged file of weights.
    """
    found: dict[str, Any] = {}
    for section in options:
        values = {key: section.get(key) for key in View._fields if key not in found}
        found |= {key: value for key, value in values.items() if value is not None}
    if isinstance(found.get("background"), list):  # as JSON has it
        found["background"] = tuple(found["background"])
    view = View(**found)
    is_share = isinstance(view.crop_fraction, int | float) and 0 < view.crop_fraction <= 1
    known = view.eval_crop in EVAL_CROPS and view.eval_resize in EVAL_RESIZES
    if not (known and view.decode in DECODES and is_share and is_colour(view.background)):
        raise ValueError(
            f"{view}: images can't be shown in this way. data.eval_crop must be one of "
            f"{', '.join(EVAL_CROPS)}; data.crop_fraction in (0, 1]; data.eval_resize one of "
            f"{', '.join(EVAL_RESIZES)}; data.decode {' or '.join(DECODES)}; data.background three "
            f"whole numbers in 0…255."
        )
    return view


def is_colour(value: Any) -> bool:
    """Returns True for three whole numbers in 0…255."""
    return isinstance(value, tuple) and len(value) == 3 and all(x in range(256) for x in value)


def evaluation_view(
    image: bytes | np.ndarray, size: tuple[int, int], options: Mapping[str, Any] | ConfigDict
) -> np.ndarray:
    """Returns what a model sees of an image in evaluation, uint8 (h, w, 3).

    Args:
      image: encoded, or uint8 RGB (height, width, 3).
      size: (h, w) of the result.
      options: `config.data`, see `view_of`.

    Raises:
      ValueError, MemoryError: see `decode`.
    """
    view = view_of(options)
    if not isinstance(image, np.ndarray):
        header = read_header(image) if view.decode == "scaled" else None
        factor = 1
        if header is not None:
            factor = find_view_factor(header[:2], size, view.eval_crop, view.crop_fraction)
        image = decode(image, view.background, factor=factor)
    return EVAL_CROPS[view.eval_crop](image, size, view.crop_fraction, view.eval_resize)
