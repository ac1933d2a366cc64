import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import models, objectives, parallel, step

IMAGE = 16
CLASSES = 7


def tiny(**overrides):
    sizes = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    return models.build("Ti/16", num_classes=CLASSES, **{**sizes, **overrides})


@pytest.fixture
def batch(rng):
    return {
        "image": rng.integers(0, 256, (16, IMAGE, IMAGE, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, 16).astype(np.int32),
        "mask": np.arange(16) < 13,
    }


def random_state(model, optimizer, seed=0):
    """A state whose every parameter is random: a zero head would hide differences."""

    @jax.jit
    def draw(key):
        state = step.initial_state(model, optimizer, (IMAGE, IMAGE), key)
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        params = tree.unflatten(
            [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        )
        return state.replace(params=params, opt_state=optimizer.init(params))

    return draw(jax.random.key(seed))


def assert_close(tree, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


def test_cross_entropy_with_smoothing_by_hand(rng):
    logits, labels = rng.normal(size=(5, CLASSES)), rng.integers(0, CLASSES, 5)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = 0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES
    np.testing.assert_allclose(
        objectives.softmax_cross_entropy(logits, labels, 0.1), -(targets * log_p).sum(-1), rtol=1e-5
    )


def test_update_is_a_gradient_step_on_the_mean_loss(batch):
    model, optimizer = tiny(), optax.sgd(0.5)
    state = random_state(model, optimizer)

    def mean_loss(params):
        images = batch["image"].astype(np.float32) / 127.5 - 1
        log_p = jax.nn.log_softmax(model.apply({"params": params}, images))
        return -log_p[np.arange(16), batch["label"]].mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    update = jax.jit(step.make_update(model, optimizer, lambda count: 0.5))
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
    state = random_state(model, optimizer)
    whole, parts = (
        jax.jit(step.make_update(model, optimizer, lambda count: 0.5, accumulate_steps=n))(
            state, batch, jax.random.key(0)
        )
        for n in (1, accumulate_steps)
    )
    assert_close(whole, parts)


def test_every_micro_batch_has_its_own_dropout():
    """With the same image in both micro-batches, one shared mask would give each the same loss."""
    model, optimizer = tiny(dropout=0.5), optax.sgd(0.0)
    state = random_state(model, optimizer)
    one = {"image": np.full((1, IMAGE, IMAGE, 3), 200, np.uint8), "label": np.zeros(1, np.int32)}
    two = jax.tree.map(lambda x: np.concatenate([x, x]), one)
    key = jax.random.key(3)

    def loss(batch, n, key=key):
        update = step.make_update(model, optimizer, lambda count: 0.0, accumulate_steps=n)
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
    update = jax.jit(step.make_update(model, optimizer, lambda count: 0.0))
    key = jax.random.key(0)
    later = state.replace(step=jnp.int32(5))
    losses = [float(update(s, batch, key)[1]["loss"]) for s in (state, state, later)]
    assert losses[0] == losses[1] != losses[2]


def test_evaluation_counts_only_unmasked_examples(batch):
    model = tiny()
    params = random_state(model, optax.sgd(0.0)).params
    sums = jax.jit(step.make_evaluate(model, confusion=True))(params, batch)
    sums = jax.tree.map(np.asarray, sums)

    kept = batch["mask"]
    logits = model.apply({"params": params}, batch["image"][kept].astype(np.float32) / 127.5 - 1)
    logits, label = np.asarray(logits, np.float64), batch["label"][kept]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ranks = (logits > logits[np.arange(13), label][:, None]).sum(-1)
    confusion = np.zeros((CLASSES, CLASSES), int)
    for true, predicted in zip(label, logits.argmax(-1), strict=True):
        confusion[true, predicted] += 1

    assert sums["count"] == 13
    assert sums["loss"] == pytest.approx(-log_p[np.arange(13), label].sum(), rel=1e-4)
    assert sums["correct"] == (ranks == 0).sum()
    assert sums["top5"] == (ranks < 5).sum()
    np.testing.assert_array_equal(sums["confusion"], confusion)
    assert step.means(sums)["accuracy"] == pytest.approx((ranks == 0).mean())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_eight_devices_equal_one(batch, accumulate_steps, dropout):
    """Loss, gradients (through one SGD step) and further losses; dropout: against its keys by hand.

    SGD, because Adam amplifies the rounding of gradients that are truly zero.
    """
    assert jax.device_count() == 8
    model, optimizer = tiny(dropout=dropout), optax.sgd(0.1, momentum=0.9)
    state, key = random_state(model, optimizer), jax.random.key(7)
    update = step.make_update(
        model, optimizer, lambda count: 0.1, accumulate_steps=accumulate_steps
    )
    program = parallel.pmap(step.make_evaluate(model), update, key)

    def one_device(state):
        """The mean of the updates that devices 0 to 7 would do alone with their part."""
        parts = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
        results = jax.vmap(update, (None, 0, 0))(state, parts, keys)
        return jax.tree.map(lambda x: x.mean(0).astype(x.dtype), results)

    one_device = jax.jit(one_device)
    expected, spread = state, program.init(step.identity, state)
    for _ in range(3):
        expected, expected_metrics = one_device(expected)
        spread, metrics = program.update(spread, program.put_batch(batch))
        assert_close(program.gather(spread.params), expected.params, rtol=1e-5, atol=1e-6)
        assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-5)
    if not dropout:
        whole, _ = jax.jit(update)(state, batch, key)
        spread, _ = program.update(program.init(step.identity, state), program.put_batch(batch))
        assert_close(program.gather(spread.params), whole.params)


def test_eight_devices_evaluate_as_one(batch):
    model = tiny()
    params = random_state(model, optax.sgd(0.0)).params
    evaluate = step.make_evaluate(model, confusion=True)
    program = parallel.pmap(evaluate)
    sums = program.evaluate(program.init(step.identity, params), program.put_batch(batch))
    assert_close(program.gather(sums), jax.jit(evaluate)(params, batch))


def test_update_reuses_the_buffers_of_the_state(batch):
    model, optimizer = tiny(), optax.sgd(0.1)
    update = step.make_update(model, optimizer, lambda count: 0.1)
    program = parallel.pmap(step.make_evaluate(model), update, jax.random.key(0))
    state = program.init(step.identity, random_state(model, optimizer))
    program.update(state, program.put_batch(batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(batch):
    optimizer = optax.sgd(0.1)
    states = [random_state(tiny(dtype=dtype), optimizer) for dtype in ("float32", "bfloat16")]
    results = [
        jax.jit(step.make_update(tiny(dtype=dtype), optimizer, lambda count: 0.1))(
            state, batch, jax.random.key(0)
        )
        for dtype, state in zip(("float32", "bfloat16"), states, strict=True)
    ]
    (_, exact), (rounded_state, rounded) = results
    assert {x.dtype for x in jax.tree.leaves(rounded_state.params)} == {jnp.dtype("float32")}
    assert 0 < abs(float(exact["loss"] - rounded["loss"])) < 0.02 * float(exact["loss"])
