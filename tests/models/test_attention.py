"""Attention: plain, with a derivative of its own, and by cuDNN, which XLA stands in for."""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import assert_same, forward_and_gradients, random_params, tiny

from vit_jax import models
from vit_jax.models.attention import attend, attend_cudnn


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


@pytest.fixture
def xla_as_cudnn(monkeypatch):
    """Puts XLA's attention in cuDNN's place; returns a list that gets what it is asked for."""
    asked = []

    def xla(query, *args, implementation, query_seq_lengths, **options):
        lengths = query_seq_lengths
        asked.append((implementation, query.shape[1], lengths is not None))
        options |= {"query_seq_lengths": lengths, "implementation": "xla"}
        return jax_attention(query, *args, **options)

    jax_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    return asked


@pytest.mark.parametrize("keys_first", [False, True])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_attend_equals_softmax_attention(rng, scale, keys_first):
    q, k, v = (rng.normal(0, s, (2, 7, 3, 8)).astype(np.float32) for s in (scale, 1.0, 1.0))
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    found = attend(q, k, v, keys_first=keys_first)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gradients_of_attend_equal_those_of_softmax_attention(rng):
    q, k, v, seen = (rng.normal(size=(2, 7, 3, 8)).astype(np.float32) for _ in range(4))

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    expected, *others = (
        jax.grad(lambda *x, f=f: (f(*x) * seen).sum(), (0, 1, 2))(q, k, v)
        for f in (plain, attend, functools.partial(attend, keys_first=True))
    )
    for found in others:
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [6, 7])
def test_attend_cudnn_attends_to_the_tokens_there_are(rng, xla_as_cudnn, tokens):
    """An odd number of them is filled up with one."""
    q, k, v, seen = (rng.normal(size=(2, tokens, 3, 8)).astype(np.float32) for _ in range(4))
    for x, y in zip(
        *(
            jax.grad(lambda *x, f=f: (f(*x) * seen).sum(), (0, 1, 2))(q, k, v)
            for f in (attend_cudnn, attend)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert set(xla_as_cudnn) == {("cudnn", *((6, False) if tokens == 6 else (8, True)))}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(remat="dots", scan=True),
        dict(positions="relative"),
        dict(positions_at="layers"),
        dict(axial=True, pool="gap"),
    ],
    ids=str,
)
def test_a_model_with_cudnns_attention_is_that_of_the_plain_formulation(
    images, xla_as_cudnn, options
):
    plain = tiny(**options)
    params = random_params(plain, images)
    cudnn = plain.clone(implementation="cudnn")  # in float32, to compare
    found, expected = (forward_and_gradients(m, params, images) for m in (cudnn, plain))
    assert_same(found, expected, 1e-4)
    assert bool(xla_as_cudnn) == (options != dict(positions="relative"))


@pytest.mark.parametrize("options", [dict(), dict(registers=2), dict(registers=1, pool="gap")])
def test_tokens_are_filled_up_once_for_all_blocks(images, xla_as_cudnn, options):
    model = tiny(depth=3, **options).clone(implementation="cudnn")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    del xla_as_cudnn[:]
    program = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x, train=True))(params, images)
    n = math.prod(model.grid(images.shape[1:3])) + model.num_class_tokens + model.registers
    assert n % 2
    assert xla_as_cudnn == 3 * [("cudnn", n + 1, True)]
    assert (
        sum(
            str(eqn.primitive) == "pad" or "_pad" in str(eqn.params.get("name"))
            for eqn in program.eqns
        )
        == 1
    )


def test_a_model_with_cudnns_attention_is_lowered_for_gpus(monkeypatch):
    """As far as one gets without a GPU: JAX takes it that there is one with cuDNN 9.10."""
    inside = "jax._src.cudnn.fused_attention_stablehlo"
    known = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(f"{inside}.cuda_versions", known)
    monkeypatch.setattr(f"{inside}.check_compute_capability", lambda capability: True)
    model = models.build(
        "Ti/16", num_classes=2, depth=2, implementation="cudnn", dtype=jnp.bfloat16
    )
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)  # 197 tokens
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    step = jax.jit(jax.grad(lambda p, x: model.apply({"params": p}, x, train=True).sum()))
    text = step.trace(params, images).lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("fmhaSoftmax", "fmhaSoftmaxBackward"):
        assert len(re.findall(rf"__cudnn\${kernel}\b", text)) == 2
