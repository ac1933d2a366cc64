"""Accuracy"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

from vit_jax.data import pipeline
from vit_jax.training import parallel
from vit_jax.training.objective import Metrics


def means(sums: dict[str, Any]) -> dict[str, float]:
    """Returns `loss` and, where counted, `accuracy` and `top5_accuracy` of an objective's sums."""
    names = {"loss": "loss", "correct": "accuracy", "top5": "top5_accuracy"}
    count = float(sums["count"])
    return {name: float(sums[key]) / count for key, name in names.items() if key in sums}


def sums_over(
    program: parallel.Parallel, params: Any, batches: Iterable[pipeline.Batch]
) -> dict[str, Any]:
    """Returns the sums of an objective's `evaluate` over all batches, on the host."""
    total = collections.Counter()

    def add(sums):
        for name, value in program.gather(sums).items():
            total[name] += value.astype(np.float64)

    running = None
    for batch in batches:
        following = program.evaluate(params, program.put_batch(batch))
        if running is not None:  # wait for a batch only when the next is on its way
            add(running)
        running = following
    add(running)
    return total


def test_columns(sums: Metrics) -> dict[str, float]:
    return {f"test_{name}": value for name, value in means(sums).items()}


def polyak_columns(sums: Metrics) -> dict[str, float]:
    return {f"polyak_{name}": value for name, value in test_columns(sums).items()}
