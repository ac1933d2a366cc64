"""The encoder's layers in every implementation, and which implementation a device gets."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import assert_same, forward_and_gradients, random_params, tiny
from scipy import special, stats

from vit_jax import models
from vit_jax.models.layers import IMPLEMENTATIONS, best_implementation, gelu


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        pytest.param(dict(gelu="exact", norm_epsilon=1e-3, dropout=0.3), marks=pytest.mark.slow),
        dict(positions="relative"),
        pytest.param(
            dict(gelu="quick", registers=2, pre_norm=True, pool="map", final_norm="after_pool"),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(axial=True, pool="gap"), marks=pytest.mark.slow),
        pytest.param(dict(remat="dots"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_derivatives_of_our_own_are_those_of_the_plain_formulation(images, options):
    model = tiny(implementation="custom_vjp", **options)
    params = random_params(model, images)
    found, expected = (
        forward_and_gradients(m, params, images) for m in (model, models.plain(model))
    )
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("tanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("exact", lambda x: x * stats.norm.cdf(x)),
        ("quick", lambda x: x * special.expit(1.702 * x)),
    ],
)
def test_gelus_and_their_derivatives_are_those_of_the_formulas(kind, function):
    """Far from zero, too. The derivative is that of differences, in float64."""
    x = np.concatenate([np.linspace(-6, 6, 100), [-1e4, -90, 90, 1e4]])
    slope = (function(x + 1e-5) - function(x - 1e-5)) / 2e-5
    for implementation in IMPLEMENTATIONS:
        found, derivative = jax.vmap(
            jax.value_and_grad(functools.partial(gelu, kind=kind, implementation=implementation))
        )(jnp.float32(x))
        np.testing.assert_allclose(found, function(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(derivative, slope, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_derivatives_of_our_own_are_as_exact_in_bfloat16_as_plain_ones(images):
    """Both round; each is compared with float32."""
    model = tiny(implementation="custom_vjp")
    params = jax.tree.map(lambda x: 0.5 * x, random_params(model, images))
    exact = forward_and_gradients(model, params, images)
    errors = []
    for implementation in ("custom_vjp", "plain"):
        rounded = model.clone(implementation=implementation, dtype=jnp.bfloat16)
        found = forward_and_gradients(rounded, params, images)
        errors.append(max(np.abs(x - y).max() for x, y in zip(found, exact, strict=True)))
    largest = max(np.abs(x).max() for x in exact)
    assert errors[0] < 1.5 * errors[1] and errors[0] < 0.05 * largest


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "expected"),
    [
        ("cpu", None, "bfloat16", "custom_vjp"),
        ("tpu", None, "bfloat16", "tpu"),
        ("gpu", "9.0", "bfloat16", "cudnn"),
        ("gpu", "12.0", "float16", "cudnn"),
        ("gpu", "9.0", "float32", "plain"),
        ("gpu", "7.5", "bfloat16", "plain"),  # Turing
        ("gpu", "gfx942", "bfloat16", "plain"),  # AMD
    ],
)
def test_devices_get_the_implementation_that_suits_them(
    monkeypatch, backend, capability, dtype, expected
):
    device = types.SimpleNamespace(platform=backend, compute_capability=capability)
    assert best_implementation(dtype, 64, device) == expected
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert best_implementation(dtype, 64) == expected
