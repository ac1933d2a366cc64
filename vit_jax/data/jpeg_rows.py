"""JPEG files of which some rows can be decoded without those above and below.

In a baseline JPEG file, a restart marker lets the decoder begin anew (ITU-T T.81, B.2.4.4, E.1.4).
Here each row of blocks, 16 pixels high, ends with one.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

_COMMENT = b"a restart marker after each row of blocks"  # tells these files from others
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_HEIGHT = 16  # of a row of blocks, in pixels, as chroma has half of the rows


def encode_rows(image: np.ndarray, quality: int) -> bytes:
    """Returns an image as such a file, with chroma at half of the rows and columns.

    Args:
      image: uint8 RGB (h, w, 3).
      quality: 1 to 100.

    Raises:
      ValueError: a side is too long for JPEG.
    """
    if max(image.shape) > 65_500:
        raise ValueError("it is too long for JPEG, whose sides have at most 65,500 pixels")
    data = io.BytesIO()
    options = {"quality": quality, "subsampling": "4:2:0", "restart_marker_rows": 1}
    Image.fromarray(image).save(data, "JPEG", comment=_COMMENT, **options)
    return data.getvalue()


def keep_rows(data: bytes, first: int, end: int) -> tuple[bytes, int]:
    """Returns a file of some rows of an image, and the number of its first row in the image.

    It holds the rows from `first` to before `end`, and some around them. What it is decoded to has
    in these rows the bits that the image has. A file that `encode_rows` didn't write is returned as
    it is.
    """
    found = _parse(data)
    if found is None:
        return data, 0
    height_at, start = found
    height = int.from_bytes(data[height_at : height_at + 2])
    marks = [mark.start() for mark in _RESTART.finditer(data, start)]
    # Where the chroma of a row is interpolated, it is read from the rows beside it, too.
    upper, lower = max(0, (first - 1) // _HEIGHT), min(len(marks) + 1, end // _HEIGHT + 1)
    begin = marks[upper - 1] + 2 if upper else start
    stop = marks[lower - 1] if lower <= len(marks) else len(data) - 2  # the file ends with FF D9
    kept = bytearray(data[begin:stop])
    for i, mark in enumerate(marks[upper : lower - 1]):  # they are counted from 0, modulo 8
        kept[mark + 1 - begin] = 0xD0 + i % 8
    height = min(_HEIGHT * lower, height) - _HEIGHT * upper
    header = data[:height_at] + height.to_bytes(2) + data[height_at + 2 : start]
    return header + kept + b"\xff\xd9", _HEIGHT * upper


def _parse(data: bytes) -> tuple[int, int] | None:
    """Returns where a file of `encode_rows` says its height, and where its blocks begin."""
    at, height_at, is_ours = 2, 0, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xC0:  # the frame of a baseline file
            height_at = at + 5
        elif marker == 0xFE:
            is_ours = data[at + 4 : end] == _COMMENT
        elif marker == 0xDA:  # the scan
            return (height_at, end) if is_ours and height_at else None
        at = end
    return None
