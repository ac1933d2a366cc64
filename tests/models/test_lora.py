"""LoRA's matmul, its place in a model, and merging, against matrices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, random_params, tiny
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.models.lora import lora_matmul, merge_lora, split_lora
from vit_jax.models.params import parameter_shapes

BLOCK = "Transformer/encoderblock_0"
ATTENTION, MLP = f"{BLOCK}/MultiHeadDotProductAttention_0", f"{BLOCK}/MlpBlock_0"


def flat(tree):
    return flatten_dict(tree, sep="/")


@functools.cache
def program(model, train):
    return jax.jit(lambda params, images: model.apply({"params": params}, images, train=train))


def logits(model, params, images, train=False):
    return program(model, train)(params, images)


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, IMAGE, IMAGE, 3)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_matmul_and_its_derivatives_are_those_of_the_equation(rng, dtype, rounding):
    shapes = (13, 6), (6, 5), (6, 2), (2, 5)
    x, w, a, b = inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    dy = rng.normal(size=(13, 5)).astype(np.float32)
    y, vjp = jax.vjp(lambda x, *rest: lora_matmul(x.astype(dtype), *rest), *inputs)
    assert y.dtype == dtype
    x, w, a, b, g = (np.float64(m) for m in (*inputs, dy))
    expected = [
        *(x @ w + x @ a @ b, g @ w.T + g @ b.T @ a.T),
        *(x.T @ g, x.T @ (g @ b.T), (x @ a).T @ g),
    ]
    for found, right in zip([y, *vjp(jnp.asarray(dy, dtype))], expected, strict=True):
        scale = np.abs(right).max()
        np.testing.assert_allclose(np.float64(found), right, rtol=0, atol=rounding * scale)


@pytest.mark.parametrize(
    ("implementation", "dtype"), [("plain", "float32"), ("custom_vjp", "bfloat16")]
)
def test_at_first_a_model_computes_what_it_does_without_lora(images, implementation, dtype):
    options = dict(mlp="swiglu", implementation=implementation, dtype=dtype)
    model, other = tiny(lora_rank=4, **options), tiny(**options)
    draw = jax.jit(lambda key, model: model.init(key, images)["params"], static_argnums=1)
    params, without = (draw(jax.random.key(0), m) for m in (model, other))
    base, lora = split_lora(params)
    jax.tree.map(np.testing.assert_array_equal, base, without)
    base["head"]["kernel"] = params["head"]["kernel"] = np.ones((24, 7), np.float32)
    found, expected = logits(model, params, images), logits(other, base, images)
    if implementation == "custom_vjp":  # the same matmuls
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    layers = {f"{ATTENTION}/query", f"{ATTENTION}/value"}
    layers |= {f"{MLP}/{name}" for name in ("Dense_0", "Gate", "Dense_1")}
    assert set(flat(lora)) == {f"{x}/lora_{m}" for x in layers for m in "ab"}
    for name, x in flat(lora).items():
        if name.endswith("lora_b"):
            assert not np.any(x)
        else:  # uniform in +-1 / sqrt(d), as peft's Kaiming-uniform with a = sqrt(5)
            bound = len(x) ** -0.5
            assert 0.9 * bound < np.abs(x).max() <= bound
            assert np.std(x) == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize(
    "options",
    [
        dict(depth=2, scan=True, mlp="swiglu"),
        pytest.param(dict(axial=True, pool="map"), marks=pytest.mark.slow),
    ],
)
def test_merging_adds_the_product_to_the_kernel(images, options):
    model = tiny(lora_rank=3, lora_alpha=12.0, implementation="custom_vjp", **options)
    params = random_params(model)
    own = flat(params)
    expected = {}
    for name, x in own.items():
        where, _, kind = name.rpartition("/")
        if kind == "kernel" and f"{where}/lora_a" in own:
            a, b = (np.float64(own[f"{where}/lora_{m}"]) for m in "ab")
            x = np.float64(x) + 4 * np.einsum("dr,r...->d...", a, b)
        if kind not in ("lora_a", "lora_b"):
            expected[name] = x
    merged = merge_lora(params, 12.0)
    assert set(flat(merged)) == set(expected)
    for name, x in flat(merged).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)
    without = tiny(implementation="plain", **options)  # its layers know nothing of LoRA
    found = logits(model, params, images, train=True)
    np.testing.assert_allclose(found, logits(without, merged, images), rtol=0, atol=1e-5)
    assert np.abs(found - logits(without, split_lora(params)[0], images)).max() > 0.01


def test_alpha_is_the_rank_if_it_is_left_out(images):
    model = tiny(lora_rank=3, depth=1)
    params = random_params(model)
    expected = logits(model.clone(lora_alpha=3.0), params, images)
    np.testing.assert_array_equal(logits(model, params, images), expected)
    assert np.abs(logits(model.clone(lora_alpha=6.0), params, images) - expected).max() > 1e-3
    for name, x in flat(merge_lora(params)).items():
        np.testing.assert_array_equal(x, flat(merge_lora(params, 3.0))[name])


def test_a_model_without_lora_has_the_same_parameters_and_merges_to_itself():
    shapes = parameter_shapes(models.build("Ti/16", num_classes=3, lora_rank=0), 32)
    assert split_lora(shapes) == (shapes, {})
    assert merge_lora(shapes) == shapes
