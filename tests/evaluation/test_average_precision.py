"""Mean average precision against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_jax.evaluation.average_precision import Ranking, average_precision


@pytest.mark.parametrize("levels", [None, 12, 1])
def test_one_class_with_and_without_equal_scores(rng, levels):
    """Scores of `levels` different values; None for as many as images."""
    for n in (1, 2, 50, 301):
        scores = rng.normal(size=n) if levels is None else rng.integers(0, levels, n).astype(float)
        is_positive = rng.random(n) < 0.3
        is_positive[rng.integers(n)] = True
        expected = average_precision_score(is_positive, scores)
        assert average_precision(scores, is_positive) == pytest.approx(expected, rel=1e-12)


def test_a_ranking_is_of_the_heads_scores_over_all_batches_without_padding(rng):
    """Of 515 classes, which are scored in parts; some have no images, and don't count."""
    n, d, c = 60, 9, 515
    features = rng.normal(size=(n, d)).astype(np.float32)
    labels = rng.random((n, c)) < 0.03
    mask = np.arange(n) < 52
    head = {"kernel": rng.normal(size=(d, c)), "bias": rng.normal(size=c)}
    ranking = Ranking()
    for start in range(0, n, 20):
        part = slice(start, start + 20)
        ranking.add({"features": features[part], "label": labels[part], "mask": mask[part]})
    scores = (features.astype(np.float64) @ head["kernel"] + head["bias"])[mask]
    counted = labels[mask].any(0)
    assert 100 < counted.sum() < c
    expected = average_precision_score(labels[mask][:, counted], scores[:, counted])
    assert ranking.mean_average_precision(head) == pytest.approx(expected, abs=1e-6)


def test_no_class_with_images():
    ranking = Ranking()
    ranking.add({"features": np.ones((2, 3)), "label": np.zeros((2, 4), bool), "mask": [True] * 2})
    found = ranking.mean_average_precision({"kernel": np.ones((3, 4)), "bias": np.ones(4)})
    assert found is None
