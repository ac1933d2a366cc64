"""All augmentation of one image after its crop, on the host.

Images are uint8 RGB (h, w, 3). Every operation takes the `numpy.random.Generator` that it draws
from. RandAugment is in `data.randaugment`. Mixup and CutMix are computed on the devices.
"""

from __future__ import annotations

import cv2
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.randaugment import rand_augment
from vit_jax.data.transforms import random_flip, torchvision_window


def _to_grey(image: np.ndarray) -> np.ndarray:
    """Returns the image without its colours (ITU-R BT.601), as RGB."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# From an image and a factor to the image with a multiple of its brightness, contrast, saturation.
_JITTERS = (
    lambda x, factor: cv2.addWeighted(x, factor, x, 0, 0),
    lambda x, factor: cv2.addWeighted(x, factor, x, 0, (1 - factor) * cv2.mean(_to_grey(x))[0]),
    lambda x, factor: cv2.addWeighted(x, factor, _to_grey(x), 1 - factor, 0),
)


def augment(image: np.ndarray, rng: np.random.Generator, options: ConfigDict) -> np.ndarray:
    """Returns a cropped training image after all augmentations that `config.data` asks for.

    They follow each other in this order: flip, RandAugment, 3-Augment, colour jitter, erasing. What
    is not asked for draws nothing.
    """
    image = random_flip(image, rng) if options.flip else image
    image = rand_augment(
        image, rng, operations=options.randaugment, magnitude=options.randaugment_magnitude
    )
    if options.three_augment:
        image = three_augment(image, rng)
    if options.colour_jitter:
        image = colour_jitter(image, rng, options.colour_jitter)
    if options.erase:
        image = random_erasing(image, rng, options.erase)
    return image


def three_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image in grey, solarized or blurred, each with the same probability.

    It is the choice within 3-Augment (Touvron et al., arXiv 2204.07118, section 3), with the
    strengths of its authors' code: values of 128 and more are inverted, or the blur is Gaussian
    with a standard deviation between 0.1 and 2 pixels. The paper's colour jitter of 0.3 and its
    flip have keys of their own.
    """
    match int(rng.integers(3)):
        case 0:
            return _to_grey(image)
        case 1:
            return np.where(image < 128, image, 255 - image)
    sigma = rng.uniform(0.1, 2)
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def colour_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Returns the image with another brightness, contrast and saturation, changed in random order.

    Each factor is drawn uniformly from 1 - `strength` to 1 + `strength`, but from 0 at least, as
    torchvision's `ColorJitter` does with three equal strengths.
    """
    for i in rng.permutation(len(_JITTERS)):
        image = _JITTERS[i](image, rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def random_erasing(image: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Returns the image, with a given probability, with noise in place of a random rectangle.

    Source: Zhong et al., arXiv 1708.04896. Every value of the noise is drawn uniformly from 0 to
    255. The rectangle has 2 to 33 % of the image's area, and an aspect ratio of 0.3 to 3.3, as in
    torchvision and timm. If none fits, as into an image of one row, the image stays.
    """
    if rng.random() >= probability:
        return image
    height, width, _ = image.shape
    window = torchvision_window(height, width, rng, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
    top, left, h, w = window
    if (h, w) != (height, width):
        image = image.copy()
        image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), np.uint8)
    return image
