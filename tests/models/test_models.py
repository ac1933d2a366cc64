"""The ViT family against the paper's equations, the paper's numbers and the published layout."""

import itertools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from scipy import special

from vit_jax import models
from vit_jax.models.attention import attend, attend_cudnn
from vit_jax.models.layers import best_implementation

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
    "R+Ti/16": (6_144_704, 6_337_704),
    "R26+S/32": (36_046_912, 36_431_912),
    "R50+B/16": (97_890_112, 98_659_112),
    "R50+L/32": (327_969_856, 328_994_856),
    "R50x1": (None, 25_549_352),
    "R50x2": (None, 97_988_712),
    "R101x1": (None, 44_541_480),
    "R152x1": (None, 60_185_128),
    "R152x2": (None, 236_335_208),
    "R200x3": (None, 568_633_000),
}
UNPUBLISHED = {"Nano/8", "B/8", "R50+B/32", "R50+L/16", "Axial-B/32", "Axial-B/16", "AxialResNet50"}


def count_encoder_block(width, mlp_dim):
    attention = 4 * (width * width + width)  # q, k, v and the projection
    mlp = width * mlp_dim + mlp_dim + mlp_dim * width + width
    return attention + mlp + 2 * 2 * width


def count_units(stages, width, *, kernel=9, projected_norm):
    """Bottlenecks: convolutions without bias, two parameters a channel of every norm."""
    total, inputs = 0, width
    for stage, units in enumerate(stages):
        features = width * 2**stage
        for unit in range(units):
            total += inputs * features + kernel * features**2 + features * 4 * features
            # Norms after (hybrids) or before (BiT) the convolutions.
            total += 2 * (2 * features + (4 * features if projected_norm else inputs))
            if unit == 0:
                total += inputs * 4 * features
                total += 2 * 4 * features if projected_norm else 0
            inputs = 4 * features
    return total, inputs


def counted_vit(
    depth,
    width,
    mlp_dim,
    num_heads,
    patch_size,
    stem=None,
    axial=False,
    pool="token",
    num_classes=0,
    image=224,
):
    """The number of parameters by the paper's equations 1 to 4, and table 1's sizes."""
    channels, stride, total = 3, 1, 0
    if stem is not None:
        units, channels = count_units(stem, 64, projected_norm=True)
        total += 7 * 7 * 3 * 64 + 2 * 64 + units
        stride = 4 * 2 ** max(0, len(stem) - 1)
    token = int(pool == "token")
    tokens = (image // stride // patch_size) ** 2 + token
    total += channels * patch_size**2 * width + width  # E, bias
    total += tokens * width + token * width  # E_pos, class
    blocks = depth * (2 if axial else 1)
    total += blocks * count_encoder_block(width, mlp_dim) + 2 * width
    return total + (width * num_classes + num_classes if num_classes else 0)


def counted_resnet(layers, width_factor, axial=False, num_classes=0, image=224):
    width = 64 * width_factor
    total, channels = count_units(layers, width, kernel=0 if axial else 9, projected_norm=False)
    total += 7 * 7 * 3 * width + 2 * channels  # root, last norm
    if axial:
        side = image // 4
        for stage, units in enumerate(layers):
            features = width * 2**stage
            for unit in range(units):
                line = side // 2 ** max(0, stage - (unit == 0))  # the first strides afterwards
                attention = 4 * (features * features + features)
                total += 2 * (attention + (2 * line - 1) * features // 8)
    return total + (channels * num_classes + num_classes if num_classes else 0)


def shapes(variant, image=(224, 224), **kwargs):
    model = models.build(variant, **kwargs)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image, 3)))["params"]
    return {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_every_variant_has_its_golden_parameter_count(variant):
    row = models.VARIANTS[variant]
    count = counted_resnet if "layers" in row else counted_vit
    for i, num_classes in enumerate((0, 1000)):
        sizes = shapes(variant, num_classes=num_classes).values()
        found = sum(int(np.prod(shape)) for shape in sizes)
        assert found == count(num_classes=num_classes, **row)
        if variant not in UNPUBLISHED:
            assert PUBLISHED_COUNTS[variant][i] in (found, None)


def test_every_published_model_is_a_variant():
    assert set(PUBLISHED_COUNTS) | UNPUBLISHED == set(models.VARIANTS)
    assert not set(PUBLISHED_COUNTS) & UNPUBLISHED


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


def numpy_attention(z, p, relative=None):
    """Appendix A on tokens (n, d); `relative` are the embeddings of the offsets -n + 1 … n - 1."""
    result = p["out"]["bias"]
    n = len(z)
    for h in range(p["query"]["kernel"].shape[1]):
        q, k, v = (z @ p[x]["kernel"][:, h] + p[x]["bias"][h] for x in ("query", "key", "value"))
        scores = q @ k.T
        if relative is not None:
            for i in range(n):
                for j in range(n):
                    scores[i, j] += q[i] @ relative[i - j + n - 1]
        scores = np.exp((scores - scores.max(-1, keepdims=True)) / np.sqrt(q.shape[-1]))
        result = result + scores / scores.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][h]
    return result


def sincos_by_hand(rows, columns):
    """For each patch at (x, y): 3 frequencies, as 12 numbers are 4 times 3."""
    frequencies = (1.0, 1 / 100, 1 / 10_000)
    return [
        [f(w * place) for place in (x, y) for f in (math.sin, math.cos) for w in frequencies]
        for y in range(rows)
        for x in range(columns)
    ]


def paper_forward(
    params,
    images,
    *,
    patch_size,
    pool="token",
    pre_logits=False,
    positions="1d",
    positions_at="stem",
    axial=False,
    gelu="tanh",
    norm_epsilon=1e-6,
):
    """The paper's equations in float64, one image, one head, one token at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer_norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm_epsilon) * p["scale"] + p["bias"]

    def activation(x):
        if gelu == "exact":
            return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(z, p):
        hidden = activation(z @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def block(z, p):
        relative = p["RelativePositions_0"]["offset_embedding"] if positions == "relative" else None
        attention = p["MultiHeadDotProductAttention_0"]
        z = numpy_attention(layer_norm(z, p["LayerNorm_0"]), attention, relative) + z  # equation 2
        return mlp(layer_norm(z, p["LayerNorm_1"]), p["MlpBlock_0"]) + z  # 3

    def table(p, rows, columns):
        if positions == "1d":
            return p["pos_embedding"][0]
        if positions == "sincos":
            prefix = np.zeros((int(pool == "token"), TINY["width"]))
            return np.concatenate([prefix, np.array(sincos_by_hand(rows, columns))])
        prefix = p["token_embedding"] if pool == "token" else np.zeros((0, TINY["width"]))
        patches = [
            np.concatenate([p["x_embedding"][c], p["y_embedding"][r]])
            for r in range(rows)
            for c in range(columns)
        ]
        return np.concatenate([prefix, patches])

    def one(image):
        tokens = [params["cls"][0, 0]] if pool == "token" else []
        rows, columns = image.shape[0] // patch_size, image.shape[1] // patch_size
        for r in range(rows):
            for c in range(columns):
                y, x = r * patch_size, c * patch_size
                patch = image[y : y + patch_size, x : x + patch_size]
                projected = np.einsum("yxc,yxcd->d", patch, params["embedding"]["kernel"])
                tokens.append(projected + params["embedding"]["bias"])
        encoder, z = params["Transformer"], np.stack(tokens)
        for i in range(sum(name.startswith("encoderblock") for name in encoder)):
            p = encoder[f"encoderblock_{i}"]
            where = f"posembed_{i}" if positions_at == "layers" else "posembed_input"
            if positions in ("1d", "2d", "sincos") and (positions_at != "stem" or i == 0):
                z = z + table(encoder.get(where), rows, columns)  # equation 1, D.4
            if axial:
                z = z.reshape(rows, columns, -1)
                z = np.stack([block(z[r], p["row"]) for r in range(rows)])
                z = np.stack([block(z[:, c], p["column"]) for c in range(columns)], axis=1)
                z = z.reshape(rows * columns, -1)
            else:
                z = block(z, p)
        y = layer_norm(z, encoder["encoder_norm"])
        y = y[0] if pool == "token" else y.mean(0)  # 4
        if pre_logits:
            y = np.tanh(y @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
        if "head" in params:
            y = y @ params["head"]["kernel"] + params["head"]["bias"]
        return y

    return np.stack([one(image) for image in images.astype(np.float64)])


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


def numpy_resnet(params, images, *, layers, axial):
    """A BiT ResNet in float64 with nothing but slices and sums (arXiv 1912.11370, paper D.6)."""

    def conv(x, kernel, stride=1):
        kernel = np.asarray(kernel, np.float64)
        kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        size = kernel.shape[0]
        x = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
        rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
        return sum(
            x[:, i : i + rows * stride : stride, j : j + columns * stride : stride] @ kernel[i, j]
            for i in range(size)
            for j in range(size)
        )

    def norm(x, p):
        groups = x.reshape(*x.shape[:3], 32, -1)
        mean, var = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        return np.maximum(x * p["scale"] + p["bias"], 0)

    def windows(x, size, stride, reduce):
        rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
        parts = [
            x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            for i in range(size)
            for j in range(size)
        ]
        return reduce(parts, axis=0)

    def line(z, p):
        attention = p["MultiHeadDotProductAttention_0"]
        return numpy_attention(z, attention, p["RelativePositions_0"]["offset_embedding"])

    def unit(x, p, stride):
        z = norm(x, p["gn1"])
        shortcut = conv(z, p["conv_proj"]["kernel"], stride) if "conv_proj" in p else x
        y = norm(conv(z, p["conv1"]["kernel"]), p["gn2"])
        if axial:
            p_row, p_column = p["attention"]["row"], p["attention"]["column"]
            y = np.stack([[line(row, p_row) for row in image] for image in y])
            y = np.stack([[line(c, p_column) for c in image.swapaxes(0, 1)] for image in y])
            y = y.swapaxes(1, 2)
            y = windows(y, stride, stride, np.mean) if stride > 1 else y
        else:
            y = conv(y, p["conv2"]["kernel"], stride)
        return shortcut + conv(norm(y, p["gn3"]), p["conv3"]["kernel"])

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = conv(images.astype(np.float64), params["conv_root"]["kernel"], 2)
    x = windows(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 3, 2, np.max)
    for s, units in enumerate(layers):
        for u in range(units):
            x = unit(x, params[f"block{s + 1}"][f"unit{u + 1}"], 2 if s and not u else 1)
    x = norm(x, params["gn_pre_head"]).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("axial", [False, True])
def test_resnets_equal_their_equations(rng, axial):
    options = dict(layers=(2, 1), axial=axial)
    model = models.build("R50x1", num_classes=5, **options)
    images = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    params = jax.tree.map(lambda x: x / 4, random_params(model, images))
    found = jax.jit(model.apply)({"params": params}, images)
    expected = numpy_resnet(params, images, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


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


def test_stochastic_depth_drops_whole_branches_more_often_deeper():
    """Each branch adds a power of 4 to every number, so that the sum tells which were kept."""
    images, rates = np.zeros((2000, 4, 4, 3), np.float32), (0.0, 0.25, 0.5)
    model = tiny(depth=3, stochastic_depth=0.5, positions="none")
    params = jax.tree.map(np.zeros_like, random_params(model, images[:1]))
    added = []
    for i, rate in enumerate(rates):
        block = params["Transformer"][f"encoderblock_{i}"]
        biases = (block["MultiHeadDotProductAttention_0"]["out"], block["MlpBlock_0"]["Dense_1"])
        for j, branch in enumerate(biases):
            branch["bias"] += 4.0 ** (2 * i + j)
            added.append(4.0 ** (2 * i + j) / (1 - rate))
    streams = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name == "encoderblock_2":
            streams.append(np.asarray(result))
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
        model.apply({"params": params}, images[:1], train=False)
    training, evaluation = streams
    assert (training == training[:, :1, :1]).all()  # all of an example alike
    choices = np.array(list(itertools.product([0, 1], repeat=6)))
    distance = np.abs(training[:, 0, :1] - choices @ added)
    kept = choices[distance.argmin(1)]
    assert distance.min(1).max() < 1e-2
    np.testing.assert_allclose(kept.mean(0), np.repeat(1 - np.array(rates), 2), atol=0.04)
    assert 0.4 < (kept[:, 4] == kept[:, 5]).mean() < 0.6  # each branch for itself
    assert evaluation[0, 0, 0] == sum(4**i for i in range(6))


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
    [
        ("b16", "B/16"),
        ("B_16", "B/16"),
        ("ViT-B/16", "B/16"),
        ("vit_l32", "L/32"),
        ("h14", "H/14"),
        ("ti16", "Ti/16"),
        ("nano8", "Nano/8"),
        ("S/32", "S/32"),
        ("R50+ViT-B_16", "R50+B/16"),
        ("R50x1+ViT-L/32", "R50+L/32"),
        ("R26_S_32", "R26+S/32"),
        ("R+ViT-Ti_16", "R+Ti/16"),
        ("ResNet152x2", "R152x2"),
        ("r50x1", "R50x1"),
        ("Axial-ViT-B/32", "Axial-B/32"),
    ],
)
def test_variants_are_known_by_their_usual_spellings(spelling, name):
    assert models.canonical(spelling) == name


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ("B/17", {}, "closest: B/16"),
        ("B/16", {"widht": 4}, "has no widht; it takes axial, depth, dropout"),
        ("B/16", {"num_heads": 7}, "width=768 is not a multiple of num_heads=7"),
        ("B/16", {"pool": "max"}, "pool='max' is unknown: 'token' or 'gap'"),
        ("B/16", {"depth": 0}, "depth=0 must be a whole number above 0"),
        ("B/16", {"stem": (3, 0)}, "stem=(3, 0) must be numbers of units, or None"),
        ("B/16", {"positions": "3d"}, "'1d' or '2d' or 'relative' or 'sincos' or 'none'"),
        ("B/16", {"positions": "none", "positions_at": "layers"}, "there is nothing to add"),
        ("B/16", {"positions": "2d", "width": 9, "num_heads": 3}, "needs an even width, not 9"),
        ("B/16", {"gelu": "fast"}, "gelu='fast' is unknown: 'tanh' or 'exact'"),
        ("B/16", {"implementation": "fast"}, "implementation='fast' is unknown: None or 'plain'"),
        ("B/16", {"implementation": "cudnn"}, "not in float32 with a depth of 64"),
        ("B/16", {"scan": True, "stochastic_depth": 0.1}, "stochastic_depth must be 0"),
        ("Axial-B/16", {"pool": "token"}, "no place for a class token: take pool='gap'"),
        ("R50x1", {"dropout": 0.1}, "Variant R50x1 has no dropout; it takes axial, dtype, kernel_"),
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


def test_hybrids_cut_the_stems_features_into_patches():
    """Sides are halved and rounded up by the stem; only its features need whole patches."""
    model = models.build("R50+B/16", num_classes=0)
    assert model.stride == (16, 16) and model.grid((225, 64)) == (15, 4)
    tree = shapes("R50+B/16", (33, 64), num_classes=0, width=12, num_heads=3, depth=1)
    assert tree["Transformer/posembed_input/pos_embedding"] == (1, 1 + 3 * 4, 12)
    assert models.build("R+Ti/16", num_classes=0).stride == (32, 32)
    with pytest.raises(ValueError, match="of 100x224 pixels the stem makes features of 25x56"):
        shapes("R+Ti/16", (100, 224), num_classes=0)


def test_remat_keeps_less_and_changes_neither_parameters_nor_gradients(rng):
    """The same with dropout, whose masks are drawn again."""
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    params = random_params(tiny(depth=3), images)
    gradients, kept = {}, {}
    for remat in ("none", "dots", "full"):
        model = tiny(depth=3, dropout=0.3, remat=remat)

        def loss(params, model=model):
            rngs = {"dropout": jax.random.key(3)}
            return jnp.square(model.apply({"params": params}, images, train=True, rngs=rngs)).sum()

        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
        gradients[remat] = jax.jit(jax.grad(loss))(params)
    assert kept["full"] < kept["dots"] < kept["none"]
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            gradients[remat],
            gradients["none"],
        )


def forward_and_gradients(model, params, images):
    """Logits, and gradients of a function of all of them, as float64."""

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return jnp.square(logits - 1).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return [np.asarray(x, np.float64) for x in (logits, *jax.tree.leaves(grads))]


def assert_same(found, expected, tolerance):
    """Logits by their largest, gradients by the largest of all."""
    for parts in (slice(1), slice(1, None)):
        largest = max(np.abs(x).max() for x in expected[parts])
        for x, y in zip(found[parts], expected[parts], strict=True):
            assert np.abs(x - y).max() <= tolerance * largest


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(gelu="exact", norm_epsilon=1e-3, dropout=0.3),
        dict(positions="relative"),
        dict(axial=True, pool="gap"),
        dict(remat="dots"),
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
    "options",
    [dict(), dict(remat="full", positions="relative"), dict(axial=True, pool="gap")],
    ids=str,
)
def test_a_loop_over_layers_changes_neither_parameters_nor_gradients(images, options):
    model = tiny(depth=3, **options)
    params = random_params(model, images)
    scanned = model.clone(scan=True)
    assert jax.tree.structure(
        scanned.init(jax.random.key(0), images)["params"]
    ) == jax.tree.structure(params)
    found, expected = (forward_and_gradients(m, params, images) for m in (scanned, model))
    assert_same(found, expected, 1e-5)
    text = (
        jax.jit(scanned.apply, static_argnames="train")
        .lower({"params": params}, images, train=True)
        .as_text()
    )
    assert text.count("stablehlo.while") == 1


def test_layers_of_a_loop_drop_different_units(images):
    """Every layer adds 1 to all units that it doesn't drop: with one mask, there'd be two sums."""
    model = tiny(num_classes=0, depth=6, dropout=0.5, scan=True)
    params = jax.tree.map(np.zeros_like, random_params(model, images))
    params["Transformer"]["encoder_norm"]["scale"] += 1
    for i in range(6):
        params["Transformer"][f"encoderblock_{i}"]["MlpBlock_0"]["Dense_1"]["bias"] += 1
    rngs = {"dropout": jax.random.key(0)}
    (units, _) = model.apply({"params": params}, images, train=True, rngs=rngs)
    assert len(np.unique(np.round(units, 3))) > 3


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


def test_tokens_are_filled_up_once_for_all_blocks(images, xla_as_cudnn):
    model = tiny(depth=3).clone(implementation="cudnn")
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    del xla_as_cudnn[:]
    program = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x, train=True))(params, images)
    n = math.prod(model.grid(images.shape[1:3])) + 1
    assert n % 2
    assert xla_as_cudnn == 3 * [("cudnn", n + 1, True)]
    assert (
        sum(
            str(eqn.primitive) == "pad" or "_pad" in str(eqn.params.get("name"))
            for eqn in program.eqns
        )
        == 1
    )


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "expected"),
    [
        ("cpu", None, "bfloat16", "custom_vjp"),
        ("tpu", None, "bfloat16", "plain"),
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


def test_a_model_with_cudnns_attention_is_lowered_for_gpus(monkeypatch):
    """As far as one gets without a GPU: JAX is told that there is one with cuDNN 9.10."""
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
