"""RandAugment"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
_SHIFT = 100 / 224


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Takes (x, y) from (a x + b y + c, d x + e y + f), nearest; grey where that is outside."""
    kind, resample = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(image.size, kind, matrix, resample, fillcolor=_GREY)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    return ImageOps.posterize(image, bits if 1 <= bits <= 8 else 1)


def _solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Brightens the dark half of the values."""
    return image.point([min(255, i + addition) if i < 128 else i for i in range(256)] * 3)


def _cutout(image: Image.Image, pixels: float, rng: np.random.Generator) -> Image.Image:
    """Greys what is within `pixels` of 224, in each direction, of a random place."""
    x, y = (int(rng.integers(side)) for side in image.size)
    w, h = (int(pixels * side / 224) for side in image.size)
    image = image.copy()
    image.paste(_GREY, (x - w, y - h, x + w, y + h))
    return image


# From an image, the magnitude / 10 and a generator to an image.
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
    """Applies `operations` operations, each drawn uniformly (Cubuk et al., arXiv 1909.13719).

    Args:
      image: uint8 RGB (h, w, 3); so is the result.
      rng: where operations, signs and places are drawn from, and nothing else is.
      operations: how many; one can be drawn twice. 0 returns `image` itself.
      magnitude: strength of all, 0 to 30. 0 is not "no change": some operations have no strength,
        and Color, Contrast, Brightness and Sharpness leave an image as it is at 5.

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
