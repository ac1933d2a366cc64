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

    # How far an accuracy can be off because the test images are a sample.
    from vit_jax.evaluation.intervals import wilson_interval

    # Linear classifiers on frozen features.
    from vit_jax.evaluation.fewshot import FewShot, feature_extractor, few_shot_evaluator
