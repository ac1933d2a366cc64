"""The closed-form classifier against scikit-learn's, and the evaluation around it."""

import jax
import numpy as np
import pytest
from conftest import random_params, tiny
from sklearn.linear_model import Ridge

from vit_jax.config.defaults import default
from vit_jax.data import pipeline, sources
from vit_jax.evaluation import fewshot
from vit_jax.training import parallel


def problem(rng, examples, features, classes=4):
    """Features of clusters, some of very different scale, and labels that hold every class."""
    labels = np.arange(examples) % classes
    centres = rng.normal(size=(classes, features))
    x = centres[labels] + rng.normal(size=(examples, features))
    return x * rng.uniform(0.01, 100, features) + rng.normal(0, 50, features), labels


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("examples", "features"), [(40, 6), (8, 30), (20, 20)])
def test_the_classifier_is_scikit_learns_ridge(rng, examples, features, penalty):
    x, labels = problem(rng, examples, features)
    probe = fewshot.fit(x, labels, 4, [penalty])
    whitened = (x - x.mean(0)) / (x.std(0) + 1e-5)
    targets = np.where(np.eye(4)[labels] > 0, 1.0, -1.0)
    reference = Ridge(alpha=penalty, solver="svd").fit(whitened, targets)
    np.testing.assert_allclose(probe.weights, reference.coef_.T, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(probe.bias, reference.intercept_, rtol=1e-7, atol=1e-10)
    new, _ = problem(rng, 50, features)
    expected = reference.predict((new - x.mean(0)) / (x.std(0) + 1e-5)).argmax(1)
    np.testing.assert_array_equal(probe.predict(new), expected)


@pytest.mark.parametrize(("examples", "features"), [(40, 6), (8, 30)])
def test_a_fixed_strength_regularises_the_bias_as_the_public_code(rng, examples, features):
    """The bias is the weight of a feature that is always 100, scikit-learn has no other."""
    x, labels = problem(rng, examples, features)
    labels[:3] = labels[3]  # classes of other sizes have other biases
    probe = fewshot.fit_with_penalty(x, labels, 4, 1024.0)

    def prepared(new):
        return np.pad((new - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100)

    targets = 2 * np.eye(4)[labels] - 1
    reference = Ridge(alpha=1024.0, fit_intercept=False, solver="svd").fit(prepared(x), targets)
    np.testing.assert_allclose(probe.weights, reference.coef_[:, :-1].T, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(probe.bias, 100 * reference.coef_[:, -1], rtol=1e-6, atol=1e-10)
    new, _ = problem(rng, 50, features)
    np.testing.assert_array_equal(probe.predict(new), reference.predict(prepared(new)).argmax(1))
    assert probe.penalty == 1024.0


@pytest.mark.parametrize(("examples", "features"), [(24, 6), (12, 40)])
def test_the_strength_predicts_left_out_examples_best(rng, examples, features):
    """By leaving each example out for real and fitting scikit-learn's ridge to the others."""
    x, labels = problem(rng, examples, features)
    penalties = [1e-3, 0.1, 1.0, 10.0, 100.0, 1e4]
    whitened = (x - x.mean(0)) / (x.std(0) + 1e-5)
    targets = 2 * np.eye(4)[labels] - 1
    errors = []
    for penalty in penalties:
        total = 0.0
        for i in range(examples):
            rest = np.arange(examples) != i
            model = Ridge(alpha=penalty, solver="svd").fit(whitened[rest], targets[rest])
            total += np.square(model.predict(whitened[i : i + 1]) - targets[i]).sum()
        errors.append(total)
    assert fewshot.fit(x, labels, 4, penalties).penalty == penalties[int(np.argmin(errors))]


def test_one_shot_compares_with_the_examples(rng):
    """With one example a class and features that differ in one number, the nearest one wins."""
    x = np.eye(5) + 3
    probe = fewshot.fit(x, np.arange(5), 5)
    new = np.eye(5)[[3, 1, 1, 4]] + 3 + rng.normal(0, 0.1, (4, 5))
    distances = np.linalg.norm(new[:, None] - x, axis=-1)
    np.testing.assert_array_equal(probe.predict(new), distances.argmin(1))


class Labelled:
    """A source of labels without images, which counts how many are read."""

    def __init__(self, labels):
        self.labels, self.read = labels, 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read += 1
        return sources.Example(b"", int(self.labels[index]), f"#{index}")


def test_examples_are_drawn_of_each_class_and_nested(rng):
    source = Labelled(rng.integers(0, 5, 300))
    most = fewshot.draw_examples(source, 5, 10, seed=3)
    assert (source.labels[most] == np.arange(5)[:, None]).all()
    assert len(np.unique(most)) == 50
    np.testing.assert_array_equal(fewshot.draw_examples(source, 5, 4, seed=3), most[:, :4])
    assert (fewshot.draw_examples(source, 5, 10, seed=4) != most).any()


def test_drawing_stops_when_it_has_enough(rng):
    source = Labelled(rng.integers(0, 2, 10_000))
    fewshot.draw_examples(source, 2, 3, seed=0)
    assert source.read < 100


def test_a_class_with_too_few_examples_is_named():
    source = Labelled(np.array([0] * 9 + [1] * 3))
    with pytest.raises(ValueError, match=r"5 examples of each class.*3 of class 1"):
        fewshot.draw_examples(source, 2, 5, seed=0)


def test_features_of_eight_devices_are_those_of_one(batch):
    model = tiny()
    params = random_params(model)
    extract = fewshot.feature_extractor(model)
    expected = jax.jit(extract)(params, batch)
    program = parallel.pmap(extract_features=extract)
    found = program.extract_features(program.place(params), program.put_batch(batch))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
    plain = tiny(num_classes=0).apply(
        {"params": params}, batch["image"].astype(np.float32) / 127.5 - 1
    )
    np.testing.assert_allclose(found["features"], plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_evaluation_learns_from_the_drawn_and_tests_on_all(image_folder, processes):
    """With the images' mean colours as features, by hand; as batches of two processes, too.

    Two processes' batches come to every process one after the other: what pads is among them.
    """
    dataset = sources.open_dataset(str(image_folder))
    train, test = dataset.source("train[:60]"), dataset.source("train[60:]")
    options = default().data
    options.image_size = 16

    def batches(source, num_classes):
        parts = [
            pipeline.eval_batches(
                source,
                options,
                num_classes=num_classes,
                batch_size=4,
                shard=pipeline.Shard(p, processes),
            )
            for p in range(processes)
        ]

        def together():
            for group in zip(*parts, strict=True):
                yield jax.tree.map(lambda *x: np.concatenate(x), *group)

        return list(together())

    def extract(batch):
        colours = batch["image"].astype(np.float64).mean((1, 2))
        return {"features": colours, "label": batch["label"], "mask": batch["mask"]}

    evaluation = fewshot.FewShot(train, test, num_classes=3, shots=(1, 4), seeds=2, batches=batches)
    scores = evaluation.measure(extract)
    assert [(s.shots, s.seed) for s in scores] == [(1, 0), (1, 1), (4, 0), (4, 1)]

    def colours(source, indices):
        one = fewshot._Numbered(source, np.asarray(indices))
        features, number = fewshot.collect(extract, batches(one, num_classes=len(indices)))
        return features[np.argsort(number)]

    for score in scores:
        drawn = fewshot.draw_examples(train, 3, 4, score.seed)[:, : score.shots]
        x = colours(train, drawn.ravel())
        probe = fewshot.fit(x, np.repeat([0, 1, 2], score.shots), 3)
        labels = np.array([test[i].label for i in range(len(test))])
        right = probe.predict(colours(test, np.arange(len(test)))) == labels
        assert score.accuracy == pytest.approx(right.mean())
        assert score.images == len(right) == 20
    assert np.mean([s.accuracy for s in scores if s.shots == 4]) > 0.9  # three colours


def test_the_summary_is_mean_and_deviation_over_the_draws():
    scores = [
        fewshot.Score(1, 0, 1.0, 0.5, 10),
        fewshot.Score(1, 1, 1.0, 0.7, 10),
        fewshot.Score(5, 0, 1.0, 0.9, 10),
        fewshot.Score(5, 1, 1.0, 0.9, 10),
    ]
    summary = fewshot.summarize(scores)
    assert summary["fewshot_1"] == pytest.approx((0.6, 0.1))
    assert summary["fewshot_5"] == pytest.approx((0.9, 0.0))
