"""Metrics of classes and of confidence, against scikit-learn and their definitions."""

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from vit_jax.evaluation.answers import Answers
from vit_jax.evaluation.calibration import reliability
from vit_jax.evaluation.class_metrics import count_classes, count_confusions
from vit_jax.evaluation.pictures import draw_confusions, draw_reliability
from vit_jax.evaluation.temperature import fit_temperature, mean_loss


def test_precision_recall_f1_and_balanced_accuracy_are_scikit_learns(rng):
    """Of six classes, one has no images and one is never predicted."""
    labels = rng.choice([0, 1, 2, 3, 5], 200, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    predicted = np.where(rng.random(200) < 0.6, labels, rng.choice([0, 1, 2, 4, 5], 200))
    predicted[predicted == 3] = 0
    confusions = count_confusions(labels, predicted, 6)
    np.testing.assert_array_equal(
        confusions, sklearn_metrics.confusion_matrix(labels, predicted, labels=range(6))
    )
    found = count_classes(labels, predicted, 6)
    *ratios, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(6), zero_division=np.nan
    )
    for mine, theirs in zip((found.precision, found.recall, found.f1), ratios, strict=True):
        np.testing.assert_allclose(mine, theirs)
    np.testing.assert_array_equal(found.support, support)
    assert np.isnan(found.precision[3]) and np.isnan(found.recall[4])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        theirs = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy == pytest.approx(theirs)


def test_the_calibration_error_is_its_definition(rng):
    """Guo et al., equations 2 and 3: bin m of 15 is ((m - 1) / 15, m / 15]."""
    confidence = np.concatenate([rng.random(500), [0.2, 0.4, 1.0, 0.0]])
    is_right = rng.random(504) < confidence**2
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if m == 1:
            inside |= confidence == 0
        if inside.any():
            gap = abs(is_right[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / 504 * gap
    found = reliability(confidence, is_right)
    assert found.images.sum() == 504
    assert found.expected_calibration_error == pytest.approx(expected)
    assert reliability(np.full(4, 0.75), np.array([1, 1, 1, 0], bool)).images[11] == 4
    perfect = reliability(np.full(4, 0.75), np.array([1, 1, 1, 0], bool))
    assert perfect.expected_calibration_error == pytest.approx(0)
    assert np.isnan(reliability(np.array([np.nan]), [True]).expected_calibration_error)


def test_the_most_confident_mistakes_come_first():
    answers = Answers(
        number=np.arange(5),
        label=np.array([0, 0, 1, 1, 1]),
        predicted=np.array([1, 0, 0, 1, 0]),
        confidence=np.array([0.6, 0.99, 0.9, 0.5, 0.6], np.float32),
        metrics={},
    )
    assert answers.mistakes(9).tolist() == [2, 0, 4]
    assert answers.mistakes(1).tolist() == [2]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_temperature_of_scaled_logits_is_their_scale(rng, loss):
    """Labels are drawn by the probabilities of logits; the model gives these times three."""
    logits = rng.normal(0, 1.5, (4000, 4))
    if loss == "softmax":
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = -np.log(shares[np.arange(4000), labels]).mean()
        assert mean_loss(3 * logits, labels, loss, 3.0) == pytest.approx(expected)
        assert fit_temperature(3 * logits, labels, loss) == pytest.approx(3, rel=0.05)
    else:
        labels = logits.argmax(-1)
        targets = np.eye(4)[labels]
        one_by_one = [
            -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1).mean()
            for p in (1 / (1 + np.exp(-logits / t)) for t in (0.5, 1.0, 2.0))
        ]
        found = [mean_loss(logits, labels, loss, t) for t in (0.5, 1.0, 2.0)]
        np.testing.assert_allclose(found, one_by_one)
        best = fit_temperature(logits, labels, loss)
        assert mean_loss(logits, labels, loss, best) <= min(found)


@pytest.mark.parametrize("classes", [2, 20, 70])
def test_a_confusion_matrix_is_drawn_darker_where_more_images_are(classes, tmp_path):
    """All images of the first class are right, and all others are taken for the first."""
    confusions = np.zeros((classes, classes), int)
    confusions[:, 0] = 3
    names = ["$x^$", "日本 <b>", *map(str, range(classes - 2))]
    (tmp_path / "c.png").write_bytes(draw_confusions(confusions, names))
    image = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    blue = (image == [8, 48, 107]).all(-1)  # the end of the colour map
    columns = np.flatnonzero(blue[: image.shape[0]].sum(0) > image.shape[0] / 4)
    assert len(columns) and columns[0] < image.shape[1] / 2


def test_a_reliability_diagram_has_bars_as_high_as_the_accuracy(tmp_path):
    heights = []
    for right in (2, 8):
        found = reliability(np.full(10, 0.5), np.arange(10) < right)
        (tmp_path / "r.png").write_bytes(draw_reliability(found))
        image = np.asarray(Image.open(tmp_path / "r.png").convert("RGB")).astype(int)
        bar = (image == [31, 119, 180]).all(-1)  # Matplotlib's first colour
        heights.append(bar.sum(0)[bar.shape[1] // 2 - 20 : bar.shape[1] // 2 + 60].max())
    assert heights[1] / heights[0] == pytest.approx(4, rel=0.1)
