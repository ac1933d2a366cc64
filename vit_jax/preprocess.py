"""Image operations on one example, on the host: decode, resize, crop, flip.

Images are uint8 RGB arrays (h, w, 3), sizes are (height, width) in pixels, and every random
operation takes the `numpy.random.Generator` it draws from. Resizing is bilinear without
antialiasing: the pixels that the published models were trained on.
"""

from __future__ import annotations

import io
import math
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

_JPEG = b"\xff\xd8"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run another program
_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # above which Pillow refuses to open an image


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
        raise ValueError(f"not a readable image: {error}") from error


def _plain_jpeg(data: bytes) -> bool:
    """Tells whether bytes start as a JPEG of a size to be expected does, without EXIF.

    Reads the segments before the image's data (ITU-T T.81, B.1): a marker and a length each.
    """
    if not data.startswith(_JPEG):
        return False
    at, pixels = 2, 0
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling before a marker
            at += 1
            continue
        if marker == 0xDA:  # the data begin
            break
        if marker == 0xE1 and data[at + 4 : at + 9] == b"Exif\x00":
            return False
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: height, width
            pixels = int.from_bytes(data[at + 5 : at + 7]) * int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return 0 < pixels <= _MAX_PIXELS


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns a Pillow image as uint8 RGB (h, w, 3), upright.

    Alpha is dropped, grey is repeated, 16-bit is scaled to 8, a rotation in EXIF is carried out.
    """
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


def to_float(images: Any) -> Any:
    """Scales uint8 images of any shape to float32 in [-1, 1]; runs on the device, inside jit."""
    return images.astype(jnp.float32) / 127.5 - 1.0
