"""pending"""

from __future__ import annotations

import numpy as np


def mean_metrics(window: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the training columns of a row: means over the steps since the last row.

    Refused ones are left out, if there are others.
    """
    last = window[-1]
    window = [metrics for metrics in window if not metrics["nonfinite"]] or window
    columns = {
        name: float(np.mean([m[name] for m in window]))
        for name in last
        if name not in ("nonfinite", "skipped")
    }
    for name in {"loss", "accuracy"} & set(columns):
        columns[f"train_{name}"] = columns.pop(name)
    columns["learning_rate"] = float(last["learning_rate"])
    columns["skipped_updates"] = int(last["skipped"])
    return columns
