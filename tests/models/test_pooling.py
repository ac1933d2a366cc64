"""What is made of the encoder's tokens, against formulas in NumPy."""

import jax
import numpy as np
import pytest
from equations import TINY, random_params, tiny

from vit_jax.models.layers import IMPLEMENTATIONS
from vit_jax.models.masked import MaskedPatchPredictor
from vit_jax.models.pooling import MAPHead

WIDTH = TINY["width"]


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


def encoded(model, params, images):
    """The model's result, and the encoder's (b, k + 6, d), float64."""
    result, state = model.apply(
        {"params": params},
        images,
        capture_intermediates=lambda module, _: module.name == "Transformer",
        mutable=["intermediates"],
    )
    tokens = state["intermediates"]["Transformer"]["__call__"][0]
    return np.asarray(result), np.asarray(tokens, np.float64)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("gelu", ["tanh", "quick"])
def test_attention_pooling_is_big_visions(rng, gelu, implementation):
    """Of `MAPHead` in big_vision/models/vit.py: the probe is a query of all patches."""
    head = MAPHead(20, 3, gelu=gelu, implementation=implementation)
    patches = rng.normal(size=(2, 6, WIDTH)).astype(np.float32)
    params = random_params(head, patches)
    found = head.apply({"params": params}, patches)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for image, result in zip(patches.astype(np.float64), found, strict=True):
        attention = p["MultiHeadDotProductAttention_0"]
        y = probe_attention(p["probe"][0], image, attention)
        z = layer_norm(y, p["LayerNorm_0"])
        hidden = z @ p["MlpBlock_0"]["Dense_0"]["kernel"] + p["MlpBlock_0"]["Dense_0"]["bias"]
        if gelu == "quick":
            hidden = hidden / (1 + np.exp(-1.702 * hidden))
        else:
            inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
            hidden = 0.5 * hidden * (1 + np.tanh(inner))
        y = y + hidden @ p["MlpBlock_0"]["Dense_1"]["kernel"] + p["MlpBlock_0"]["Dense_1"]["bias"]
        np.testing.assert_allclose(result, y[0], atol=2e-5 * np.abs(y).max())


def probe_attention(probe, patches, p):
    """Appendix A for one query (1, d) of tokens (n, d)."""
    result = p["out"]["bias"]
    for h in range(p["query"]["kernel"].shape[1]):
        q, k, v = (
            z @ p[x]["kernel"][:, h] + p[x]["bias"][h]
            for x, z in (("query", probe), ("key", patches), ("value", patches))
        )
        weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        result = result + weights / weights.sum() @ v @ p["out"]["kernel"][h]
    return result


@pytest.mark.parametrize(
    ("pool", "class_tokens"), [("token", 2), ("token+gap", None), ("token+gap", 3), ("gap", 1)]
)
def test_class_tokens_and_the_mean_are_concatenated(images, pool, class_tokens):
    """The result has the class tokens in their order, then the mean of the patches alone."""
    model = tiny(0, depth=1, pool=pool, class_tokens=class_tokens, registers=2)
    found, tokens = encoded(model, random_params(model, images), images)
    k = 1 if class_tokens is None else class_tokens
    assert tokens.shape == (2, k + 6, WIDTH)
    parts = [tokens[:, i] for i in range(k)] if "token" in pool else []
    parts += [tokens[:, k:].mean(1)] if "gap" in pool else []
    expected = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_the_projection_is_a_matrix_after_the_norm_and_before_the_head(images):
    options = dict(depth=1, pool="token+gap", final_norm="after_pool")
    model = tiny(5, projection=7, **options)
    params = random_params(model, images)
    pooled = tiny(0, **options).apply({"params": params}, images)
    assert pooled.shape == (2, 2 * WIDTH)
    assert sorted(params["projection"]) == ["kernel"]
    projected = np.float64(pooled) @ params["projection"]["kernel"]
    found = model.clone(num_classes=0).apply({"params": params}, images)
    np.testing.assert_allclose(found, projected, atol=1e-5 * np.abs(projected).max())
    logits = projected @ params["head"]["kernel"] + params["head"]["bias"]
    found = model.apply({"params": params}, images)
    np.testing.assert_allclose(found, logits, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("options", [dict(registers=2, class_tokens=2), dict(pool="map")], ids=str)
def test_patches_are_predicted_without_other_tokens(images, options):
    """The prediction of masked patches reads the encoder's patches, whatever is pooled."""
    model = tiny(0, depth=1, **options)
    predictor = MaskedPatchPredictor(model, 4)
    params = random_params(predictor, images)
    complete = {**random_params(model, images), **params}
    _, tokens = encoded(model, {k: x for k, x in complete.items() if "mask" not in k}, images)
    found = predictor.apply({"params": params}, images)
    head = params["patch_head"]
    expected = tokens[:, -6:] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_tokens_of_a_kind_start_different(images):
    """Without positions nothing else tells them apart, and training would keep them equal."""
    model = tiny(depth=1, positions="none", class_tokens=2, registers=2)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    for tokens in (params["cls"], params["Transformer"]["registers"]):
        assert np.abs(tokens[0, 0] - tokens[0, 1]).max() > 1e-3
