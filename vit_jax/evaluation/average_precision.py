"""Mean average precision: how well each class ranks the images of a split."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_jax.evaluation.class_metrics import ClassMetrics

_CLASSES_AT_ONCE = 256  # whose scores are in memory


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Returns the average precision of one class: sum of (R_k - R_(k-1)) P_k over its ranking.

    P_k and R_k are precision and recall of the images whose score is at least the k-th largest of
    the different scores. Images with equal scores are not ranked among each other.

    Args:
      scores: (n,), higher for images that are more likely to be of the class.
      is_positive: bool (n,), True for the images of the class, of which there is one at least.
    """
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(is_positive[order])  # among the first 1, 2, … images
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = found[last_of_equals]
    precision = found / (last_of_equals + 1)
    return float(np.diff(found, prepend=0) @ precision / found[-1])


class Ranking:
    """Collects the features and labels of a split, for the mean average precision of a head.

    The host holds the features, not the scores of all classes: 400 MB for 100,000 images of B/16.
    """

    def __init__(self) -> None:
        self._features: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, extracted: Any) -> None:
        """Adds a batch: `features` (b, d), `label` bool (b, c) and `mask` (b,), on the host."""
        mask = extracted["mask"]
        self._features.append(np.asarray(extracted["features"][mask], np.float32))
        self._labels.append(np.packbits(extracted["label"][mask], axis=-1))

    @property
    def images(self) -> int:
        """The number of images that were added."""
        return sum(map(len, self._features))

    def by_class(self, head: Any) -> tuple[np.ndarray, ClassMetrics]:
        """Returns the average precision of each class, and its counts of images.

        Args:
          head: its `kernel` (d, c) and `bias` (c,), on the host.

        Returns:
          float64 (c,), NaN for a class without images; and the metrics, where an image is predicted
          to be of every class whose probability is above 0.5.
        """
        kernel, bias = (np.asarray(head[name], np.float32) for name in ("kernel", "bias"))
        features, packed = np.concatenate(self._features), np.concatenate(self._labels)
        ranked, counts = np.full(len(bias), np.nan), np.zeros((3, len(bias)), np.int64)
        for start in range(0, len(bias), _CLASSES_AT_ONCE):
            some = slice(start, start + _CLASSES_AT_ONCE)
            scores = features @ kernel[:, some] + bias[some]
            bits = np.unpackbits(packed[:, start // 8 : (start + _CLASSES_AT_ONCE) // 8], axis=-1)
            labels, predicted = bits[:, : scores.shape[1]].astype(bool), scores > 0
            counts[:, some] = [x.sum(0) for x in (labels, predicted, labels & predicted)]
            for i in np.flatnonzero(labels.any(0)):
                ranked[start + i] = average_precision(scores[:, i], labels[:, i])
        return ranked, ClassMetrics(*counts)

    def mean_average_precision(self, head: Any) -> float | None:
        """Returns the mean of `average_precision` over the classes with images; None without any.

        Args:
          head: as for `by_class`.
        """
        ranked, classes = self.by_class(head)
        return float(np.mean(ranked[classes.support > 0])) if classes.support.any() else None
