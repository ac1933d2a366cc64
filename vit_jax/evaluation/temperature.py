"""Temperature scaling: one number that makes a classifier's probabilities match its accuracy.

Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", arXiv
1706.04599, section 4.2.
"""

from __future__ import annotations

import jax
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint

RANGE = (0.05, 20.0)  # of temperatures that are tried


def fit_temperature(logits: np.ndarray, labels: np.ndarray, loss: str) -> float:
    """Returns the temperature T, in `RANGE`, for which the mean loss of logits / T is smallest.

    Args:
      logits: float (n, c), of images that the model was not trained on.
      labels: int (n,), classes from 0.
      loss: what the model was trained with, a key of `objective.LOSSES`.
    """
    from scipy.optimize import minimize_scalar  # not at the start of each command: it takes long

    low, high = np.log(RANGE)
    found = minimize_scalar(
        lambda x: mean_loss(logits, labels, loss, np.exp(x)), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))


def mean_loss(logits: np.ndarray, labels: np.ndarray, loss: str, temperature: float) -> float:
    """Returns the mean loss, in nats, of logits / T. Arguments: see `fit_temperature`."""
    scaled = np.asarray(logits, np.float64) / temperature
    own = np.take_along_axis(scaled, labels[:, None], -1)[:, 0]
    if loss == "sigmoid":  # log(1 + exp(z)) of every class, less z of the image's own
        return float(np.mean(np.logaddexp(0, scaled).sum(-1) - own))
    return float(np.mean(np.logaddexp.reduce(scaled, -1) - own))


def confidence(logits: np.ndarray, loss: str, temperature: float) -> np.ndarray:
    """Returns the probability of the likeliest class, float64 (n,). Arguments: as above."""
    scaled = np.asarray(logits, np.float64) / temperature
    if loss == "sigmoid":
        total = np.logaddexp(0, scaled)  # log(1 + exp(z))
    else:
        total = np.logaddexp.reduce(scaled, -1, keepdims=True)
    return np.exp(scaled - total).max(-1)


def with_temperature(checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    """Returns a checkpoint whose logits are divided by a temperature, by dividing its head."""
    head = jax.tree.map(
        lambda x: (np.asarray(x) / temperature).astype(np.float32), checkpoint.params["head"]
    )
    return checkpoint._replace(params=checkpoint.params | {"head": head})
