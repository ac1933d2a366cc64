"""Pillow images and arrays of numbers as images: uint8 RGB (h, w, 3).

An exported model's program has a copy of what is said here of Pillow images, see
`inference.program`: that needs NumPy and Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image

_TILE = 2**20  # pixels that are converted at once, so that no second copy of a large image is made
WHITE = (255, 255, 255)


def from_pillow(image: Image.Image, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Returns a Pillow image as uint8 RGB (h, w, 3), upright.

    Transparent pixels are laid over the background. Grey is repeated in three channels, and 12 or
    16 bits are scaled to 8. The rotation that EXIF metadata ask for is carried out. How pixels of
    32 bits are scaled, `_find_range` says. Where a TIFF file says that zero is white, white becomes
    255.

    Besides the Pillow image and the result, it takes some megabytes.

    Args:
      image: it may be open and not loaded.
      background: RGB, each in 0…255.

    Raises:
      ValueError: it has no pixels, or pixels of 32 bits of which some are NaN or infinite, or its
        colours can't be converted; or Pillow would read this TIFF file wrongly, or take very much
        memory for it.
      OSError: the image's file is damaged or can't be read.
    """
    if not all(image.size):
        raise ValueError("there are no pixels")
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    _check_tiff(image, tags)
    stored_as = _stored_as(image)
    image.load()
    orientation = read_orientation(image)
    width, height = image.size
    rotated = orientation in (5, 6, 7, 8)
    upright = np.empty((width, height, 3) if rotated else (height, width, 3), np.uint8)
    # A view in which the pixels lie as in the file.
    stored = upright.swapaxes(0, 1) if rotated else upright
    stored = stored[:: -1 if orientation in (3, 4, 6, 7) else 1]
    stored = stored[:, :: -1 if orientation in (2, 3, 7, 8) else 1]
    wide = image.mode in ("I", "F")
    unsigned = stored_as == "I;32N"  # Pillow itself has only integers with a sign
    black, white = _find_range(image, unsigned=unsigned) if wide else (0.0, 255.0)
    # Pillow itself does so with at most 8 bits.
    inverted = tags.get(262) == 0 and (wide or image.mode.startswith("I;16"))
    key = _transparent_colour(image, stored_as)
    for left, top, right, bottom in _tiles(width, height):
        tile = image.crop((left, top, right, bottom))
        if key is not None:
            tile.info["transparency"] = key
        if wide:
            values = _scale(_wide_pixels(tile, unsigned=unsigned), black, white)
        else:
            values = _convert(tile, 4 if stored_as == "I;12" else 8, background)
        stored[top:bottom, left:right] = 255 - values if inverted else values
    return upright


def _check_tiff(image: Image.Image, tags: Mapping[int, Any]) -> None:
    """Raises ValueError for a TIFF file that Pillow reads wrongly, or with too much memory.

    Args:
      image: the file, as it was opened.
      tags: by the numbers of TIFF 6.0; none for another format.
    """
    tile = [value for value in (tags.get(322), tags.get(323)) if isinstance(value, int)]
    if math.prod(tile) > 4 * image.width * image.height + _TILE:
        shown = " x ".join(map(str, tile))
        raise ValueError(f"its tiles are of {shown} pixels, much larger than the image")
    signed = image.mode == "L" and 2 in np.ravel(tags.get(339, 1))  # SampleFormat
    # PhotometricInterpretation and Compression: YCbCr that libtiff doesn't convert.
    if signed or (image.mode == "RGB" and tags.get(262) == 6 and tags.get(259, 1) == 1):
        raise ValueError(
            f"it is a TIFF file of {'signed 8-bit' if signed else 'uncompressed YCbCr'} pixels, "
            f"which can't be read: save it as unsigned grey or RGB"
        )


def _stored_as(image: Image.Image) -> str:
    """Returns Pillow's name of how a file's pixels are stored; "" if it is loaded or unknown."""
    for _, _, _, details in getattr(image, "tile", ()):
        name = details[0] if isinstance(details, tuple) and details else details
        return name if isinstance(name, str) else ""
    return ""


def _transparent_colour(image: Image.Image, stored_as: str) -> object:
    """Returns the transparency of a Pillow image in the values of its pixels; None if it has none.

    Pillow scales the pixels of PNG files of 2, 4 and 3 x 16 bits to 8, but not their transparent
    colour.
    """
    key = image.info.get("transparency")
    if stored_as == "RGB;16B" and key is not None:
        return tuple(value >> 8 for value in key)
    if stored_as in ("L;2", "L;4") and key is not None:
        return key * (255 // (2 ** int(stored_as[2:]) - 1))
    return key[:256] if isinstance(key, bytes) else key  # a palette has no more colours


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes (left, top, right, bottom) of at most `_TILE` pixels, which cover an image."""
    columns = min(width, _TILE)
    rows = _TILE // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def read_orientation(image: Image.Image) -> int:
    """Returns the orientation in a Pillow image's EXIF metadata, 1 to 8; 1 if they are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # damaged metadata raise errors of many kinds
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # the machine's fault
        return 1
    return next((x for x in range(1, 9) if x == found), 1)


def _wide_pixels(image: Image.Image, *, unsigned: bool) -> np.ndarray:
    """Returns the pixels (h, w) of a loaded image of 32-bit integers or floats."""
    values = np.asarray(image)
    return values.view(np.uint32) if unsigned else values


def _find_range(image: Image.Image, *, unsigned: bool) -> tuple[float, float]:
    """Returns what a loaded image of 32-bit pixels has for black and for white.

    Nothing in a file says it. If all pixels are in 0…255, or floats in 0…1, or integers in
    0…65,535, that range is taken, as usual for 8 bits, floats and 16 bits. Else the smallest value
    is black and the largest is white, as viewers of measurements show it.
    """
    tiles = (_wide_pixels(image.crop(box), unsigned=unsigned) for box in _tiles(*image.size))
    ranges = np.array([(tile.min(), tile.max()) for tile in tiles], np.float64)
    low, high = ranges.min(), ranges.max()
    if not np.isfinite(ranges).all():
        raise ValueError(
            "some of its 32-bit pixels are NaN or infinite: replace them, or save it with 8 or 16 "
            "bits"
        )
    # Floats that slip above 1 are not those of an image of 0…255, which would be black.
    usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0)
    white = usual[0] if high <= (255 if image.mode == "I" else 2) else usual[1]
    return (0.0, white) if low >= 0 and high <= white else (low, high)


def _scale(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Returns pixels (h, w) scaled to 0…255, (h, w, 1)."""
    if white == black:
        return np.zeros((*values.shape, 1))
    return np.rint((values[..., None].astype(np.float64) - black) * (255 / (white - black)))


def _convert(image: Image.Image, shift: int, background: tuple[int, int, int]) -> np.ndarray:
    """Returns a Pillow image as RGB (h, w, 3), or as grey (h, w, 1), of values in 0…255.

    Args:
      image: loaded; not of 32-bit pixels.
      shift: how many bits more than 8 a pixel of 16 bits uses.
      background: RGB.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)[..., None]
        key = image.info.get("transparency")
        grey = values >> shift
        return grey if key is None else np.where(values == key, background, grey)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    ground = Image.new("RGBA", image.size, (*background, 255))
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"))


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
        if array.dtype.kind == "f":
            array = array * (255 / top)
            np.rint(array, out=array)
        array = array.astype(np.uint8)
    grey = array[:, :, None] if array.ndim == 2 else array
    return np.broadcast_to(grey, (*grey.shape[:2], 3))  # no copy
