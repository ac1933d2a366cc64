"""What a model looks at, against NumPy in float64 and transformers' own attention."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from conftest import CLASSES, REPOSITORY, tiny
from peers import torch
from sklearn.decomposition import PCA

from vit_jax import models
from vit_jax.data.builders import rendered_flowers
from vit_jax.inference.classifier import prepare
from vit_jax.interpret.attention import (
    attention_distances,
    attention_maps,
    rollout,
    rollout_and_heads,
)
from vit_jax.interpret.class_maps import grad_cam
from vit_jax.interpret.filters import first_layer_filters, position_similarity
from vit_jax.models.patches import to_float
from vit_jax.weights.api import load

transformers = pytest.importorskip("transformers")

GRID = (2, 3)  # of 16 x 24 pixels in patches of 8


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)


@pytest.fixture
def weights(rng):
    """Attention of 4 layers, 3 images, 2 heads, a class token and 2 x 3 patches; not a model's."""
    found = rng.dirichlet(np.ones(7), size=(4, 3, 2, 7))
    return jnp.asarray(found, jnp.float32)


def random_tree(model, images, seed=0):
    return peers.random_params(model, images.shape[1:3], seed)


def first_attention(params, images, relative=None):
    """The first layer's weights, straight from equations 1, 5 and 6: (b, k, n, n) float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    b, h, w, _ = images.shape
    patches = (images / 127.5 - 1).reshape(b, h // 8, 8, w // 8, 8, 3).swapaxes(2, 3)
    kernel = params["embedding"]["kernel"]
    z = patches.reshape(b, -1, 192) @ kernel.reshape(192, -1) + params["embedding"]["bias"]
    if "cls" in params:
        z = np.concatenate([np.repeat(params["cls"], b, 0), z], 1)
    encoder = params["Transformer"]
    if "posembed_input" in encoder:
        z = z + encoder["posembed_input"]["pos_embedding"]
    if "registers" in encoder:
        registers = np.repeat(encoder["registers"], b, 0)
        z = np.concatenate([z[:, :-6], registers, z[:, -6:]], axis=1)
    return attention_of(encoder["encoderblock_0"], z)


def attention_of(block, z):
    norm = block["LayerNorm_0"]
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)
    z = z * norm["scale"] + norm["bias"]
    attention = block["MultiHeadDotProductAttention_0"]
    q, k = (
        np.einsum("bnd,dkh->bknh", z, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name in ("query", "key")
    )
    scores = q @ k.swapaxes(-1, -2)
    if "RelativePositions_0" in block:
        table, n = block["RelativePositions_0"]["offset_embedding"], z.shape[1]
        for i in range(n):
            for j in range(n):
                scores[:, :, i, j] += q[:, :, i] @ table[i - j + n - 1]
    scores = np.exp(scores / np.sqrt(q.shape[-1]))
    return scores / scores.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "attributes",
    [dict(), dict(pool="gap"), dict(positions="relative"), dict(depth=3, positions="none")],
    ids=str,
)
def test_attention_is_that_of_equation_6(images, attributes):
    model = tiny(**attributes)
    params = random_tree(model, images)
    found = attention_maps(model, params, images)
    tokens = 6 + (model.pool == "token")
    assert found.shape == (model.depth, 3, 2, tokens, tokens)
    expected = first_attention(params, images)
    assert expected.std() > 0.02  # of 1/7: not all alike
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        dict(class_tokens=2, registers=2),
        dict(pool="gap", class_tokens=1, registers=1),
        dict(pool="gap", registers=2),
        dict(pool="token+gap"),
        dict(pool="map", registers=1),
    ],
    ids=str,
)
def test_what_is_pooled_is_followed_and_other_tokens_come_first(images, attributes):
    model = tiny(**attributes)
    params = random_tree(model, images)
    expected = first_attention(params, images)
    maps = attention_maps(model, params, images)
    np.testing.assert_allclose(maps[0], expected, atol=1e-5)
    shares = np.zeros(expected.shape[-1])  # of tokens, in what the head reads
    if model.pool == "map":
        shares[-6:] = probe_attention(model, params, images)[0]
    else:
        k, n = model.num_class_tokens, len(shares)
        read = list(range(k)) if "token" in model.pool else []
        shares[read] = 1 / (len(read) + ("gap" in model.pool))
        shares[n - 6 :] = (1 - shares.sum()) / 6
    found, heads = rollout_and_heads(model, params, images[0])
    layer = 0.5 * expected[0].mean(0) + 0.5 * np.eye(len(shares))
    np.testing.assert_allclose(found.reshape(6), (shares @ layer)[-6:], atol=1e-5)
    expected = np.einsum("q,hqk->hk", shares, expected[0])[:, -6:]
    np.testing.assert_allclose(heads[0].reshape(2, 6), expected, atol=1e-5)


def probe_attention(model, params, images):
    """What the probe reads in each image's patches, the mean over the heads: (b, 6)."""
    _, state = captured(model, params, images, "Transformer")
    patches = np.asarray(state["Transformer"]["__call__"][0], np.float64)[:, -6:]
    attention = params["MAPHead_0"]["MultiHeadDotProductAttention_0"]
    q, k = (
        np.einsum("bnd,dkh->bknh", z, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name, z in (("query", params["MAPHead_0"]["probe"]), ("key", patches))
    )
    scores = np.exp((q @ k.swapaxes(-1, -2))[:, :, 0] / np.sqrt(q.shape[-1]))
    return (scores / scores.sum(-1, keepdims=True)).mean(1)


@pytest.mark.peers
def test_attention_of_every_layer_is_that_of_transformers(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=48,
        intermediate_size=64,
        num_attention_heads=3,
        num_hidden_layers=4,
        patch_size=16,
        image_size=64,
        num_labels=5,
        attn_implementation="eager",
    )
    theirs = peers.randomise(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    opened = load(tmp_path, depth=4, width=48, mlp_dim=64, num_heads=3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    params = jax.tree.map(np.asarray, opened.params)
    found = attention_maps(opened.model(), params, pixels)
    inputs = torch.tensor(np.asarray(to_float(pixels))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(inputs, output_attentions=True).attentions
    expected = np.stack([x.numpy() for x in expected])
    assert found.shape == expected.shape == (4, 2, 3, 17, 17)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_axial_attention_is_along_rows_then_columns(images):
    model = tiny(axial=True, pool="gap")
    params = random_tree(model, images)
    found = np.asarray(attention_maps(model, params, images))
    assert found.shape == (2, 3, 2, 6, 6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    row, column = np.divmod(np.arange(6), GRID[1])
    assert not found[0][..., row[:, None] != row].any()
    assert not found[1][..., column[:, None] != column].any()
    assert (found[1][..., column[:, None] == column] > 0).all()

    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    _, state = captured(model, params, images, "posembed_input")
    z = np.asarray(state["Transformer"]["posembed_input"]["__call__"][0], np.float64)
    z = z.reshape(3, *GRID, -1)
    for r in range(GRID[0]):
        expected = attention_of(tree["Transformer"]["encoderblock_0"]["row"], z[:, r])
        at = slice(r * GRID[1], (r + 1) * GRID[1])
        np.testing.assert_allclose(found[0][:, :, at, at], expected, atol=1e-5)


def captured(model, params, images, *names):
    """The logits, and what the modules of these names gave."""
    logits, state = model.apply(
        {"params": params},
        to_float(images),
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name in names,
    )
    return logits, state["intermediates"]


def test_rollout_multiplies_the_layers_back_to_the_patches(weights):
    found = rollout(weights, GRID)
    assert found.shape == (3, 2, 3)
    for image in range(3):
        share = np.eye(7)[0]  # of the class token alone
        for layer in range(3, -1, -1):
            heads = np.asarray(weights[layer, image], np.float64).mean(0)
            share = share @ (0.5 * heads + 0.5 * np.eye(7))
        np.testing.assert_allclose(found[image].reshape(-1), share[1:], atol=1e-6)
        assert share.sum() == pytest.approx(1)


def test_rollout_without_a_class_token_follows_the_mean(weights):
    patches = weights[..., 1:, 1:] / weights[..., 1:, 1:].sum(-1, keepdims=True)
    found = rollout(patches, GRID)
    np.testing.assert_allclose(found.sum((1, 2)), 1, atol=1e-5)
    single = np.asarray(rollout(patches[:1], GRID))  # of one layer, it is its mean
    expected = 0.5 * np.asarray(patches[0]).mean(1).mean(1) + 0.5 / 6
    np.testing.assert_allclose(single.reshape(3, 6), expected, atol=1e-6)


def test_rollout_of_attention_to_itself_and_to_one_patch():
    """By hand: through the first of two layers the token reads patch 4, through the second none."""
    to_itself = np.eye(7)
    to_patch_4 = np.eye(7)
    to_patch_4[0] = np.eye(7)[1 + 4]
    weights = np.stack([to_patch_4, to_itself])[:, None, None]
    found = np.asarray(rollout(jnp.asarray(weights), GRID))[0]
    assert found[1, 1] == pytest.approx(0.5)  # half of the token is its own
    assert np.delete(found.reshape(-1), 4).max() == 0


@pytest.mark.parametrize("stride", [(8, 8), (16, 4)])
def test_distances_are_weighted_means_in_pixels(weights, stride):
    found = np.asarray(attention_distances(weights, GRID, stride))
    assert found.shape == (4, 3, 2)
    for at in np.ndindex(found.shape):
        patches = np.asarray(weights[at], np.float64)[1:, 1:]
        distances = []
        for query in range(6):
            y, x = divmod(query, 3)
            total = sum(
                patches[query, key]
                * np.hypot(stride[0] * (y - key // 3), stride[1] * (x - key % 3))
                for key in range(6)
            )
            distances.append(total / patches[query].sum())
        assert found[at] == pytest.approx(np.mean(distances), rel=1e-5)


def test_distance_is_zero_for_attention_to_oneself():
    weights = jnp.eye(6)[None, None, None]
    assert attention_distances(weights, GRID, (8, 8)).max() == 0


def test_filters_are_the_principal_components_of_the_embedding(images):
    params = random_tree(tiny(), images)
    found, shares = first_layer_filters(params, components=5)
    kernel = np.asarray(params["embedding"]["kernel"], np.float64)
    expected = PCA(5, svd_solver="full").fit(kernel.reshape(192, -1).T)
    assert found.shape == (5, 8, 8, 3)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, rtol=1e-4)
    overlap = (found.reshape(5, -1) * expected.components_).sum(-1)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-4)
    flat = found.reshape(5, -1)
    assert (flat.max(1) == np.abs(flat).max(1)).all()


def test_filters_of_a_resnet_are_those_of_its_root():
    kernel = np.random.default_rng(0).normal(3, 2, (7, 7, 3, 64)).astype(np.float32)
    found, shares = first_layer_filters({"conv_root": {"kernel": kernel}})
    assert found.shape == (64, 7, 7, 3) and shares is None
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2, 3)), 1, atol=1e-4)
    assert np.corrcoef(found[9].reshape(-1), kernel[..., 9].reshape(-1))[0, 1] > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    "attributes",
    [
        dict(),
        dict(positions="2d"),
        dict(positions="sincos", pool="gap"),
        dict(positions_at="layers", depth=2),
    ],
    ids=str,
)
def test_position_similarity_is_the_cosine_of_what_is_added(images, attributes):
    model = tiny(**attributes)
    params = random_tree(model, images)
    found = position_similarity(model, params, GRID)
    assert found.shape == (*GRID, *GRID)

    place = "posembed_0" if model.positions_at == "layers" else "posembed_input"
    _, state = captured(model, params, images, "embedding", place)
    patches = state["embedding"]["__call__"][0]
    added = state["Transformer"][place]["__call__"][0][0, -6:] - patches[0].reshape(6, -1)
    added = np.asarray(added, np.float64)
    for i, j in np.ndindex(6, 6):
        cosine = added[i] @ added[j] / np.linalg.norm(added[i]) / np.linalg.norm(added[j])
        assert found[divmod(i, 3) + divmod(j, 3)] == pytest.approx(cosine, abs=1e-4)


def test_models_without_an_embedding_for_each_patch_have_no_similarity(images):
    for model in (tiny(positions="none"), tiny(positions="relative")):
        assert position_similarity(model, random_tree(model, images), GRID) is None
    resnet = models.build("R50x1", num_classes=3, layers=(1,))
    assert position_similarity(resnet, {}, GRID) is None


@pytest.mark.parametrize("classes", [None, np.array([2, 0, 5])])
def test_class_maps_weigh_channels_by_the_gradient_of_the_logit(images, classes):
    """The gradient by differentiating what follows the feature map, as Grad-CAM has it."""
    model = models.build("R50x1", num_classes=CLASSES, layers=(1,))
    params = random_tree(model, images)
    found = grad_cam(model, params, images, classes)
    logits, state = captured(model, params, images, "gn_pre_head")
    features = jax.nn.relu(state["gn_pre_head"]["__call__"][0])
    chosen = np.asarray(logits).argmax(-1) if classes is None else classes

    def logit(features):
        tail = features.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
        return tail[jnp.arange(3), chosen].sum(), tail

    gradients, tail = jax.grad(logit, has_aux=True)(features)
    np.testing.assert_allclose(tail, logits, atol=1e-5)
    expected = (features * gradients.mean((1, 2), keepdims=True)).sum(-1).clip(0)
    assert expected.max() > 0 and (expected == 0).any()
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_rollout_lies_on_the_flower(top, left):
    """A small flower in each corner of an even background: no map is upside down or mirrored."""
    checkpoint = prepare(load(REPOSITORY / "checkpoints" / "quickstart"))
    shares = []
    for seed in range(3):
        flower = rendered_flowers.render("rose", np.random.default_rng(seed), size=48)
        image = np.full((96, 96, 3), (90, 120, 70), np.uint8)
        image[48 * top :, 48 * left :][:48, :48] = flower
        view = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
        model = checkpoint.model()
        weights = attention_maps(model, checkpoint.params, view[None])
        found = np.asarray(rollout(weights, (6, 6)))[0]
        quarters = found.reshape(2, 3, 2, 3).sum((1, 3))
        shares.append(quarters[top, left] / quarters.sum())
    assert np.mean(shares) > 0.4  # of the quarter of the picture
