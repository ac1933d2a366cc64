"""Nearest neighbours against scikit-learn's, and the evaluation around them."""

import numpy as np
import pytest
from conftest import rows
from sklearn.neighbors import KNeighborsClassifier

from vit_jax.data.folders import FolderDataset
from vit_jax.evaluation.neighbours import classify_by_neighbours
from vit_jax.inference.classifier import Classifier
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.train import train


@pytest.mark.parametrize("neighbours", [1, 20, 500])
def test_the_vote_is_scikit_learns(rng, neighbours):
    """Of 300 images, of which 500 neighbours are all; 1,500 are classified."""
    labels = rng.integers(0, 5, 300)
    centres = rng.normal(size=(5, 8))
    known = centres[labels] + rng.normal(size=(300, 8))
    new = centres[rng.integers(0, 5, 1500)] + rng.normal(size=(1500, 8))
    reference = KNeighborsClassifier(
        min(neighbours, 300),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    ).fit(known, labels)
    found = classify_by_neighbours(known, labels, new, neighbours)
    assert (found == reference.predict(new)).mean() > 0.999  # float32 against float64
    assert (classify_by_neighbours(100 * known, labels, new, neighbours) == found).all()


def test_a_run_and_the_job_measure_the_same_as_scikit_learn(settings, image_folder, tmp_path):
    settings.update(total_steps=2)
    settings.fewshot.update(every=2, shots=(1,), seeds=1, neighbours=3)
    settings.checkpoint.best = "knn_3"
    summary = train(settings, tmp_path / "run")
    assert float(rows(tmp_path / "run")[-1]["knn_3"]) == summary["best_knn_3"] == summary["knn_3"]
    settings.init_from = str(tmp_path / "run")
    result = few_shot(settings, tmp_path / "job")
    assert result["knn_3"] == pytest.approx(summary["knn_3"])
    assert result["knn_3_low"] < result["knn_3"] or result["knn_3"] == 0
    assert "all, 3 nearest neighbours" in (tmp_path / "job" / "fewshot.md").read_text()

    classifier, dataset = Classifier(settings.init_from), FolderDataset(image_folder)
    parts = []
    for split in ("train[:85%]", "train[85%:]"):
        files = dataset.source(split).files
        pooled = classifier.features([str(path) for path, _ in files]).pooled
        parts.append((pooled, np.array([label for _, label in files])))
    (known, labels), (new, expected) = parts
    reference = KNeighborsClassifier(
        3, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(known, labels)
    assert result["knn_3"] == pytest.approx((reference.predict(new) == expected).mean(), abs=0.1)
