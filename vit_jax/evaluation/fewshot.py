"""Few-shot"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from vit_jax.data import transforms
from vit_jax.data.pipeline import Batch
from vit_jax.data.sources import Example, Source
from vit_jax.models.patches import to_float

# Strengths of the regularisation to choose from, relative to features of variance one.
PENALTIES = tuple(4.0**exponent for exponent in range(-5, 13))


class Score(NamedTuple):
    """The accuracy of one classifier on the test images, and the strength chosen for it."""

    shots: int
    seed: int
    penalty: float
    accuracy: float


class Probe(NamedTuple):
    """A linear classifier: outputs (n, c) = (features (n, d) - mean) / scale @ weights + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the classes (n,) of features (n, d)."""
        whitened = (np.asarray(features, np.float64) - self.mean) / self.scale
        return (whitened @ self.weights + self.bias).argmax(-1)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Probe:
    """Returns the regularised least-squares classifier of the best of some strengths.

    Each feature is brought to mean 0 and variance 1 first. The bias isn't regularised. The best
    strength has the smallest squared error when each example is predicted by the others: this has
    a closed form, too (Allen 1974, PRESS), and looks at no test image.

    Args:
      features: (n, d).
      labels: int (n,), below `num_classes`.
      num_classes: c.
      penalties: what multiplies the squared norm of the weights.
    """
    x = np.asarray(features, np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-5
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0
    bias = targets.mean(0)
    u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
    projected = u.T @ (targets - bias)

    def left_out_error(penalty):
        shrink = s**2 / (s**2 + penalty)
        errors = targets - bias - u @ (shrink[:, None] * projected)
        leverage = 1 / len(x) + np.square(u) @ shrink
        return np.square(errors / np.maximum(1 - leverage, 1e-9)[:, None]).sum()

    best = min(penalties, key=left_out_error)
    weights = vt.T @ ((s / (s**2 + best))[:, None] * projected)
    return Probe(mean, scale, weights, bias, best)


def draw(
    source: Source, num_classes: int, shots: int, seed: int, *, skip: bool = False
) -> np.ndarray:
    """Returns the numbers (c, shots) of `shots` examples of each class, drawn without replacement.

    The first columns are what fewer shots with the same seed would draw.

    Args:
      source: of the examples.
      num_classes: c.
      shots: of each class.
      seed: of the draw.
      skip: draws no image that can't be decoded, as `config.data.on_error="skip"` wants.

    Raises:
      ValueError: a class has fewer examples; it is named.
    """
    found: list[list[int]] = [[] for _ in range(num_classes)]
    missing = num_classes * shots
    for index in np.random.Generator(np.random.Philox(seed)).permutation(len(source)):
        if not missing:
            break
        try:
            example = source[index]
            if skip:
                transforms.decode(example.image)
        except ValueError:
            if skip:
                continue
            raise
        label = example.label
        if 0 <= label < num_classes and len(found[label]) < shots:
            found[label].append(int(index))
            missing -= 1
    if missing:
        few = {label: len(x) for label, x in enumerate(found) if len(x) < shots}
        raise ValueError(
            f"fewshot.shots asks for {shots} examples of each class, but the training split has "
            + ", ".join(f"{n} of class {label}" for label, n in list(few.items())[:5])
            + ("…" if len(few) > 5 else "")
            + ". Ask for fewer shots."
        )
    return np.array(found)


def feature_extractor(model: nn.Module) -> Callable[[Any, Batch], Batch]:
    """Returns (params, batch) -> the representations, labels and masks of its examples.

    They are `features` (b, d) float32, what the head would read, and `label` and `mask` (b,).
    """
    headless = model.clone(num_classes=0)

    def representations(params, batch):
        images = to_float(batch["image"])
        features = headless.apply({"params": params}, images, train=False)
        return {"features": features, "label": batch["label"], "mask": batch["mask"]}

    return representations


class FewShot:
    """The evaluation of one model's representations on one data set, as often as wanted.

    Args:
      train, test: sources of the examples to learn from and to be tested on.
      num_classes: c.
      shots: numbers of examples of each class.
      seeds: how often they are drawn; the classifiers of all draws are tested.
      batches: (source, num_classes=) -> evaluation batches of it, such as `data.eval_batches`.
      skip: see `draw`.

    Raises:
      ValueError: a class has too few examples.
    """

    def __init__(
        self,
        train: Source,
        test: Source,
        *,
        num_classes: int,
        shots: Sequence[int],
        seeds: int,
        batches: Callable[..., Iterable[Batch]],
        skip: bool = False,
    ):
        self._num_classes, self._shots = num_classes, tuple(shots)
        self._draws = np.stack(
            [draw(train, num_classes, max(shots), seed, skip=skip) for seed in range(seeds)]
        )
        used, at = np.unique(self._draws, return_inverse=True)
        self._draws = at.reshape(self._draws.shape)  # numbers among those used
        self._train = batches(_Numbered(train, used), num_classes=len(used))
        self._test = batches(test, num_classes=num_classes)

    def __call__(self, represent: Callable[[Batch], Batch]) -> list[Score]:
        """Returns the scores of all shots and seeds.

        Args:
          represent: batch -> what `feature_extractor(model)` returns for it, on the host.
        """
        features, number = _gather(represent, self._train)
        train_features = features[np.argsort(number)]
        test_features, test_labels = _gather(represent, self._test)
        scores = []
        for shots in self._shots:
            for seed, drawn in enumerate(self._draws):
                labels = np.repeat(np.arange(self._num_classes), shots)
                probe = fit(train_features[drawn[:, :shots].ravel()], labels, self._num_classes)
                accuracy = (probe.predict(test_features) == test_labels).mean()
                scores.append(Score(shots, seed, probe.penalty, float(accuracy)))
        return scores


def summary(scores: Sequence[Score]) -> dict[str, tuple[float, float]]:
    """Returns the mean and standard deviation over the seeds, by `fewshot_SHOTS`."""
    by_shots: dict[str, list[float]] = {}
    for score in scores:
        by_shots.setdefault(f"fewshot_{score.shots}", []).append(score.accuracy)
    return {name: (float(np.mean(x)), float(np.std(x))) for name, x in by_shots.items()}


class _Numbered:
    """Some examples of a source; each has its number among them in the place of its label.

    Batches of several processes come in another order: the numbers tell which example is which.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> Example:
        return self._source[int(self._indices[number])]._replace(label=int(number))


def _gather(
    represent: Callable[[Batch], Batch], batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features (n, d) and labels (n,) of all examples, without what fills up."""
    parts = [represent(batch) for batch in batches]
    features, labels, mask = (
        np.concatenate([part[name] for part in parts]) for name in ("features", "label", "mask")
    )
    return features[mask], labels[mask]
