"""How well each class is recognised: precision, recall and F1, from counts of images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassMetrics(NamedTuple):
    """Counts of images and what follows from them: arrays (c,), one entry a class.

    Attributes:
      support: int64, images of the class.
      predicted: int64, images that were predicted to be of the class.
      right: int64, those of them that are.
    """

    support: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """`right` / `predicted`, float64. NaN for a class that was never predicted."""
        return _ratio(self.right, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """`right` / `support`, float64. NaN for a class without images."""
        return _ratio(self.right, self.support)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, float64.

        It is 2 `right` / (`support` + `predicted`), and NaN for a class that has no images and was
        never predicted.
        """
        return _ratio(2 * self.right, self.support + self.predicted)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        return float(np.mean(self.recall[self.support > 0]))


def count_confusions(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix: int64 (c, c), images by true class and by predicted class.

    Args:
      labels, predicted: int (n,), classes counted from 0.
      num_classes: c.
    """
    flat = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def count_classes(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassMetrics:
    """Returns the metrics of each class. Arguments: see `count_confusions`."""
    right = labels[labels == predicted]
    return ClassMetrics(
        *(np.bincount(x, minlength=num_classes) for x in (labels, predicted, right))
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
