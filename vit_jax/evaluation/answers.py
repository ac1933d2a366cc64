"""What a classifier answers for each image of a split, whose images have one label each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.batch import Batch
from vit_jax.evaluation.calibration import Reliability, reliability
from vit_jax.evaluation.class_metrics import ClassMetrics, count_classes, count_confusions
from vit_jax.models.patches import to_float
from vit_jax.training.metrics import choose_metrics
from vit_jax.training.objective import PROBABILITIES, DeviceBatch
from vit_jax.training.parallel import Parallel


class Answers(NamedTuple):
    """A classifier's answers: arrays (n,), one entry an image, in the order of the split.

    Attributes:
      number: int32, the image's index in the split.
      label: int32, its class.
      predicted: int32, the class with the largest logit.
      confidence: float32, the probability of that class.
      metrics: float or bool, by the name of a metric of `metrics.METRICS`.
      logits: float32 (n, c), None if they were not asked for.
    """

    number: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    metrics: dict[str, np.ndarray]
    logits: Any = None

    @property
    def images(self) -> int:
        """The number of images, n."""
        return len(self.label)

    @property
    def is_right(self) -> np.ndarray:
        """Bool (n,), True where the predicted class is the true one."""
        return self.predicted == self.label

    @property
    def reliability(self) -> Reliability:
        """See `calibration.reliability`."""
        return reliability(self.confidence, self.is_right)

    def confusions(self, num_classes: int) -> np.ndarray:
        """Returns the confusion matrix, see `class_metrics.count_confusions`."""
        return count_confusions(self.label, self.predicted, num_classes)

    def classes(self, num_classes: int) -> ClassMetrics:
        """Returns the metrics of each class, see `class_metrics.count_classes`."""
        return count_classes(self.label, self.predicted, num_classes)

    def summarize(self, num_classes: int) -> dict[str, float]:
        """Returns the metrics of the split: means over the images, and two that are none.

        These are `balanced_accuracy` and `expected_calibration_error`.
        """
        means = {x: float(np.mean(values, dtype=np.float64)) for x, values in self.metrics.items()}
        return means | {
            "balanced_accuracy": self.classes(num_classes).balanced_accuracy,
            "expected_calibration_error": self.reliability.expected_calibration_error,
        }

    def mistakes(self, most: int) -> np.ndarray:
        """Returns places in the arrays, of the wrong answers with the largest confidence first."""
        wrong = np.flatnonzero(~self.is_right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]


def answer_extractor(
    model: nn.Module, loss: str, *, keep_logits: bool = False
) -> Callable[[Any, DeviceBatch], DeviceBatch]:
    """Returns the function (params, batch) -> what `Answers` holds of each image of a batch.

    Args:
      model: images (b, h, w, 3) -> logits (b, c).
      loss: what it was trained with, a key of `objective.LOSSES`.
      keep_logits: True if `Answers.logits` are needed.
    """
    metrics = choose_metrics(loss)

    def answer(params, batch):
        logits: Any = model.apply({"params": params}, to_float(batch["image"]), train=False)
        predicted = logits.argmax(-1)
        probabilities = PROBABILITIES[loss](logits)
        return {
            **{name: x for name, x in batch.items() if name != "image"},
            **({"logits": logits} if keep_logits else {}),
            "predicted": predicted,
            "confidence": jnp.take_along_axis(probabilities, predicted[:, None], -1)[:, 0],
            "metrics": {
                name: metric.per_example(logits, batch["label"])
                for name, metric in metrics.items()
                if logits.shape[-1] >= metric.min_classes
            },
        }

    return answer


def answer_split(program: Parallel, params: Any, batches: Iterable[Batch]) -> Answers:
    """Returns the answers for all images of a split, without those that were skipped.

    Args:
      program: its `extract_features` is an `answer_extractor`'s.
      params: placed on the devices.
      batches: of `pipeline.eval_batches`: this process's.
    """
    parts: list[Any] = []
    pending = None
    for step, batch in enumerate(batches):
        # The processes take turns in the order of the split.
        places = step * len(batch["mask"]) + np.arange(len(batch["mask"]), dtype=np.int32)
        number = places * jax.process_count() + jax.process_index()
        found = program.extract_features(params, program.put_batch({**batch, "number": number}))
        if pending is not None:  # wait for a batch only when the next one is on its way
            parts.append(program.gather(pending))
        pending = found
    parts.append(program.gather(pending))
    found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    order = np.argsort(found["number"])
    chosen = order[found.pop("mask")[order]]
    return Answers(**jax.tree.map(lambda x: x[chosen], found))
