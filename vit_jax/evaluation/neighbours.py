"""k-nearest-neighbour evaluation of frozen features: nothing is trained.

An image's class is voted for by the k images of the training split whose features are nearest by
cosine; a neighbour's vote is exp(cosine / 0.07). So evaluate Wu et al. (arXiv 1805.01978, section
3.4) and DINO (Caron et al., arXiv 2104.14294), the latter with k = 20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from vit_jax.data.batch import Batch
from vit_jax.data.checks import require_one_label
from vit_jax.data.dataset import Dataset
from vit_jax.evaluation.evaluator import Evaluator
from vit_jax.evaluation.fewshot import collect, few_shot_splits, on_devices
from vit_jax.training.parallel import Parallel

_TEMPERATURE = 0.07
_AT_ONCE = 1024  # images that are compared with all of the training split


def classify_by_neighbours(
    train: np.ndarray, labels: np.ndarray, features: np.ndarray, neighbours: int
) -> np.ndarray:
    """Returns the classes (m,) that the nearest neighbours of features vote for.

    Args:
      train: float (n, d), features with known classes.
      labels: int (n,), these classes.
      features: float (m, d).
      neighbours: k; at most n count.
    """
    train, features = (_normalised(x) for x in (train, features))
    count = min(neighbours, len(train))
    found = []
    for start in range(0, len(features), _AT_ONCE):
        cosines = features[start : start + _AT_ONCE] @ train.T
        nearest = np.argpartition(-cosines, count - 1, axis=-1)[:, :count]
        votes = np.exp(np.take_along_axis(cosines, nearest, -1) / _TEMPERATURE)
        sums = np.zeros((len(cosines), labels.max() + 1), np.float32)
        np.add.at(sums, (np.arange(len(cosines))[:, None], labels[nearest]), votes)
        found.append(sums.argmax(-1))
    return np.concatenate(found)


def _normalised(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


class Neighbours:
    """k-nearest-neighbour evaluation on the splits of `config.fewshot`.

    Args:
      config: reads `fewshot` and, without `fewshot.name`, `data`.
      batches: (source, num_classes=) -> evaluation batches of the source.
      dataset: what `data.name` stands for. None opens what it names.

    Attributes:
      column: the name of the accuracy, such as "knn_20".

    Raises:
      ValueError: images have several labels, or the data can't be used.
      FileNotFoundError: there is no data.
    """

    def __init__(
        self,
        config: ConfigDict,
        batches: Callable[..., Iterable[Batch]],
        dataset: Dataset | None = None,
    ):
        self._neighbours = config.fewshot.neighbours
        self.column = f"knn_{self._neighbours}"
        dataset, (_, train), (_, test) = few_shot_splits(config, dataset)
        require_one_label(train, config.fewshot.name or config.data.name)
        classes = len(dataset.class_names)
        self._train, self._test = (batches(x, num_classes=classes) for x in (train, test))

    def measure(self, extract: Callable[[Batch], Batch]) -> float:
        """Returns the accuracy on the test split.

        The host holds the features of both splits.

        Args:
          extract: as for `FewShot.measure`.
        """
        train, labels = collect(extract, self._train)
        features, expected = collect(extract, self._test)
        predicted = classify_by_neighbours(train, labels, features, self._neighbours)
        return float(np.mean(predicted == expected))


def neighbours_evaluator(neighbours: Neighbours, program: Parallel, every: int) -> Evaluator:
    """Returns the evaluator of k-nearest-neighbour accuracy, see `few_shot_evaluator`."""

    def run(state):
        return {neighbours.column: neighbours.measure(on_devices(program, state.params))}

    return Evaluator("neighbours", every, (neighbours.column,), run)
