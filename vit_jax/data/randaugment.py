"""RandAugment: random operations of one common strength on an image, on the host.

Source: Cubuk et al., arXiv 1909.13719. The 16 operations and their strengths are those of the
authors' TensorFlow code (EfficientNet's autoaugment.py), which big_vision's `randaug` runs. That
code has two oddities, which are kept because its recipes were trained with them. The threshold of
Solarize wraps round at 256, so that the whole image is inverted at magnitude 10, 20 and 30.
Posterize keeps one bit where it should keep none, or more than eight.

Two things differ on purpose. The pixels of Translate and Cutout are pixels of an image of 224, and
scale with the image. Contrast blends with the image's mean grey, as Pillow does and that code
intends; by mistake, that code blends with a grey of the number of pixels / 256, which is 196 at
224 x 224 (big_vision's issue 109).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
_SHIFT = 100 / 224  # share of the side that Translate moves by at magnitude 10


def _signed(value: float, rng: np.random.Generator) -> float:
    """Returns the value or its negative, each with probability one half."""
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Returns an image whose pixel (x, y) is the image's nearest to (a x + b y + c, d x + e y + f).

    Where that is outside the image, the pixel is grey.
    """
    kind, resample = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(image.size, kind, matrix, resample, fillcolor=_GREY)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each value, or one bit if `bits` is not in 1 … 8."""
    return ImageOps.posterize(image, bits if 1 <= bits <= 8 else 1)


def _solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Adds to the values below 128, up to 255."""
    return image.point([min(255, i + addition) if i < 128 else i for i in range(256)] * 3)


def _cutout(image: Image.Image, pixels: float, rng: np.random.Generator) -> Image.Image:
    """Makes a rectangle grey, round a random place.

    It ends `pixels` left, right, above and below of that place in an image of 224 x 224, and scales
    with the image.
    """
    x, y = (int(rng.integers(side)) for side in image.size)
    w, h = (int(pixels * side / 224) for side in image.size)
    image = image.copy()
    image.paste(_GREY, (x - w, y - h, x + w, y + h))
    return image


# From an image, a tenth of the magnitude and a random generator to an image.
OPERATIONS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "AutoContrast": lambda x, m, rng: ImageOps.autocontrast(x),
    "Equalize": lambda x, m, rng: ImageOps.equalize(x),
    "Invert": lambda x, m, rng: ImageOps.invert(x),
    "Rotate": lambda x, m, rng: x.rotate(_signed(m * 30, rng), fillcolor=_GREY),
    "Posterize": lambda x, m, rng: _posterize(x, int(m * 4)),
    "Solarize": lambda x, m, rng: ImageOps.solarize(x, int(m * 256) % 256),
    "Color": lambda x, m, rng: ImageEnhance.Color(x).enhance(m * 1.8 + 0.1),
    "Contrast": lambda x, m, rng: ImageEnhance.Contrast(x).enhance(m * 1.8 + 0.1),
    "Brightness": lambda x, m, rng: ImageEnhance.Brightness(x).enhance(m * 1.8 + 0.1),
    "Sharpness": lambda x, m, rng: ImageEnhance.Sharpness(x).enhance(m * 1.8 + 0.1),
    "ShearX": lambda x, m, rng: _affine(x, 1, _signed(m * 0.3, rng), 0, 0, 1, 0),
    "ShearY": lambda x, m, rng: _affine(x, 1, 0, 0, _signed(m * 0.3, rng), 1, 0),
    "TranslateX": lambda x, m, rng: _affine(x, 1, 0, _signed(m * _SHIFT * x.width, rng), 0, 1, 0),
    "TranslateY": lambda x, m, rng: _affine(x, 1, 0, 0, 0, 1, _signed(m * _SHIFT * x.height, rng)),
    "Cutout": lambda x, m, rng: _cutout(x, m * 40, rng),
    "SolarizeAdd": lambda x, m, rng: _solarize_add(x, int(m * 110)),
}


def rand_augment(
    image: np.ndarray, rng: np.random.Generator, *, operations: int = 2, magnitude: float = 10.0
) -> np.ndarray:
    """Returns the image after random operations, each drawn uniformly from `OPERATIONS`.

    Args:
      image: uint8 RGB (h, w, 3); so is the result.
      rng: where the operations, their signs and their places are drawn from.
      operations: number of operations; one can be drawn twice. 0 returns `image` itself, and draws
        nothing.
      magnitude: strength of all operations, in [0, 30]. Even 0 changes an image: some operations
        have no strength, and Color, Contrast, Brightness and Sharpness change nothing at 5.

    Raises:
      ValueError: `operations` or `magnitude` is out of its range.
    """
    if operations < 0:
        raise ValueError(f"operations={operations} must be 0 or more.")
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude={magnitude} must be in [0, 30].")
    if operations == 0:
        return image
    augmented = Image.fromarray(image)
    for name in rng.choice(list(OPERATIONS), operations):
        augmented = OPERATIONS[name](augmented, magnitude / 10, rng)
    return np.asarray(augmented)
