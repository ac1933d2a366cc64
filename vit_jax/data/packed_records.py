"""From an image of any data set to a record of a packed one: a small JPEG file with its label."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vit_jax.common.names import printable
from vit_jax.data.dataset import Dataset, ExampleError, Source
from vit_jax.data.decoding import decode, read_header
from vit_jax.data.jpeg_rows import encode_rows
from vit_jax.data.pipeline import ON_ERROR, check_label, view_example
from vit_jax.data.pixels import WHITE
from vit_jax.data.resizing import FILTERS, antialiased_window, find_factor
from vit_jax.data.skipped import SkippedImages
from vit_jax.data.transforms import is_colour

_FILTER = FILTERS["bicubic_antialias"]


class PackOptions(NamedTuple):
    """How images are packed.

    Attributes:
      side: the shorter side of an image is made at most this, in pixels.
      quality: of JPEG, 1 to 100. Chroma has half of the rows and columns.
      background: RGB, each in 0…255: what transparent pixels are laid over.
      on_error: "stop" refuses a data set with an image that can't be used; "skip" leaves it out.
    """

    side: int = 256
    quality: int = 85
    background: tuple[int, int, int] = WHITE
    on_error: str = "stop"

    def check(self) -> None:
        """Raises ValueError if a value is out of range."""
        if not (1 <= self.side < 2**16 and 1 <= self.quality <= 100 and is_colour(self.background)):
            raise ValueError(
                f"{self}: images can't be packed in this way. The side must be 1 to 65,535 pixels, "
                f"the quality 1 to 100, and the background three whole numbers in 0…255."
            )
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r} must be one of {', '.join(ON_ERROR)}.")


def shrink(image: bytes | np.ndarray, side: int, background: tuple[int, int, int]) -> np.ndarray:
    """Returns an image whose shorter side is at most `side`, uint8 RGB (h, w, 3), upright.

    A JPEG file is decoded at the smallest scale that covers this. The rest is done by Pillow's
    bicubic filter, with antialiasing.

    Args:
      image: encoded, or uint8 RGB (height, width, 3).
      side: in pixels.
      background: RGB that transparent pixels are laid over.

    Raises:
      ValueError, MemoryError: see `decode`.
    """
    header = None if isinstance(image, np.ndarray) else read_header(image)
    factor = find_factor(header[:2], (side, side)) if header else 1
    if not isinstance(image, np.ndarray):
        image = decode(image, background, factor=factor)
    height, width = header[:2] if header else image.shape[:2]
    scale = side / min(height, width)
    if scale >= 1:
        return image
    size = max(side, round(height * scale)), max(side, round(width * scale))
    if header is None or factor == 1:
        return antialiased_window(image, size, (0, 0), size, _FILTER)
    top, left = header.before(factor)
    box = (left / factor, top / factor, (left + width) / factor, (top + height) / factor)
    return np.asarray(Image.fromarray(image).resize(size[::-1], _FILTER, box=box))


def record_features(dataset: Dataset, *, several: bool) -> tfds.features.FeaturesDict:
    """Returns what a record holds, in the words of tfds."""
    label = tfds.features.ClassLabel(names=dataset.class_names)
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.Sequence(label) if several else label,
            "file_name": tfds.features.Text(),  # where the image was
        }
    )


def record_encoder(
    dataset: Dataset,
    source: Source,
    features: tfds.features.FeaturesDict,
    options: PackOptions,
    skipped: SkippedImages,
) -> Callable[[int], bytes | None]:
    """Returns a function from the index of an example to its record; to None if it is left out."""
    folder = f"{printable(dataset.name)}/"
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())

    def encode_image(image: bytes | np.ndarray) -> bytes:
        return encode_rows(shrink(image, options.side, options.background), options.quality)

    def encode(index: int) -> bytes | None:
        try:
            image, example = view_example(source, index, encode_image)
            if example.label != -1:  # of an image without a label, as tfds has it
                check_label(example, len(dataset.class_names))
        except ExampleError as error:
            if options.on_error == "stop":
                raise ValueError(
                    f"{error}. Repair it, or leave out such images with --on_error=skip, and start "
                    f"again: files that are finished stay."
                ) from error
            skipped.add(error)
            return None
        record = {"label": example.label, "file_name": example.id.removeprefix(folder)}
        found = serializer.get_tf_example(features.encode_example({"image": image, **record}))
        return found.SerializeToString(deterministic=True)

    return encode
