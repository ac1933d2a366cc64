"""Few-shot linear evaluation of frozen features (paper 4.1), solved in closed form.

A regularised least-squares regression maps the features of a few images of each class to targets
in {-1, 1}, one for each class. The largest output is the prediction. The solution is computed in
float64 on the host. The paper doesn't say how strong the regularisation is: `fit` chooses it, and
`fit_with_penalty` takes it, as the public code does.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.data import sources
from vit_jax.data.batch import Batch
from vit_jax.data.checks import require_one_label
from vit_jax.data.dataset import Dataset, Example, Source, classes_of
from vit_jax.data.pipeline import decode_example
from vit_jax.evaluation.evaluator import Evaluator
from vit_jax.models.patches import to_float
from vit_jax.training.parallel import Parallel

logger = logging.getLogger(__name__)

# The strengths of regularisation that are tried, for features of variance one.
PENALTIES = tuple(4.0**exponent for exponent in range(-5, 13))
_CONSTANT = 100.0  # the feature whose weight is the bias in the public code


class Score(NamedTuple):
    """The accuracy of a classifier on `images` test images, and its strength of regularisation."""

    shots: int
    seed: int
    penalty: float
    accuracy: float
    images: int


class Probe(NamedTuple):
    """A linear classifier: outputs (n, c) = (features (n, d) - mean) / scale @ weights + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns the classes (n,) of features (n, d)."""
        standardised = (np.asarray(features, np.float64) - self.mean) / self.scale
        return (standardised @ self.weights + self.bias).argmax(-1)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Probe:
    """Returns the least-squares classifier with the best strength of regularisation.

    Each feature is first scaled to mean 0 and variance 1. The bias is not regularised. The best
    strength has the smallest squared leave-one-out error, which has a closed form (Allen 1974,
    PRESS). No test image is used for the choice.

    Args:
      features: (n, d).
      labels: int (n,), below `num_classes`.
      num_classes: c.
      penalties: the strengths to try: factors of the squared norm of the weights.
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


def fit_with_penalty(
    features: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float
) -> Probe:
    """Returns the least-squares classifier of a strength of regularisation, as the public code has.

    It is big_vision's `fewshot_lsr`, whose usual strength is 1024. Features are scaled as in `fit`.
    The bias is the weight of one more feature, which is 100 in all images: it is regularised, too.

    Args:
      features, labels, num_classes: as for `fit`.
      penalty: factor of the squared norm of the weights.
    """
    x = np.asarray(features, np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-5
    x = np.pad((x - mean) / scale, ((0, 0), (0, 1)), constant_values=_CONSTANT)
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0
    weights = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), targets)
    return Probe(mean, scale, weights[:-1], _CONSTANT * weights[-1], penalty)


def draw_examples(
    source: Source, num_classes: int, shots: int, seed: int, *, skip: bool = False
) -> np.ndarray:
    """Draws `shots` examples of each class without replacement; returns their numbers (c, shots).

    With fewer shots, the same seed draws the first columns.

    Args:
      source: the examples to draw from.
      num_classes: c.
      shots: the number of examples per class.
      seed: the seed of the draw.
      skip: passes over images that can't be decoded, for `config.data.on_error="skip"`.

    Raises:
      ValueError: a class has fewer examples. The message names it.
    """
    found: list[list[int]] = [[] for _ in range(num_classes)]
    missing = num_classes * shots
    for index in np.random.Generator(np.random.Philox(seed)).permutation(len(source)):
        if not missing:
            break
        try:
            example = decode_example(source, int(index))[1] if skip else source[index]
        except ValueError:
            if skip:
                continue
            raise
        (label,) = classes_of(example.label)
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
    """Returns the function (params, batch) -> features, labels and masks of the batch.

    `features` (b, d) float32 is the input of the head; `label` and `mask` are (b,).
    """
    headless = model.clone(num_classes=0)

    def extract_features(params, batch):
        images = to_float(batch["image"])
        features = headless.apply({"params": params}, images, train=False)
        return {"features": features, "label": batch["label"], "mask": batch["mask"]}

    return extract_features


class FewShot:
    """Few-shot evaluation on one data set. The examples are drawn once, for all measurements.

    Args:
      train: examples to learn from.
      test: examples to test on.
      num_classes: c.
      shots: how many examples of each class the classifiers learn from.
      seeds: how many times the examples are drawn. There is a classifier for each draw and
        each number of shots.
      batches: (source, num_classes=) -> evaluation batches of the source.
      penalty: see `fit_with_penalty`. None chooses it, see `fit`.
      skip: see `draw_examples`.
      test_split: what summaries call the test examples, such as "train[85%:]".

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
        penalty: float | None = None,
        skip: bool = False,
        test_split: str = "",
    ):
        self.test_split = test_split
        self._fit = functools.partial(fit_with_penalty, penalty=penalty) if penalty else fit
        self._num_classes, self._shots = num_classes, tuple(shots)
        self._draws = np.stack(
            [
                draw_examples(train, num_classes, max(shots), seed, skip=skip)
                for seed in range(seeds)
            ]
        )
        used, at = np.unique(self._draws, return_inverse=True)
        self._draws = at.reshape(self._draws.shape)  # numbers among those used
        self._train = batches(_Numbered(train, used), num_classes=len(used))
        self._test = batches(test, num_classes=num_classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the accuracies, one for each number of shots."""
        return tuple(f"fewshot_{shots}" for shots in self._shots)

    def measure(self, extract: Callable[[Batch], Batch]) -> list[Score]:
        """Returns the scores of all shots and seeds.

        Args:
          extract: batch -> `features`, `label` and `mask` on the host; see `on_devices`.
        """
        features, number = collect(extract, self._train)
        train_features = features[np.argsort(number)]
        test_features, test_labels = collect(extract, self._test)
        scores = []
        for shots in self._shots:
            for seed, drawn in enumerate(self._draws):
                labels = np.repeat(np.arange(self._num_classes), shots)
                drawn_features = train_features[drawn[:, :shots].ravel()]
                probe = self._fit(drawn_features, labels, self._num_classes)
                accuracy = float((probe.predict(test_features) == test_labels).mean())
                scores.append(Score(shots, seed, probe.penalty, accuracy, len(test_labels)))
        return scores


def open_few_shot(
    config: ConfigDict, batches: Callable[..., Iterable[Batch]], dataset: Dataset | None = None
) -> FewShot:
    """Opens the data of `config.fewshot`, logs their splits, and draws the examples.

    Args:
      config: reads `fewshot`. If `fewshot.name` is None, the data set is `data.name`, with its
        splits.
      batches: see `FewShot`.
      dataset: what `data.name` stands for. None opens what it names.

    Raises:
      ValueError: a class has too few examples, or the data can't be used.
      FileNotFoundError: there is no data.
    """
    dataset, (train_split, train), (test_split, test) = few_shot_splits(config, dataset)
    require_one_label(train, config.fewshot.name or config.data.name)
    logger.info(
        "few-shot evaluation on %s: examples are drawn from %s (%d images), tested on %s (%d "
        "images)",
        *(config.fewshot.name or config.data.name, train_split, len(train), test_split, len(test)),
    )
    return FewShot(
        train,
        test,
        num_classes=len(dataset.class_names),
        shots=config.fewshot.shots,
        seeds=config.fewshot.seeds,
        penalty=config.fewshot.penalty,
        batches=batches,
        skip=config.data.on_error == "skip",
        test_split=test_split,
    )


def few_shot_splits(
    config: ConfigDict, dataset: Dataset | None = None
) -> tuple[Dataset, tuple[str, Source], tuple[str, Source]]:
    """Returns the data set of `config.fewshot`, and its two splits with their examples.

    Arguments and errors: see `open_few_shot`.
    """
    splits = config.data if config.fewshot.name is None else default().data
    if dataset is None or config.fewshot.name is not None:
        name = config.fewshot.name or config.data.name
        dataset = sources.open_dataset(name, config.data.dir)
    train = sources.open_source(dataset, "train", config.fewshot.train or splits.train)
    test = sources.open_source(dataset, "test", config.fewshot.test or splits.test)
    return dataset, train, test


def on_devices(program: Parallel, params: Any) -> Callable[[Batch], Batch]:
    """Returns the function batch -> features, labels and masks on the host.

    Args:
      program: its `extract_features` is a `feature_extractor`'s.
      params: placed on the devices.
    """
    return lambda batch: program.gather(program.extract_features(params, program.put_batch(batch)))


def few_shot_evaluator(few_shot: FewShot, program: Parallel, every: int) -> Evaluator:
    """Returns the evaluator of few-shot accuracy: the mean over the draws, by `fewshot_SHOTS`."""

    def run(state):
        scores = summarize(few_shot.measure(on_devices(program, state.params)))
        return {name: mean for name, (mean, _) in scores.items()}

    return Evaluator("fewshot", every, few_shot.columns, run)


def summarize(scores: Sequence[Score]) -> dict[str, tuple[float, float]]:
    """Returns the mean and the standard deviation over the seeds, by `fewshot_SHOTS`."""
    by_shots: dict[str, list[float]] = {}
    for score in scores:
        by_shots.setdefault(f"fewshot_{score.shots}", []).append(score.accuracy)
    return {name: (float(np.mean(x)), float(np.std(x))) for name, x in by_shots.items()}


class _Numbered:
    """Some examples of a source. The label of each is its number among them.

    The batches of several processes come in another order. The number identifies the example.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> Example:
        return self._source[int(self._indices[number])]._replace(label=int(number))


def collect(
    extract: Callable[[Batch], Batch], batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features (n, d) and labels (n,) of all examples, without the padding."""
    parts = [extract(batch) for batch in batches]
    features, labels, mask = (
        np.concatenate([part[name] for part in parts]) for name in ("features", "label", "mask")
    )
    return features[mask], labels[mask]
