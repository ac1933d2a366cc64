"""The ViT family against the paper's equations, the paper's numbers and the published layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.models.attention import attend

# Counted with public code: without a head, and with 1,000 classes, at 224 pixels.
PUBLISHED_COUNTS = {
    "Ti/16": (5_524_416, 5_717_416),
    "S/32": (22_493_952, 22_878_952),
    "S/16": (21_665_664, 22_050_664),
    "B/32": (87_455_232, 88_224_232),
    "B/16": (85_798_656, 86_567_656),
    "L/32": (305_510_400, 306_535_400),
    "L/16": (303_301_632, 304_326_632),
    "H/14": (630_764_800, 632_045_800),
}


def counted(depth, width, mlp_dim, patch_size, num_classes, image=224):
    """The number of parameters by the paper's equations 1 to 4, and table 1's sizes."""
    tokens = (image // patch_size) ** 2 + 1
    embedding = 3 * patch_size**2 * width + width + tokens * width + width  # E, bias, E_pos, class
    attention = 4 * (width * width + width)  # q, k, v and the projection
    mlp = width * mlp_dim + mlp_dim + mlp_dim * width + width
    norms = 2 * 2 * width
    head = width * num_classes + num_classes if num_classes else 0
    return embedding + depth * (attention + mlp + norms) + 2 * width + head


def shapes(variant, image=(224, 224), **kwargs):
    model = models.build(variant, **kwargs)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image, 3)))["params"]
    return {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_every_variant_has_its_golden_parameter_count(variant):
    row = {k: v for k, v in models.VARIANTS[variant].items() if k != "num_heads"}
    for i, num_classes in enumerate((0, 1000)):
        sizes = shapes(variant, num_classes=num_classes).values()
        found = sum(int(np.prod(shape)) for shape in sizes)
        assert found == counted(num_classes=num_classes, **row)
        if variant != "Nano/8":  # ours
            assert found == PUBLISHED_COUNTS[variant][i]


def test_every_published_model_is_a_variant():
    assert set(PUBLISHED_COUNTS) == set(models.VARIANTS) - {"Nano/8"}


TINY = dict(width=12, depth=2, mlp_dim=20, num_heads=3, patch_size=4)


def tiny(num_classes=5, **overrides):
    return models.build("Ti/16", num_classes=num_classes, **{**TINY, **overrides})


def random_params(model, images, seed=0):
    """Every parameter random, those that start at zero or one too."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


def paper_forward(params, images, *, patch_size, pool, pre_logits, **unused):
    """The paper's equations in float64, one image, one head, one token at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer_norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def msa(z, p):  # appendix A
        result = p["out"]["bias"]
        for h in range(p["query"]["kernel"].shape[1]):
            q, k, v = (
                z @ p[n]["kernel"][:, h] + p[n]["bias"][h] for n in ("query", "key", "value")
            )
            scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            result = result + scores / scores.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][h]
        return result

    def mlp(z, p):
        hidden = gelu(z @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def one(image):
        tokens = [params["cls"][0, 0]] if pool == "token" else []
        for r in range(0, image.shape[0], patch_size):
            for c in range(0, image.shape[1], patch_size):
                patch = image[r : r + patch_size, c : c + patch_size]
                projected = np.einsum("yxc,yxcd->d", patch, params["embedding"]["kernel"])
                tokens.append(projected + params["embedding"]["bias"])
        encoder = params["Transformer"]
        z = np.stack(tokens) + encoder["posembed_input"]["pos_embedding"][0]  # equation 1
        for i in range(sum(name.startswith("encoderblock") for name in encoder)):
            p = encoder[f"encoderblock_{i}"]
            z = msa(layer_norm(z, p["LayerNorm_0"]), p["MultiHeadDotProductAttention_0"]) + z  # 2
            z = mlp(layer_norm(z, p["LayerNorm_1"]), p["MlpBlock_0"]) + z  # 3
        y = layer_norm(z, encoder["encoder_norm"])
        y = y[0] if pool == "token" else y.mean(0)  # 4
        if pre_logits:
            y = np.tanh(y @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
        if "head" in params:
            y = y @ params["head"]["kernel"] + params["head"]["bias"]
        return y

    return np.stack([one(image) for image in images.astype(np.float64)])


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


def test_bfloat16_stays_close_to_the_papers_equations(images):
    params = random_params(tiny(), images)
    rounded = tiny(dtype="bfloat16").apply({"params": params}, images)
    expected = paper_forward(params, images, patch_size=4, pool="token", pre_logits=False)
    difference = np.abs(rounded - expected).max() / np.abs(expected).max()
    assert rounded.dtype == jnp.float32
    assert 1e-5 < difference < 0.04


def test_parameter_tree_is_that_of_the_published_checkpoints():
    """B/32 at 224 pixels: names and shapes of the public files, in Linen's numbering."""
    block = {
        "LayerNorm_0/scale": (768,), "LayerNorm_0/bias": (768,),
        "LayerNorm_1/scale": (768,), "LayerNorm_1/bias": (768,),
        "MlpBlock_0/Dense_0/kernel": (768, 3072), "MlpBlock_0/Dense_0/bias": (3072,),
        "MlpBlock_0/Dense_1/kernel": (3072, 768), "MlpBlock_0/Dense_1/bias": (768,),
        "MultiHeadDotProductAttention_0/out/kernel": (12, 64, 768),
        "MultiHeadDotProductAttention_0/out/bias": (768,),
    }  # fmt: skip
    for name in ("query", "key", "value"):
        block[f"MultiHeadDotProductAttention_0/{name}/kernel"] = (768, 12, 64)
        block[f"MultiHeadDotProductAttention_0/{name}/bias"] = (12, 64)
    expected = {
        "cls": (1, 1, 768),
        "embedding/kernel": (32, 32, 3, 768), "embedding/bias": (768,),
        "Transformer/posembed_input/pos_embedding": (1, 50, 768),
        "Transformer/encoder_norm/scale": (768,), "Transformer/encoder_norm/bias": (768,),
        "pre_logits/kernel": (768, 768), "pre_logits/bias": (768,),
        "head/kernel": (768, 21843), "head/bias": (21843,),
    }  # fmt: skip
    for i in range(12):
        expected |= {f"Transformer/encoderblock_{i}/{name}": s for name, s in block.items()}
    assert shapes("B/32", num_classes=21843, pre_logits=True) == expected

    pooled = shapes("B/32", num_classes=0, pool="gap")
    gone = ("cls", "pre_logits", "head")
    without = {name: s for name, s in expected.items() if name.split("/")[0] not in gone}
    assert pooled == without | {"Transformer/posembed_input/pos_embedding": (1, 49, 768)}


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


def test_dropout_comes_after_positions_and_every_dense_layer_but_query_key_value(images):
    """The order of the modules that run, as their paths."""
    model = tiny(depth=1, dropout=0.5)
    params = random_params(model, images)
    calls = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        calls.append("/".join(context.module.path))
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
    dropped = [calls[i - 1] for i, path in enumerate(calls) if "Dropout" in path]
    block = "Transformer/encoderblock_0"
    assert dropped == [
        "Transformer/posembed_input",
        f"{block}/MultiHeadDotProductAttention_0",
        f"{block}/MlpBlock_0/Dense_0",
        f"{block}/MlpBlock_0/Dense_1",
    ]


def test_dropout_works_in_training_only_and_repeats_with_its_key(images):
    model, params = tiny(dropout=0.5), random_params(tiny(), images)

    def run(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply({"params": params}, images, train=train, rngs=rngs))

    plain = np.asarray(tiny().apply({"params": params}, images))
    np.testing.assert_array_equal(run(0, False), plain)
    np.testing.assert_array_equal(run(0, True), run(0, True))
    assert (run(0, True) != run(1, True)).any() and (run(0, True) != plain).any()


def test_only_the_positions_tell_where_a_patch_is(images):
    """Without them the class token can't see a permutation of the patches; with them it can."""
    model = tiny()
    params = random_params(model, images)
    turned = images[:, ::-1, ::-1].reshape(2, 3, 4, 2, 4, 3)[:, :, ::-1, :, ::-1]
    turned = turned.reshape(images.shape)  # the patches in reverse order, each as it was

    def difference():
        logits = (model.apply({"params": params}, x) for x in (images, turned))
        return np.abs(np.subtract(*logits)).max()

    assert difference() > 1e-2
    params["Transformer"]["posembed_input"]["pos_embedding"] *= 0
    assert difference() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_attend_equals_softmax_attention(rng, scale):
    q, k, v = (rng.normal(0, s, (2, 7, 3, 8)).astype(np.float32) for s in (scale, 1.0, 1.0))
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attend(q, k, v), expected, atol=2e-5)


def test_gradients_of_attend_equal_those_of_softmax_attention(rng):
    q, k, v, seen = (rng.normal(size=(2, 7, 3, 8)).astype(np.float32) for _ in range(4))

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    found, expected = (
        jax.grad(lambda *x, f=f: (f(*x) * seen).sum(), (0, 1, 2))(q, k, v) for f in (attend, plain)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("b16", "B/16"), ("B_16", "B/16"), ("ViT-B/16", "B/16"), ("vit_l32", "L/32"), ("h14", "H/14"),
     ("ti16", "Ti/16"), ("nano8", "Nano/8"), ("S/32", "S/32")],
)  # fmt: skip
def test_variants_are_known_by_their_usual_spellings(spelling, name):
    assert models.canonical(spelling) == name


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("B/17", {}, "closest: B/16"),
        ("B/16", {"widht": 4}, "has no widht; it takes depth, dropout"),
        ("B/16", {"num_heads": 7}, "width=768 is not a multiple of num_heads=7"),
        ("B/16", {"pool": "max"}, '"token" or "gap"'),
    ],
)
def test_impossible_models_are_explained(variant, overrides, message):
    with pytest.raises(ValueError) as error:
        models.build(variant, num_classes=2, **overrides)
    assert message in str(error.value)


def test_patches_can_be_rectangles():
    tree = shapes("Ti/16", (14, 27), num_classes=0, patch_size=(7, 9))
    assert tree["embedding/kernel"] == (7, 9, 3, 192)
    assert tree["Transformer/posembed_input/pos_embedding"] == (1, 1 + 2 * 3, 192)


@pytest.mark.parametrize("image", [(225, 224), (224, 100), (8, 16)])
def test_images_that_do_not_divide_into_patches_are_refused(image):
    with pytest.raises(ValueError, match=f"{image[0]}x{image[1]} pixels can't be cut"):
        shapes("Ti/16", image, num_classes=0)
