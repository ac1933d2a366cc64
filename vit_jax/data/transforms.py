"""Operations on one image, on the host: decode, resize, crop and flip.

Images are uint8 RGB arrays (h, w, 3). Sizes are (height, width) in pixels. Every random operation
takes the `numpy.random.Generator` that it draws from. In training, resizing is bilinear without
antialiasing: the published models were trained on images resized in that way.

`TRAIN_CROPS` are the crops that `config.data.crop` chooses from. A further crop is a function and a
row here. Those of evaluation are in `data.resizing`.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from ml_collections import ConfigDict
from PIL import Image, UnidentifiedImageError

from vit_jax.data.pixels import from_pillow
from vit_jax.data.resizing import EVAL_CROPS, EVAL_RESIZES, resize, resize_window

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run another program
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens no larger image
# Pillow loads decoders at their first use. It takes one that doesn't fit into memory for missing,
# and then refuses its files for good. At this point there is memory.
Image.init()
# Pillow warns of odd metadata and of large images, at each of them. What can't be decoded raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


# ------------------------------------------------------------------------------------- decoding


def decode(data: bytes) -> np.ndarray:
    """Returns an encoded image as uint8 RGB (h, w, 3), upright.

    libjpeg-turbo decodes JPEG files, by its accurate DCT, and OpenCV decodes WebP files, in less
    than half of the memory that Pillow takes. Pillow decodes the other formats, and those files
    that have EXIF metadata, which may ask for a rotation, or CMYK colours, or several frames.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

    Raises:
      ValueError: the bytes are not a whole image of one of these formats; or the image has more
        than 179 million pixels, where Pillow suspects a decompression bomb; or see `from_pillow`.
      MemoryError: there is too little memory.
    """
    pixels, plain_webp = _webp_header(data)
    try:
        if _plain_jpeg(data):
            try:
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError as error:  # if it is damaged, Pillow explains it
                if str(error).startswith("Insufficient memory"):
                    raise MemoryError("too little memory to decode an image") from error
        if plain_webp and pixels <= _MAX_PIXELS and len(data) >= 32:  # of less, OpenCV complains
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is not None:  # else Pillow explains it
                if image.shape[2] == 3:
                    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
                return from_pillow(Image.fromarray(image))
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            return from_pillow(opened)
    except Exception as error:  # damaged files make decoders raise errors of many kinds
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # the machine's fault, not the file's
        if str(error).startswith(("out of memory", "decoder error -9")):  # OSErrors of Pillow
            raise MemoryError("too little memory to decode an image") from error
        # Decoders may take a lack of memory for damage. None was measured to take more than this.
        np.empty(20 * min(pixels, _MAX_PIXELS), np.uint8)
        message = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError | KeyError):  # KeyError: a TIFF's compression
            message = f"expected {', '.join(FORMATS)}"
            if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                message = (
                    "a TIFF of a kind that can't be read: save it with 8 or 16 bits, or as PNG"
                )
        raise ValueError(f"not a readable image: {message}") from error


def _webp_header(data: bytes) -> tuple[int, bool]:
    """Returns how many pixels a WebP file says it has, and if it is a still image without EXIF.

    (0, False) for other files. Its first chunk tells both (RFC 9649, 2.5 to 2.7).
    """

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    match data[:4] + data[8:16]:
        case b"RIFFWEBPVP8X":
            return (number(24, 27) + 1) * (number(27, 30) + 1), not number(20, 21) & 0b1010
        case b"RIFFWEBPVP8L":
            return (number(21, 23) % 2**14 + 1) * ((number(21, 25) >> 14) % 2**14 + 1), True
        case b"RIFFWEBPVP8 ":
            return (number(26, 28) % 2**14) * (number(28, 30) % 2**14), True
    return 0, False


def _plain_jpeg(data: bytes) -> bool:
    """Returns True for a JPEG without EXIF metadata and with no more pixels than Pillow opens.

    Reads the segments before the image's data: each has a marker and a length (ITU-T T.81, B.1).
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
            continue
        if marker == 0xDA:  # the image's data begin
            break
        if marker == 0xE1 and data[at + 4 : at + 9] == b"Exif\x00":
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return height * width <= _MAX_PIXELS


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


def resize_and_random_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator, fraction: float
) -> np.ndarray:
    """Resizes the image to `size` / `fraction`, and returns a part of `size` at a random place."""
    height, width = (round(side / fraction) for side in size)
    top, left = rng.integers(height - size[0] + 1), rng.integers(width - size[1] + 1)
    return resize_window(image, (height, width), (int(top), int(left)), size)


# From an image, the result's (h, w), a random generator and `config.data` to a part of the image,
# uint8 (h, w, 3), by the names that `config.data.crop` takes.
TRAIN_CROPS: dict[
    str, Callable[[np.ndarray, tuple[int, int], np.random.Generator, ConfigDict], np.ndarray]
] = {
    "inception": functools.partial(_cut, inception_window),
    "torchvision": functools.partial(_cut, torchvision_window),
    "resize": lambda image, size, rng, options: resize_and_random_crop(
        image, size, rng, view_of(options).crop_fraction
    ),
}


# ----------------------------------------------------------------------------- view in evaluation


class View(NamedTuple):
    """What a model sees of an image in evaluation: the keys of `config.data` that say it.

    The defaults hold where nothing says something else.

    Attributes:
      eval_crop: a row of `EVAL_CROPS`.
      crop_fraction: side of the crop / side that the image is resized to.
      eval_resize: a name in `EVAL_RESIZES`.
    """

    eval_crop: str = "central"
    crop_fraction: float = 0.875
    eval_resize: str = "bilinear"

    def __str__(self) -> str:
        keys = [key for key in self._fields if (self.eval_crop, key) != ("whole", "crop_fraction")]
        return ", ".join(f"data.{key}={getattr(self, key)!r}" for key in keys)


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
    view = View(**found)
    is_share = isinstance(view.crop_fraction, int | float) and 0 < view.crop_fraction <= 1
    if view.eval_crop not in EVAL_CROPS or view.eval_resize not in EVAL_RESIZES or not is_share:
        raise ValueError(
            f"{view}: images can't be shown in this way. data.eval_crop must be one of "
            f"{', '.join(EVAL_CROPS)}; data.crop_fraction in (0, 1]; data.eval_resize one of "
            f"{', '.join(EVAL_RESIZES)}."
        )
    return view


def evaluation_view(
    image: np.ndarray, size: tuple[int, int], options: Mapping[str, Any] | ConfigDict
) -> np.ndarray:
    """Returns what a model sees of an image in evaluation, uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      size: (h, w) of the result.
      options: `config.data`, see `view_of`.
    """
    view = view_of(options)
    return EVAL_CROPS[view.eval_crop](image, size, view.crop_fraction, view.eval_resize)
