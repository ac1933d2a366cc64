"""The Vision Transformer against the paper's equations and the published checkpoints' layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import TINY, paper_forward, random_params, shapes, tiny
from flax.traverse_util import flatten_dict

from vit_jax import models


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_forward_equals_the_papers_equations(images, pool, pre_logits, num_classes):
    options = dict(pool=pool, pre_logits=pre_logits)
    model = tiny(num_classes, **options)
    params = random_params(model, images)
    found = jax.jit(model.apply)({"params": params}, images)
    expected = paper_forward(params, images, patch_size=4, **options)
    assert found.shape == (2, num_classes or TINY["width"]) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options",
    [
        *(
            dict(positions=kind, positions_at=place)
            for kind in ("1d", "2d")
            for place in ("stem", "layers", "shared")
        ),
        dict(positions="2d", pool="gap"),
        dict(positions="sincos"),
        dict(positions="sincos", pool="gap", positions_at="layers"),
        dict(positions="relative"),
        dict(positions="relative", pool="gap"),
        dict(positions="none"),
        dict(axial=True, pool="gap"),
        dict(axial=True, pool="gap", positions="relative"),
        dict(axial=True, pool="gap", positions="2d", positions_at="layers"),
        dict(gelu="exact", norm_epsilon=1e-3),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_variations_equal_their_equations(images, options):
    """Position embeddings of D.4, axial blocks of D.6, and what PyTorch's ViTs compute."""
    model = tiny(**options)
    params = random_params(model, images)
    found = jax.jit(model.apply)({"params": params}, images)
    expected = paper_forward(params, images, patch_size=4, **options)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


def test_bfloat16_stays_close_to_the_papers_equations(images):
    params = random_params(tiny(), images)
    rounded = tiny(dtype="bfloat16").apply({"params": params}, images)
    expected = paper_forward(params, images, patch_size=4, pool="token", pre_logits=False)
    difference = np.abs(rounded - expected).max() / np.abs(expected).max()
    assert rounded.dtype == jnp.float32
    assert 1e-5 < difference < 0.04


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("R50x1", dict(layers=(1, 1))),
        ("AxialResNet50", dict(layers=(1, 1))),
        ("R50+B/16", dict(stem=(1, 1), width=12, num_heads=3, depth=1, mlp_dim=20)),
        ("Axial-B/16", dict(TINY, positions="relative")),
    ],
)
def test_every_kind_of_model_computes_in_bfloat16(rng, variant, options):
    images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    exact, rounded = (
        models.build(variant, num_classes=5, **options, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    params = jax.tree.map(lambda x: x / 4, random_params(exact, images))
    expected, found = (np.asarray(m.apply({"params": params}, images)) for m in (exact, rounded))
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 0.1


def test_parameter_tree_is_that_of_the_published_checkpoints():
    """B/32 at 224 pixels: names and shapes of the public files, in Linen's numbering."""
    block = {
        "LayerNorm_0/scale": (768,),
        "LayerNorm_0/bias": (768,),
        "LayerNorm_1/scale": (768,),
        "LayerNorm_1/bias": (768,),
        "MlpBlock_0/Dense_0/kernel": (768, 3072),
        "MlpBlock_0/Dense_0/bias": (3072,),
        "MlpBlock_0/Dense_1/kernel": (3072, 768),
        "MlpBlock_0/Dense_1/bias": (768,),
        "MultiHeadDotProductAttention_0/out/kernel": (12, 64, 768),
        "MultiHeadDotProductAttention_0/out/bias": (768,),
    }
    for name in ("query", "key", "value"):
        block[f"MultiHeadDotProductAttention_0/{name}/kernel"] = (768, 12, 64)
        block[f"MultiHeadDotProductAttention_0/{name}/bias"] = (12, 64)
    expected = {
        "cls": (1, 1, 768),
        "embedding/kernel": (32, 32, 3, 768),
        "embedding/bias": (768,),
        "Transformer/posembed_input/pos_embedding": (1, 50, 768),
        "Transformer/encoder_norm/scale": (768,),
        "Transformer/encoder_norm/bias": (768,),
        "pre_logits/kernel": (768, 768),
        "pre_logits/bias": (768,),
        "head/kernel": (768, 21843),
        "head/bias": (21843,),
    }
    for i in range(12):
        expected |= {f"Transformer/encoderblock_{i}/{name}": s for name, s in block.items()}
    assert shapes("B/32", num_classes=21843, pre_logits=True) == expected

    pooled = shapes("B/32", num_classes=0, pool="gap")
    gone = ("cls", "pre_logits", "head")
    without = {name: s for name, s in expected.items() if name.split("/")[0] not in gone}
    assert pooled == without | {"Transformer/posembed_input/pos_embedding": (1, 49, 768)}


@pytest.mark.slow
def test_parameters_start_as_those_of_the_published_code():
    model = models.build("Ti/16", num_classes=10, depth=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    flat = {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
    block = "Transformer/encoderblock_0/"
    for name, x in flat.items():
        if name in ("cls", "head/kernel") or (name.endswith("bias") and "Mlp" not in name):
            assert not x.any(), name
        elif name.endswith("scale"):
            assert (x == 1).all(), name
        elif "MlpBlock" in name and name.endswith("bias"):
            assert 0 < np.abs(x).max() < 1e-5, name
    positions = flat["Transformer/posembed_input/pos_embedding"]
    assert positions.std() == pytest.approx(0.02, rel=0.02)
    assert flat["embedding/kernel"].std() == pytest.approx((16 * 16 * 3) ** -0.5, rel=0.02)
    for name, fan_in, fan_out in (
        ("MlpBlock_0/Dense_0/kernel", 192, 768),
        ("MlpBlock_0/Dense_1/kernel", 768, 192),
        ("MultiHeadDotProductAttention_0/query/kernel", 192, 192),
        ("MultiHeadDotProductAttention_0/out/kernel", 192, 192),
    ):
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert np.abs(flat[block + name]).max() <= bound
        assert flat[block + name].std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
