"""One step: its gradient, dropout, accumulation and average, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE, random_params, tiny

from vit_jax.training import parallel
from vit_jax.training.classification import classification
from vit_jax.training.masked_patches import masked_patches
from vit_jax.training.step import TrainState, make_update


def random_state(model, optimizer, seed=0):
    """A state whose every parameter is random: a zero head would hide differences."""

    params = random_params(model, seed)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def assert_close(tree, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


def test_update_is_a_gradient_step_on_the_mean_loss(batch):
    model, optimizer = tiny(), optax.sgd(0.5)
    state = random_state(model, optimizer)

    def mean_loss(params):
        images = batch["image"].astype(np.float32) / 127.5 - 1
        log_p = jax.nn.log_softmax(model.apply({"params": params}, images))
        return -log_p[np.arange(16), batch["label"]].mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    update = jax.jit(make_update(classification(model), optimizer, lambda count: 0.5))
    new, metrics = update(state, batch, jax.random.key(0))
    metrics = {name: float(value) for name, value in metrics.items()}
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads))
    assert int(new.step) == 1
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["learning_rate"] == 0.5


@pytest.mark.parametrize("accumulate_steps", [2, 4])
def test_accumulation_equals_one_large_batch(batch, accumulate_steps):
    model, optimizer = tiny(), optax.sgd(0.5)
    state, objective = random_state(model, optimizer), classification(model)
    whole, parts = (
        jax.jit(make_update(objective, optimizer, lambda count: 0.5, accumulate_steps=n))(
            state, batch, jax.random.key(0)
        )
        for n in (1, accumulate_steps)
    )
    assert_close(whole, parts)


@pytest.mark.slow
def test_every_micro_batch_has_its_own_dropout():
    """With the same image in both micro-batches, one shared mask would give each the same loss."""
    model, optimizer = tiny(dropout=0.5), optax.sgd(0.0)
    state, objective = random_state(model, optimizer), classification(model)
    one = {"image": np.full((1, IMAGE, IMAGE, 3), 200, np.uint8), "label": np.zeros(1, np.int32)}
    two = jax.tree.map(lambda x: np.concatenate([x, x]), one)
    key = jax.random.key(3)

    def loss(batch, n, key=key):
        update = make_update(objective, optimizer, lambda count: 0.0, accumulate_steps=n)
        return float(jax.jit(update)(state, batch, key)[1]["loss"])

    def loss_with(dropout_key):
        images = one["image"].astype(np.float32) / 127.5 - 1
        logits = model.apply(
            {"params": state.params}, images, train=True, rngs={"dropout": dropout_key}
        )
        return -float(jax.nn.log_softmax(logits)[0, 0])

    first, second = map(loss_with, jax.random.split(jax.random.fold_in(key, 0), 2))
    assert abs(first - second) > 1e-3
    assert loss(two, 2) == pytest.approx((first + second) / 2, rel=1e-5)


def test_dropout_changes_with_the_step_and_repeats_with_the_key(batch):
    model, optimizer = tiny(dropout=0.3), optax.sgd(0.0)
    state = random_state(model, optimizer)
    update = jax.jit(make_update(classification(model), optimizer, lambda count: 0.0))
    key = jax.random.key(0)
    later = state.replace(step=jnp.int32(5))
    losses = [float(update(s, batch, key)[1]["loss"]) for s in (state, state, later)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
@pytest.mark.parametrize("accumulate_steps", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eight_devices_equal_one(batch, accumulate_steps, dropout):
    """Loss, gradients (through one SGD step) and further losses; dropout: against its keys by hand.

    SGD, because Adam amplifies the rounding of gradients that are truly zero.
    """
    assert jax.device_count() == 8
    model, optimizer = tiny(dropout=dropout), optax.sgd(0.1, momentum=0.9)
    state, key = random_state(model, optimizer), jax.random.key(7)
    update = make_update(
        classification(model), optimizer, lambda count: 0.1, accumulate_steps=accumulate_steps
    )
    program = parallel.pmap(update=update, key=key)

    def one_device(state):
        """The mean of the updates that devices 0 to 7 would do alone with their part."""
        parts = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
        results = jax.vmap(update, (None, 0, 0))(state, parts, keys)
        return jax.tree.map(lambda x: x.mean(0).astype(x.dtype), results)

    one_device = jax.jit(one_device)
    expected, replicated = state, program.place(state)
    for _ in range(3):
        expected, expected_metrics = one_device(expected)
        replicated, metrics = program.update(replicated, program.put_batch(batch))
        assert_close(program.gather(replicated.params), expected.params, rtol=1e-5, atol=1e-6)
        assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)
    if not dropout:
        whole, _ = jax.jit(update)(state, batch, key)
        replicated, _ = program.update(program.place(state), program.put_batch(batch))
        assert_close(program.gather(replicated.params), whole.params)


def test_the_average_is_that_of_the_parameters_after_each_update(batch):
    model, optimizer = tiny(), optax.sgd(0.5)
    params = random_params(model)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), params)
    update = make_update(classification(model), optimizer, lambda count: 0.5, polyak=0.8)
    program = parallel.pmap(update=update, key=jax.random.key(0))
    state, history = program.place(state), []
    for _ in range(3):
        state, _ = program.update(state, program.put_batch(batch))
        history.append(program.gather(state.params))
    weights = np.array([0.64, 0.8, 1.0]) / 2.44
    expected = jax.tree.map(
        lambda *x: sum(w * y for w, y in zip(weights, x, strict=True)), *history
    )
    assert_close(program.gather(state.average), expected)


@pytest.mark.slow
def test_masked_patches_on_eight_devices_are_the_mean_of_their_updates(batch):
    objective = masked_patches(tiny(num_classes=0))
    optimizer, key = optax.sgd(0.1), jax.random.key(7)
    update = make_update(objective, optimizer, lambda count: 0.1, accumulate_steps=2)
    params = random_params(objective.model)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    program = parallel.pmap(evaluate=objective.evaluate, update=update, key=key)
    parts = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    expected = jax.jit(jax.vmap(update, (None, 0, 0)))(state, parts, keys)
    expected = jax.tree.map(lambda x: x.mean(0), expected)
    sums = program.evaluate(program.place(params), program.put_batch(batch))
    found = program.update(program.place(state), program.put_batch(batch))
    assert_close(found[0].params, expected[0].params)
    for name in ("loss", "accuracy"):  # the norm is that of the mean gradient
        assert float(found[1][name]) == pytest.approx(float(expected[1][name]), rel=1e-5)
    assert_close(program.gather(sums), jax.jit(objective.evaluate)(params, batch))


def test_eight_devices_evaluate_as_one(batch):
    model = tiny()
    params = random_state(model, optax.sgd(0.0)).params
    evaluate = classification(model).evaluate
    program = parallel.pmap(evaluate=evaluate)
    sums = program.evaluate(program.place(params), program.put_batch(batch))
    assert_close(program.gather(sums), jax.jit(evaluate)(params, batch))


def test_update_reuses_the_buffers_of_the_state(batch):
    model, optimizer = tiny(), optax.sgd(0.1)
    update = make_update(classification(model), optimizer, lambda count: 0.1)
    program = parallel.pmap(update=update, key=jax.random.key(0))
    state = program.place(random_state(model, optimizer))
    program.update(state, program.put_batch(batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(batch):
    optimizer = optax.sgd(0.1)
    states = [random_state(tiny(dtype=dtype), optimizer) for dtype in ("float32", "bfloat16")]
    results = [
        jax.jit(make_update(classification(tiny(dtype=dtype)), optimizer, lambda count: 0.1))(
            state, batch, jax.random.key(0)
        )
        for dtype, state in zip(("float32", "bfloat16"), states, strict=True)
    ]
    (_, exact), (rounded_state, rounded) = results
    assert {x.dtype for x in jax.tree.leaves(rounded_state.params)} == {jnp.dtype("float32")}
    assert 0 < abs(float(exact["loss"] - rounded["loss"])) < 0.02 * float(exact["loss"])
