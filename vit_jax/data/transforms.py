"""Image operations"""

from __future__ import annotations

import io
import math
import warnings

import cv2
import numpy as np
import simplejpeg
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run another program
_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # above which Pillow refuses to open an image
# Pillow warns of odd metadata and large images, one by one; what can't be decoded raises an error.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, GIF, BMP or TIFF image to uint8 RGB (h, w, 3), upright.

    JPEGs go through libjpeg-turbo's accurate DCT. What needs more than that (a rotation in EXIF,
    CMYK) and every other format goes through Pillow.

    Raises:
      ValueError: the bytes are not a whole image of one of these formats, or one of more than 179
        million pixels, where Pillow suspects a decompression bomb.
    """
    if _plain_jpeg(data):
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:  # CMYK, or damaged: Pillow converts the one and names the other
            pass
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return from_pillow(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a readable image: expected {', '.join(_FORMATS)}") from error
    except Exception as error:  # damaged files make decoders raise errors of many kinds
        raise ValueError(f"not a readable image: {str(error) or type(error).__name__}") from error


def _plain_jpeg(data: bytes) -> bool:
    """Tells whether bytes are a JPEG of no more pixels than Pillow would open, without EXIF.

    Reads the segments before the image's data (ITU-T T.81, B.1): a marker and a length each.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling before a marker
            at += 1
            continue
        if marker == 0xDA:  # the data begin
            break
        if marker == 0xE1 and data[at + 4 : at + 9] == b"Exif\x00":
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return height * width <= _MAX_PIXELS


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns a Pillow image as uint8 RGB (h, w, 3), upright.

    Alpha is dropped, grey is repeated, 16-bit is scaled to 8, a rotation in EXIF is carried out.
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to `size`, whatever the aspect ratio."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def inception_crop(
    image: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Crops a random rectangle and resizes it to `size` (Szegedy et al., arXiv 1409.4842, sec. 6).

    Args:
      area: smallest and largest share of the image's area; drawn uniformly.
      aspect: smallest and largest width / height; drawn uniformly in the logarithm.

    After ten draws that don't fit into the image, the whole image is taken.
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
    """Resizes to `size` / `fraction`, then crops `size` at a random place."""
    larger = (round(size[0] / fraction), round(size[1] / fraction))
    image = resize(image, larger)
    top, left = (rng.integers(a - b + 1) for a, b in zip(larger, size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def central_crop(image: np.ndarray, size: tuple[int, int], fraction: float) -> np.ndarray:
    """Resizes so that the image just covers `size` / `fraction`, keeping its aspect, then crops."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width) / fraction
    image = resize(image, (max(size[0], round(height * scale)), max(size[1], round(width * scale))))
    top, left = ((a - b) // 2 for a, b in zip(image.shape[:2], size, strict=True))
    return image[top : top + size[0], left : left + size[1]]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability one half."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def evaluation_view(image: np.ndarray, size: tuple[int, int], options: ConfigDict) -> np.ndarray:
    """Returns what a model sees of an image in evaluation: uint8 (h, w, 3).

    Args:
      image: uint8 RGB (height, width, 3).
      size: the result's (h, w).
      options: `config.data`: its `eval_crop` and `crop_fraction` say which part.
    """
    if options.eval_crop == "whole":
        return resize(image, size)
    return central_crop(image, size, options.crop_fraction)
