"""The sigmoid cross-entropy, for one label an image and for several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, random_params, tiny

from vit_jax.training import parallel
from vit_jax.training.classification import classification
from vit_jax.training.mixup import Mixing
from vit_jax.training.objective import LOSSES, sigmoid_cross_entropy
from vit_jax.training.setup import OBJECTIVES
from vit_jax.training.step import TrainState, make_update


@pytest.fixture
def labels(rng):
    """Several labels of sixteen images, of the second none."""
    labels = rng.random((16, CLASSES)) < 0.4
    labels[1] = False
    return labels


def by_hand(logits, targets):
    """Loss (b,) and its gradient (b, c) by the logits, in float64, without log(sigmoid)."""
    share = 1 / (1 + np.exp(-logits))
    loss = -(targets * np.log(share) + (1 - targets) * np.log(1 - share)).sum(-1)
    return loss, share - targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("several", [False, True])
def test_the_loss_and_its_gradient_by_numpy(rng, labels, smoothing, several):
    logits = 3 * rng.normal(size=(16, CLASSES))
    label = labels if several else rng.integers(0, CLASSES, 16)
    hot = labels.astype(float) if several else np.eye(CLASSES)[label]
    loss, gradient = by_hand(logits, (1 - smoothing) * hot + smoothing / CLASSES)
    logits = logits.astype(np.float32)
    np.testing.assert_allclose(
        sigmoid_cross_entropy(logits, jnp.asarray(label), smoothing), loss, rtol=2e-6
    )
    found = jax.grad(lambda x: sigmoid_cross_entropy(x, jnp.asarray(label), smoothing).sum())(
        logits
    )
    np.testing.assert_allclose(found, gradient, atol=1e-6)


def test_one_label_is_a_row_with_one_class_and_large_logits_stay_finite(rng):
    label = rng.integers(0, CLASSES, 16)
    logits = (300 * rng.normal(size=(16, CLASSES))).astype(np.float32)
    hot = jnp.eye(CLASSES, dtype=bool)[label]
    expected = sigmoid_cross_entropy(logits, hot, 0.1)
    np.testing.assert_allclose(sigmoid_cross_entropy(logits, label, 0.1), expected, rtol=1e-6)
    assert np.isfinite(expected).all()
    bits = jnp.asarray(logits, jnp.bfloat16)
    assert sigmoid_cross_entropy(bits, label).dtype == jnp.float32


def test_a_head_bias_of_minus_ten_starts_at_the_loss_of_the_prior():
    """ImageNet-21k's 21,843 classes with one label: 10 nats for it, about 1 for all others."""
    loss = sigmoid_cross_entropy(jnp.full((1, 21_843), -10.0), jnp.array([5]))
    expected = np.log1p(np.exp(10.0)) + 21_842 * np.log1p(np.exp(-10.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_sigmoid_of_many_classes_takes_no_more_memory_than_the_softmax():
    """Of a head's gradient: no array (b, c) of float32 more than the softmax has."""
    b, d, c = 64, 32, 21_843
    args = jax.ShapeDtypeStruct((d, c), np.float32), jax.ShapeDtypeStruct((b, d), np.float32)

    def memory(loss, label):
        def total(kernel, x, label):
            return LOSSES[loss](x @ kernel, label, 0.1).mean()

        compiled = jax.jit(jax.grad(total)).lower(*args, label).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one = jax.ShapeDtypeStruct((b,), np.int32)
    several = jax.ShapeDtypeStruct((b, c), np.bool_)
    rows = b * c * 4
    assert memory("sigmoid", one) <= memory("softmax", one) + 0.1 * rows
    assert memory("sigmoid", several) <= memory("softmax", one) + 0.1 * rows


def test_the_loss_with_mixup_is_that_of_the_mixed_targets(batch, labels):
    model, key = tiny(), jax.random.key(5)
    params, batch = random_params(model), {**batch, "label": labels}
    objective = classification(
        model, loss="sigmoid", label_smoothing=0.1, mixing=Mixing(0.5), multi_label=True
    )
    found, metrics = objective.loss(params, batch, key, key)
    weight = jax.random.beta(jax.random.fold_in(key, 0), 0.5, 0.5)
    weight = float(jnp.maximum(weight, 1 - weight))
    images = batch["image"].astype(np.float32) / 127.5 - 1
    images = weight * images + (1 - weight) * np.roll(images, 1, 0)
    logits = np.asarray(model.apply({"params": params}, images), np.float64)
    hot = weight * labels + (1 - weight) * np.roll(labels, 1, 0)
    loss, _ = by_hand(logits, 0.9 * hot + 0.1 / CLASSES)
    np.testing.assert_allclose(found, loss.mean(), rtol=1e-5)
    top = logits.argmax(-1)
    np.testing.assert_allclose(metrics["precision_at_1"], labels[np.arange(16), top].mean())


@pytest.mark.parametrize("several", [False, True])
def test_a_test_sums_over_the_examples_whose_mask_is_true(batch, labels, several):
    model = tiny()
    params, batch = random_params(model), {**batch, **({"label": labels} if several else {})}
    objective = classification(model, loss="sigmoid", multi_label=several)
    sums = jax.jit(objective.evaluate)(params, batch)
    images = batch["image"][:13].astype(np.float32) / 127.5 - 1
    logits = np.asarray(model.apply({"params": params}, images), np.float64)
    hot = (labels if several else np.eye(CLASSES, dtype=bool)[batch["label"]])[:13]
    assert objective.summarize(sums)["loss"] == pytest.approx(by_hand(logits, hot)[0].mean())
    right = hot[np.arange(13), logits.argmax(-1)].mean()
    name = "precision_at_1" if several else "accuracy"
    assert objective.summarize(sums)[name] == pytest.approx(right)
    assert objective.multi_label == several
    assert ("accuracy" in objective.test_metrics) != several


@pytest.mark.parametrize(("strategy", "dtype"), [("pmap", "float32"), ("sharded", "bfloat16")])
def test_a_step_on_eight_devices_and_in_micro_batches(batch, labels, strategy, dtype):
    """The update is that of the gradient which optax's own loss has for the whole batch."""
    batch = {**batch, "label": labels}
    model = tiny(dtype=dtype)
    objective = classification(model, loss="sigmoid", multi_label=True)
    params, optimizer = random_params(model), optax.sgd(1.0)
    update = make_update(objective, optimizer, lambda count: 1.0, accumulate_steps=2)
    zero = jnp.zeros((), jnp.int32)
    program = parallel.STRATEGIES[strategy](update=update, key=jax.random.key(0))
    state = program.place(TrainState(zero, params, optimizer.init(params), None, zero, zero))
    state, metrics = program.update(state, program.put_batch(batch))

    def loss(params):
        images = batch["image"].astype(np.float32) / 127.5 - 1
        logits = model.apply({"params": params}, images)
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(np.float32)).sum(-1).mean()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(params)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    assert float(program.gather(metrics)["loss"]) == pytest.approx(float(expected), rel=tolerance)
    found = jax.tree.map(jnp.subtract, params, program.gather(state.params))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, gradient))
    assert difference / optax.tree.norm(gradient) < tolerance


def test_the_configuration_chooses_the_loss(batch, settings):
    settings.optim.update(loss="sigmoid", label_smoothing=0.2)
    model = tiny()
    params, make = random_params(model), OBJECTIVES["classification"].make
    found, _ = make(settings, model, False, None).loss(
        params, batch, *jax.random.split(jax.random.key(0))
    )
    logits = model.apply({"params": params}, batch["image"].astype(np.float32) / 127.5 - 1)
    hot = np.eye(CLASSES)[batch["label"]]
    expected, _ = by_hand(np.asarray(logits, np.float64), 0.8 * hot + 0.2 / CLASSES)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
