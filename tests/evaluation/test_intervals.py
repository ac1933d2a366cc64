"""The interval of an accuracy against SciPy's, its defining equation, and simulated tests."""

import numpy as np
import pytest
from scipy import optimize, stats

from vit_jax.evaluation.intervals import in_percent, wilson_interval, with_interval


@pytest.mark.parametrize("confidence", [0.68, 0.95, 0.999])
@pytest.mark.parametrize(("correct", "count"), [(0, 1), (1, 1), (30, 36), (190, 240), (648, 648)])
def test_the_interval_is_scipys(correct, count, confidence):
    expected = stats.binomtest(correct, count).proportion_ci(confidence, method="wilson")
    found = wilson_interval(correct / count, count, confidence)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("share", "count"), [(0.833, 36), (0.6543, 648), (0.01, 5)])
def test_at_its_ends_the_observed_share_is_as_unlikely_as_asked(share, count):
    """Solves Wilson's equation for p with SciPy; the shares are no whole numbers of images."""

    def distance(p):
        return abs(share - p) / np.sqrt(p * (1 - p) / count) - stats.norm.ppf(0.975)

    low = optimize.brentq(distance, 1e-12, share - 1e-12)
    high = optimize.brentq(distance, share + 1e-12, 1 - 1e-12)
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=1e-9)


def test_95_of_100_intervals_hold_the_true_accuracy(rng):
    correct = rng.binomial(200, 0.8, size=4000)
    held = [low <= 0.8 <= high for low, high in (wilson_interval(k / 200, 200) for k in correct)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_two_numbers_of_a_trial_agree_within_their_intervals():
    """83.3 % of 36 images and 79.2 % of 240: the first is uncertain by 12 points."""
    assert in_percent(30 / 36, 36) == "83.3 (68.1 to 92.1)"
    assert in_percent(190 / 240, 240) == "79.2 (73.6 to 83.8)"
    columns = with_interval("accuracy", 0.5, 10)
    assert list(columns) == ["accuracy", "accuracy_low", "accuracy_high"]
    assert columns["accuracy_low"] + columns["accuracy_high"] == pytest.approx(1)
