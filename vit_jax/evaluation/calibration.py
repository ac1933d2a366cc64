"""Whether a classifier is as often right as it is confident.

Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", arXiv
1706.04599, section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15


class Reliability(NamedTuple):
    """Images by confidence, in bins of equal width: bin m of M is ((m - 1) / M, m / M].

    The confidence is the probability of the predicted class. Arrays are (M,); means of empty bins
    are NaN.

    Attributes:
      images: int64, how many there are in each bin.
      confidence: float64, their mean confidence.
      accuracy: float64, the share of them whose prediction is right.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """The mean of |accuracy - confidence| over the bins, weighted by their images."""
        gaps = np.abs(self.accuracy - self.confidence)[self.images > 0]
        return float(gaps @ self.images[self.images > 0] / self.images.sum())


def reliability(confidence: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> Reliability:
    """Sorts images into bins by their confidence.

    Args:
      confidence: float (n,), in [0, 1].
      is_right: bool (n,).
      bins: M.
    """
    confidence = np.asarray(confidence, np.float64)
    at = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(at, minlength=bins)
    sums = (np.bincount(at, x, minlength=bins) for x in (confidence, is_right))
    means = [np.where(images > 0, x / np.maximum(images, 1), np.nan) for x in sums]
    return Reliability(images, *means)
