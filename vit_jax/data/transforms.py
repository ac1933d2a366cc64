"""Operations on one image, on the host: decode, resize, crop and flip.

Images are uint8 RGB arrays (h, w, 3). Sizes are (height, width) in pixels. Every random operation
takes the `numpy.random.Generator` that it draws from. Resizing is bilinear without antialiasing:
the published models were trained on images resized in that way.

`TRAIN_CROPS` and `EVAL_CROPS` are the crops that `config.data.crop` and `config.data.eval_crop`
choose from. A further crop is a function and a row here.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run another program
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens no larger image
# Pillow warns of odd metadata and of large images, at each of them. What can't be decoded raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


# ------------------------------------------------------------------------------------- decoding


def decode(data: bytes) -> np.ndarray:
    """Returns an encoded image as uint8 RGB (h, w, 3), upright.

    libjpeg-turbo decodes JPEG files, by its accurate DCT. Pillow decodes the other formats, and
    those JPEG files that have EXIF metadata, which may ask for a rotation, or CMYK colours.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

    Raises:
      ValueError: the bytes are not a whole image of one of these formats; or the image has more
        than 179 million pixels, where Pillow suspects a decompression bomb.
    """
    if _plain_jpeg(data):
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:  # CMYK or damaged: Pillow converts the former, and explains the latter
            pass
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return from_pillow(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a readable image: expected {', '.join(_FORMATS)}") from error
    except Exception as error:  # damaged files make decoders raise errors of many kinds
        raise ValueError(f"not a readable image: {str(error) or type(error).__name__}") from error


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


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns a Pillow image as uint8 RGB (h, w, 3), upright.

    Alpha is dropped, grey is repeated in three channels, 16 bits are scaled to 8, and the rotation
    that EXIF metadata ask for is carried out.
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def from_array(array: np.ndarray, white: float = 1.0) -> np.ndarray:
    """Returns an array of numbers as an image, uint8 RGB (h, w, 3), which may not be written to.

    Args:
      array: RGB (h, w, 3), or grey (h, w, 1) or (h, w). Integers are in 0…255.
      white: what floats have for white: they are in 0…`white`, and are scaled to 0…255.

    Raises:
      ValueError: another shape, dtype or range; the message begins with "has".
    """
    if not array.size or array.shape[2:] not in ((), (1,), (3,)) or array.ndim < 2:
        raise ValueError(
            f"has the shape {array.shape}: an array must be RGB (h, w, 3), or grey (h, w, 1) or "
            f"(h, w). Channels come last, and there is no alpha channel."
        )
    if array.dtype.kind not in "uif":
        raise ValueError(f"has the dtype {array.dtype}: pixels must be integers or floats.")
    if array.dtype != np.uint8:
        top = white if array.dtype.kind == "f" else 255
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= top):  # also if there is a NaN
            raise ValueError(
                f"has values from {low} to {high}: integers must lie in 0…255, and floats in 0…1 "
                f"or, all of them, in 0…255, without NaN. If they were normalised, undo that."
            )
        array = np.rint(array * (255 / top)).astype(np.uint8)
    grey = array[:, :, None] if array.ndim == 2 else array
    return np.broadcast_to(grey, (*grey.shape[:2], 3))  # no copy


# ------------------------------------------------------------------------------ resize and flip


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the image resized to `size`, which may have another aspect ratio."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image mirrored left to right, with probability one half."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


# ----------------------------------------------------------------------------- crops in training


def inception_crop(
    image: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Returns a random rectangle of the image, resized (Szegedy et al., arXiv 1409.4842, sec. 6).

    If ten draws in a row don't fit into the image, the whole image is resized.

    Args:
      image: uint8 RGB (height, width, 3).
      size: (h, w) of the result.
      rng: where area, aspect ratio and place are drawn from.
      area: smallest and largest share of the image's area; drawn uniformly.
      aspect: smallest and largest width / height; the logarithm is drawn uniformly.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return resize(image[top : top + h, left : left + w], size)
    return resize(image, size)


def resize_and_random_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator, fraction: float
) -> np.ndarray:
    """Resizes the image to `size` / `fraction`, and returns a part of `size` at a random place."""
    height, width = (round(side / fraction) for side in size)
    image = resize(image, (height, width))
    top, left = rng.integers(height - size[0] + 1), rng.integers(width - size[1] + 1)
    return image[top : top + size[0], left : left + size[1]]


# From an image, the result's (h, w), a random generator and `config.data` to a part of the image,
# uint8 (h, w, 3), by the names that `config.data.crop` takes.
TRAIN_CROPS: dict[
    str, Callable[[np.ndarray, tuple[int, int], np.random.Generator, ConfigDict], np.ndarray]
] = {
    "inception": lambda image, size, rng, options: inception_crop(
        image, size, rng, area=(options.crop_area, 1.0)
    ),
    "resize": lambda image, size, rng, options: resize_and_random_crop(
        image, size, rng, options.crop_fraction
    ),
}


# --------------------------------------------------------------------------- crops in evaluation


def central_crop(image: np.ndarray, size: tuple[int, int], fraction: float) -> np.ndarray:
    """Resizes the image until it just covers `size` / `fraction`, and returns its centre of `size`.

    The aspect ratio stays the same.
    """
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width) / fraction
    image = resize(image, (max(size[0], round(height * scale)), max(size[1], round(width * scale))))
    top, left = ((a - b) // 2 for a, b in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


# From an image, the result's (h, w) and `config.data` to a part of the image, uint8 (h, w, 3), by
# the names that `config.data.eval_crop` takes.
EVAL_CROPS: dict[str, Callable[[np.ndarray, tuple[int, int], ConfigDict], np.ndarray]] = {
    "central": lambda image, size, options: central_crop(image, size, options.crop_fraction),
    "whole": lambda image, size, options: resize(image, size),
}


def evaluation_view(image: np.ndarray, size: tuple[int, int], options: ConfigDict) -> np.ndarray:
    """Returns what a model sees of an image in evaluation, uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      size: (h, w) of the result.
      options: `config.data`; its `eval_crop` names a row of `EVAL_CROPS`.
    """
    return EVAL_CROPS[options.eval_crop](image, size, options)
