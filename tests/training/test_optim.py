"""Schedules, optimizers and the average of the parameters, computed by hand."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from vit_jax.config.defaults import default
from vit_jax.training import optim


@pytest.fixture
def settings():
    return default().optim


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        ("cosine", lambda t: 0.5 * (1 + np.cos(np.pi * t))),
        ("linear", lambda t: 1 - t),
        ("constant", lambda t: 1.0),
    ],
)
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("end", [0.0, 0.03])
def test_schedule_warms_up_then_decays(settings, decay, shape, warmup, end):
    settings.lr, settings.decay, settings.warmup_steps = 0.3, decay, warmup
    settings.lr_end = end
    rate = optim.learning_rate_schedule(settings, total_steps=50)
    for step in range(51):
        if step < warmup:
            expected = 0.3 * step / warmup
        else:
            expected = end + (0.3 - end) * shape((step - warmup) / (50 - warmup))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)


def test_a_warmup_longer_than_the_run_only_rises(settings):
    settings.lr, settings.warmup_steps = 1.0, 100
    rate = optim.learning_rate_schedule(settings, total_steps=20)
    np.testing.assert_allclose([rate(s) for s in (0, 10, 20)], [0, 0.1, 0.2], atol=1e-7)


PARAMS = {
    "dense": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([3.0])},
    "LayerNorm_0": {"scale": np.array([1.5])},
    "pos_embedding": np.array([0.5, 0.25]),
}
GRADS = [
    {
        "dense": {"kernel": np.array([[0.3, -0.1]]) * k, "bias": np.array([0.2])},
        "LayerNorm_0": {"scale": np.array([-0.4]) / k},
        "pos_embedding": np.array([0.1, -0.2]),
    }
    for k in (1.0, 2.0, -1.0)
]
KERNEL = np.array([0, 0, 1, 1, 0, 0])  # which numbers of the flat tree belong to a kernel


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def run(settings, rate):
    """Applies the optimizer to GRADS; returns the parameters after every step, flat."""
    params, rule = PARAMS, optim.optimizer(settings, lambda count: rate)
    state, history = rule.init(params), []
    for grads in GRADS:
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(flat(params))
    return np.array(history)


@pytest.fixture(autouse=True)
def leaf_order():
    """The leaves are in the order LayerNorm scale, dense bias, dense kernel, positions."""
    np.testing.assert_array_equal(flat(PARAMS), [1.5, 3.0, 1.0, -2.0, 0.5, 0.25])


def test_sgd_with_momentum_decay_and_clipping_by_hand(settings):
    settings.name, settings.weight_decay, settings.clip_norm = "sgd", 0.1, 0.25
    x, velocity, expected = flat(PARAMS), 0.0, []
    for grads in map(flat, GRADS):
        grads = grads * min(1.0, 0.25 / np.linalg.norm(grads))
        velocity = grads + 0.9 * velocity
        x = x - 0.05 * (velocity + 0.1 * KERNEL * x)
        expected.append(x)
    np.testing.assert_allclose(run(settings, 0.05), expected, rtol=1e-6)


def test_adam_with_decoupled_decay_by_hand(settings):
    settings.name, settings.weight_decay, settings.clip_norm = "adam", 0.3, 0.0
    x, m, v, expected = flat(PARAMS), 0.0, 0.0, []
    for t, grads in enumerate(map(flat, GRADS), start=1):
        m, v = 0.9 * m + 0.1 * grads, 0.999 * v + 0.001 * grads**2
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - 0.01 * (direction + 0.3 * KERNEL * x)
        expected.append(x)
    np.testing.assert_allclose(run(settings, 0.01), expected, rtol=1e-5)


def muon_by_hand(gradients, matrix):
    """Returns the directions after each gradient (inputs, outputs), by singular values, float64."""
    b1, b2 = (0.95, None) if matrix else (0.9, 0.999)
    m = v = 0.0
    for t, g in enumerate(np.float64(gradients), start=1):
        m = b1 * m + (1 - b1) * g
        nesterov = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        if matrix:
            u, s, vt = np.linalg.svd(nesterov, full_matrices=False)
            s /= np.linalg.norm(s)
            for _ in range(5):
                s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
            yield 0.2 * np.sqrt(max(g.shape)) * (u * s) @ vt
        else:
            v = b2 * v + (1 - b2) * g**2
            yield nesterov / (np.sqrt(v / (1 - b2**t)) + 1e-8)


@pytest.mark.parametrize(
    ("name", "shape", "matrix"),
    [
        ("block/attention/query/kernel", (6, 2, 4), (6, 8)),
        ("block/attention/value/kernel", (6, 2, 4), (6, 8)),
        ("block/attention/out/kernel", (2, 4, 6), (8, 6)),
        ("block/mlp/kernel", (6, 12), (6, 12)),
        ("block1/unit1/conv2/kernel", (3, 3, 2, 5), (18, 5)),
        ("embedding/kernel", (2, 2, 3, 6), None),
        ("conv_root/kernel", (2, 2, 3, 6), None),
        ("head/kernel", (6, 3), None),
        ("patch_head/kernel", (6, 3), None),
        ("conv_stem/conv_0/kernel", (2, 2, 3, 6), None),
        ("conv_stem/conv_1/kernel", (3, 3, 6, 5), (54, 5)),
        ("block/mlp/bias", (12,), None),
        ("posembed_input/pos_embedding", (1, 5, 6), None),
    ],
)
def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam(settings, name, shape, matrix):
    settings.update(name="muon", momentum=0.95, weight_decay=0.3, clip_norm=0.0)
    rng = np.random.default_rng(0)
    start, *gradients = rng.normal(size=(4, *shape)).astype(np.float32)
    rule = optim.optimizer(settings, lambda count: 0.01)
    params = unflatten_dict({name: start}, sep="/")
    state, expected = rule.init(params), np.float64(start)
    flat_shape = (3, *(matrix or shape))
    directions = muon_by_hand(np.reshape(gradients, flat_shape), matrix is not None)
    for gradient, direction in zip(gradients, directions, strict=True):
        updates, state = rule.update(unflatten_dict({name: gradient}, sep="/"), state, params)
        params = optax.apply_updates(params, updates)
        decay = 0.3 * expected if name.endswith("kernel") else 0.0
        expected = expected - 0.01 * (direction.reshape(shape) + decay)
        np.testing.assert_allclose(flat(params), expected.ravel(), rtol=2e-5, atol=1e-5)


def test_without_clipping_large_gradients_pass(settings):
    settings.clip_norm, settings.momentum = 0.0, 0.0
    first = run(settings, 1.0)[0]
    np.testing.assert_allclose(flat(PARAMS) - first, flat(GRADS[0]), rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.9999])
def test_polyak_averages_by_hand(factor):
    """Against the weighted mean of all parameters there were, in float64."""
    rng = np.random.default_rng(0)
    history = [{"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))} for _ in range(30)]
    average = jax.tree.map(lambda x: np.full(x.shape, 7.0), history[0])  # of no effect
    update = jax.jit(optim.polyak_average, static_argnums=2)
    for step, params in enumerate(history):
        average = update(average, params, factor, step)
        weights = factor ** np.arange(step, -1, -1.0)
        weights /= weights.sum()
        for name in params:
            expected = sum(w * p[name] for w, p in zip(weights, history, strict=False))
            np.testing.assert_allclose(average[name], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_momentum_in_bfloat16_takes_half_the_memory_and_nearly_the_same_steps(settings, name):
    settings.update(name=name, lr=0.1, weight_decay=0.1)
    found, sizes = {}, {}
    for dtype in ("float32", "bfloat16"):
        settings.momentum_dtype = dtype
        transformation = optim.optimizer(settings, lambda count: 0.1)
        params = jax.tree.map(lambda x: x.astype(np.float32), PARAMS)
        state = transformation.init(params)
        for grads in GRADS:
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        arrays = [x for x in jax.tree.leaves(state) if x.ndim]
        sizes[dtype] = sum(x.nbytes for x in arrays)
        found[dtype] = flat(params)
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    saved = 4 * len(flat(PARAMS)) // 2
    assert sizes["float32"] - sizes["bfloat16"] == saved
    difference = np.abs(found["bfloat16"] - found["float32"]).max()
    assert 0 < difference < 0.02 * np.abs(found["float32"] - flat(PARAMS)).max()


def test_a_row_of_the_tables_is_all_that_a_new_name_needs(settings, monkeypatch):
    """The sign of the gradient, and a rate that falls in one step."""
    monkeypatch.setitem(optim.OPTIMIZERS, "sign", lambda config: optax.scale_by_sign())
    monkeypatch.setitem(
        optim.SCHEDULES, "step", lambda lr, steps, end: lambda count: lr * (count < steps / 2)
    )
    settings.update(name="sign", decay="step", lr=0.5, clip_norm=0.0)
    rate = optim.learning_rate_schedule(settings, total_steps=4)
    assert [float(rate(step)) for step in range(4)] == [0.5, 0.5, 0.0, 0.0]
    first = run(settings, 0.5)[0]
    np.testing.assert_allclose(first, flat(PARAMS) - 0.5 * np.sign(flat(GRADS[0])), rtol=1e-6)
