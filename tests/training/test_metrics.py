"""A metric is one row: its sum is computed on the devices, its value on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES, random_params, tiny

from vit_jax.evaluation.split_metrics import on_test_split
from vit_jax.training.classification import classification
from vit_jax.training.metrics import METRICS, Metric

BINS = 5


def bins(logits, labels):
    """Of each example, in its bin of confidence: 1, the confidence, and whether it is right."""
    confidence = jax.nn.softmax(logits).max(-1)
    at = jax.nn.one_hot(jnp.minimum(confidence * BINS, BINS - 1).astype(int), BINS)
    correct = logits.argmax(-1) == labels
    return at[..., None] * jnp.stack([jnp.ones_like(confidence), confidence, correct], -1)[:, None]


def calibration_error(total, count):
    return float(np.abs(total[:, 1] - total[:, 2]).sum() / count)


def test_a_row_is_a_metric_with_its_column(monkeypatch, batch):
    """Expected calibration error, which is no mean over examples (Guo et al., arXiv 1706.04599)."""
    monkeypatch.setitem(METRICS, "ece", Metric(bins, calibration_error))
    model = tiny()
    params = random_params(model)
    objective = classification(model)
    assert "test_ece" in on_test_split(objective, None, [], every=1).columns
    # As two batches: the sums are added up before the metric is computed.
    halves = [jax.tree.map(lambda x, at=at: x[at::2], batch) for at in (0, 1)]
    sums = [jax.jit(objective.evaluate)(params, half) for half in halves]
    total = jax.tree.map(lambda *x: np.sum([np.asarray(y, np.float64) for y in x], axis=0), *sums)
    found = objective.summarize(total)["ece"]

    kept = batch["mask"]
    logits = model.apply({"params": params}, batch["image"][kept].astype(np.float32) / 127.5 - 1)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    confidence, right = p.max(-1), p.argmax(-1) == batch["label"][kept]
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence >= low) & (confidence < low + 1 / BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_metric_for_more_classes_is_left_out(batch):
    small = {**batch, "label": batch["label"] % 3}
    for classes in (3, CLASSES):
        model = tiny(num_classes=classes)
        objective = classification(model)
        sums = objective.evaluate(random_params(model), small)
        assert ("top5_accuracy" in objective.summarize(sums)) == (classes > 5)
