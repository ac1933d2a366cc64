"""How good a model is: metrics on a split, and few-shot accuracy."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # What the training loop measures on the way.
    from vit_jax.evaluation.evaluator import Evaluator, is_due

    # The objective's metrics on a split.
    from vit_jax.evaluation.split_metrics import (
        sum_over_batches,
        on_test_split,
        polyak_on_test_split,
    )

    # Each image's answer of a classifier, and what follows: metrics of classes, calibration.
    from vit_jax.evaluation.answers import Answers, answer_extractor, answer_split
    from vit_jax.evaluation.calibration import Reliability, reliability
    from vit_jax.evaluation.class_metrics import ClassMetrics, count_classes, count_confusions

    # How far an accuracy can be off because the test images are a sample.
    from vit_jax.evaluation.intervals import wilson_interval

    # Linear classifiers on frozen features.
    from vit_jax.evaluation.fewshot import FewShot, feature_extractor, few_shot_evaluator

    # Nearest neighbours among frozen features.
    from vit_jax.evaluation.neighbours import Neighbours, classify_by_neighbours
