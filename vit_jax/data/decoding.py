"""Decodes image files, JPEG files also at a reduced scale.

A JPEG file stores blocks of 8 x 8 pixels as cosine transforms (DCT). From their low frequencies
alone, a block becomes 4 x 4, 2 x 2 or 1 pixel: an antialiased image of 1/2, 1/4 or 1/8 of the
sides, in less time and memory.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vit_jax.data.pixels import WHITE, from_pillow, read_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # EPS would run another program
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens no larger image
# Pillow loads decoders at their first use. It takes one that doesn't fit into memory for missing,
# and then refuses its files for good. At this point there is memory.
Image.init()
# Pillow warns of odd metadata and of large images, at each of them. What can't be decoded raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, background: tuple[int, int, int] = WHITE, *, factor: int = 1) -> np.ndarray:
    """Returns an encoded image as uint8 RGB (h, w, 3), upright.

    libjpeg-turbo decodes JPEG files, by its accurate DCT, and OpenCV decodes WebP files, in less
    than half of the memory that Pillow takes. Pillow decodes the other formats, and WebP files that
    have EXIF metadata, which may ask for a rotation, or several frames. CMYK and YCCK colours are
    those of Pillow, up to 2 of 255.

    Args:
      data: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.
      background: RGB, each in 0…255: what transparent pixels are laid over.
      factor: 1, 2, 4 or 8: what the sides of a JPEG file are divided by, rounded up. Other formats
        are decoded whole.

    Raises:
      ValueError: the bytes are not a whole image of one of these formats; or the image has more
        than 179 million pixels, where Pillow suspects a decompression bomb; or see `from_pillow`.
      MemoryError: there is too little memory.
    """
    pixels, plain_webp = _webp_header(data)
    try:
        header = read_header(data)
        if header is not None and header.height * header.width <= _MAX_PIXELS:
            with contextlib.suppress(ValueError):  # if it is damaged, Pillow explains it
                return _decode_jpeg(data, header, factor)
        if plain_webp and pixels <= _MAX_PIXELS and len(data) >= 32:  # of less, OpenCV complains
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is not None:  # else Pillow explains it
                if image.shape[2] == 3:
                    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
                return from_pillow(Image.fromarray(image), background)
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            if header is not None and factor > 1:  # to the sides that libjpeg-turbo gives
                sides = (max(1, side // factor) for side in opened.size)
                opened.draft(opened.mode, (next(sides), next(sides)))
            return from_pillow(opened, background)
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


def decode_whole(image: bytes | np.ndarray) -> np.ndarray:
    """Returns an image as uint8 RGB (h, w, 3): decoded over white, or as it is if it is decoded.

    Raises:
      ValueError, MemoryError: see `decode`.
    """
    return image if isinstance(image, np.ndarray) else decode(image)


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


# ------------------------------------------------------------------------------------------ JPEG

# What turns a stored image upright, by EXIF's orientation. 5 and 7 mirror it, too.
_TURNS: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class Header(NamedTuple):
    """What is known of a JPEG file before it is decoded.

    Attributes:
      height, width: of the upright image, in pixels.
      orientation: of its EXIF metadata, 1 to 8; 1 if it has none.
    """

    height: int
    width: int
    orientation: int

    def before(self, factor: int) -> tuple[int, int]:
        """Returns how many pixels there are above and left of the image, decoded at 1 / `factor`.

        The last pixels of a file's rows and columns stand for some that the image lacks, if its
        sides are no multiples of the factor. By a turn, they may become the first.
        """
        return (
            -self.height % factor if self.orientation in (3, 4, 7, 8) else 0,
            -self.width % factor if self.orientation in (2, 3, 6, 7) else 0,
        )


def read_header(data: bytes) -> Header | None:
    """Returns the header of a JPEG file. None for other files and for a damaged header."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    orientation = _read_orientation(data) if _has_exif(data) else 1
    if orientation > 4:
        height, width = width, height
    return Header(height, width, orientation)


def _has_exif(data: bytes) -> bool:
    """Returns True if a JPEG file has EXIF metadata.

    Reads the segments before the image's data: each has a marker and a length (ITU-T T.81, B.1).
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
            continue
        if marker == 0xDA:  # the image's data begin
            break
        if marker == 0xE1 and data[at + 4 : at + 9] == b"Exif\x00":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _read_orientation(data: bytes) -> int:
    """Returns the orientation that Pillow reads, which decodes nothing for it; 1 if it can't."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return read_orientation(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the machine's fault, not that of a damaged header
        return 1


def _decode_jpeg(data: bytes, header: Header, factor: int = 1) -> np.ndarray:
    """Returns the pixels of a JPEG file, uint8 RGB (h, w, 3), upright.

    Args:
      data: the file's bytes.
      header: see `read_header`.
      factor: 1, 2, 4 or 8: what the sides are divided by, rounded up.

    Raises:
      ValueError: it is damaged, or has colours that libjpeg-turbo doesn't convert.
      MemoryError: there is too little memory.
    """
    height, width = (-(-side // factor) for side in header[:2])
    if header.orientation > 4:  # the file has them before the turn
        height, width = width, height
    try:
        # The smallest image that has these sides.
        least = {"min_height": height, "min_width": width} if factor > 1 else {}
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", **least)
    except ValueError as error:
        if str(error).startswith("Insufficient memory"):
            raise MemoryError("too little memory to decode an image") from error
        raise
    turn = _TURNS.get(header.orientation)
    return image if turn is None else turn(image)
