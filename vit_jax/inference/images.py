"""Images of any kind that a user gives: files, bytes, Pillow images, arrays."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from vit_jax.data import pixels
from vit_jax.data.dataset import ExampleError
from vit_jax.data.reading import read_file, retry

Readable = str | os.PathLike | bytes | np.ndarray | Image.Image


def use_image(
    image: Readable,
    view: Callable[[bytes | np.ndarray], np.ndarray],
    background: tuple[int, int, int] = pixels.WHITE,
) -> np.ndarray:
    """Returns what `view` makes of an image; uint8 (h, w, 3).

    Args:
      image: a path, encoded bytes, a Pillow image, or an array, as `pixels.from_array` takes
        it; floats are in 0…1.
      view: takes encoded bytes, or uint8 RGB (height, width, 3).
      background: RGB, that transparent pixels of a Pillow image are laid over.

    Raises:
      ValueError: it is not an image, or there is no such file. The message names the path.
      OSError, MemoryError: it can't be read at the moment, see `data.reading.retry`.
    """
    if isinstance(image, np.ndarray):
        try:
            array = pixels.from_array(image)
        except ValueError as error:
            raise ValueError(f"An array {error}") from error
        return view(array)
    if isinstance(image, Image.Image):
        try:
            array = pixels.from_pillow(image, background)
        except (OSError, ValueError) as error:  # OSError: its file is damaged
            raise ValueError(f"A Pillow image can't be used: {error}") from error
        return view(array)
    if isinstance(image, bytes):
        return view(image)
    try:
        data = read_file(pathlib.Path(image))
        return retry(lambda: view(data), str(image))
    except ExampleError:  # names the path
        raise
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error
