"""Features against the models' outputs, and tokens against blocks called one by one."""

import jax
import numpy as np
import pytest
from equations import TINY, paper_forward, random_params, tiny

from vit_jax import models
from vit_jax.models.encoder import AxialEncoderBlock, EncoderBlock
from vit_jax.models.features import token_features
from vit_jax.models.patches import to_patches


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


def tokens_by_blocks(params, images, options):
    """The tokens before the first block, by NumPy, and after each, block after block."""
    patches = np.asarray(to_patches(images, (4, 4))).reshape(2, 6, 48)
    embedding = params["embedding"]
    z = patches @ embedding["kernel"].reshape(48, -1) + embedding["bias"]
    if "cls" in params:
        z = np.concatenate([np.repeat(params["cls"], 2, axis=0), z], axis=1)
    encoder, found = params["Transformer"], []
    if "posembed_input" in encoder:
        z = z + encoder["posembed_input"]["pos_embedding"]
    shown = z.shape[1]
    if "registers" in encoder:
        z = np.concatenate([z, np.repeat(encoder["registers"], 2, axis=0)], axis=1)
    sizes = dict(mlp_dim=TINY["mlp_dim"], num_heads=TINY["num_heads"])
    sizes["relative"] = options.get("positions") == "relative"
    block = AxialEncoderBlock((3, 2), sizes) if options.get("axial") else EncoderBlock(**sizes)
    for i in range(TINY["depth"]):
        if f"posembed_{i}" in encoder:
            z = z + encoder[f"posembed_{i}"]["pos_embedding"]
        if i == 0:
            found.append(z[:, :shown])
        z = block.apply({"params": encoder[f"encoderblock_{i}"]}, z, train=False)
        found.append(z[:, :shown])
    return found


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(pool="gap"),
        dict(positions="relative"),
        dict(positions_at="layers"),
        dict(axial=True, pool="gap"),
        dict(registers=3, class_tokens=2),
        dict(implementation="custom_vjp", remat="full", scan=True),
    ],
    ids=str,
)
def test_tokens_are_those_of_blocks_called_one_by_one(images, options):
    model = tiny(**options)
    params = random_params(model, images)
    compute = jax.jit(lambda p, x: token_features(model, p, x, (2, 0, 1), final_tokens=True))
    found = compute(params, images)
    expected = tokens_by_blocks(params, images, options)
    assert sorted(found.tokens) == [0, 1, 2]
    for layer, tokens in found.tokens.items():
        assert tokens.dtype == np.float32
        scale = np.abs(expected[layer]).max()
        np.testing.assert_allclose(tokens, expected[layer], atol=1e-5 * scale)
    norm, last = params["Transformer"]["encoder_norm"], np.asarray(expected[-1], np.float64)
    last = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    assert found.final_tokens.dtype == np.float32
    np.testing.assert_allclose(found.final_tokens, last * norm["scale"] + norm["bias"], atol=1e-4)


def test_final_tokens_are_those_that_a_model_pools(images):
    model = tiny(pool="gap")
    params = random_params(model, images)
    found = token_features(model, params, images, final_tokens=True)
    assert found.tokens == {} and found.final_tokens.shape == (2, 6, TINY["width"])
    np.testing.assert_allclose(found.final_tokens.mean(1), found.pooled, atol=1e-5)
    after = tiny(pool="gap", final_norm="after_pool")  # its encoder doesn't normalise
    params = random_params(after, images)
    found = token_features(after, params, images, (2,), final_tokens=True)
    np.testing.assert_array_equal(found.final_tokens, found.tokens[2])


@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("layers", [(), (1,)])
def test_pooled_is_what_the_head_reads(images, layers, pre_logits):
    model = tiny(pre_logits=pre_logits)
    params = random_params(model, images)
    found = token_features(model, params, images, layers)
    assert found.pooled.shape == (2, TINY["width"]) and found.pooled.dtype == np.float32
    logits = found.pooled @ params["head"]["kernel"] + params["head"]["bias"]
    expected = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    headless = {name: x for name, x in params.items() if name != "head"}
    expected = paper_forward(headless, images, patch_size=4, pre_logits=pre_logits)
    np.testing.assert_allclose(found.pooled, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_the_token_that_fills_up_for_cudnn_is_left_out(images, monkeypatch):
    """With XLA's attention in cuDNN's place, in bfloat16: 7 tokens, which cuDNN sees as 8."""
    attention = jax.nn.dot_product_attention
    seen = []

    def xla(query, *args, implementation, **options):
        seen.append((implementation, query.shape[1]))
        return attention(query, *args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    plain = tiny(width=24, dtype="bfloat16")
    params = random_params(plain, images)
    expected = token_features(plain, params, images, (1, 2))
    found = token_features(plain.clone(implementation="cudnn"), params, images, (1, 2))
    assert set(seen) == {("cudnn", 8)}
    for layer, tokens in found.tokens.items():
        assert tokens.shape == (2, 7, 24) and tokens.dtype == np.float32
        scale = np.abs(expected.tokens[layer]).max()
        np.testing.assert_allclose(tokens, expected.tokens[layer], atol=0.03 * scale)


@pytest.mark.parametrize("layer", [3, -1])
def test_blocks_that_do_not_exist_are_refused(images, layer):
    model = tiny()
    with pytest.raises(ValueError, match=f"no encoder block {layer}: .* from 1 to 2"):
        token_features(model, random_params(model, images), images, (1, layer))


def test_a_resnet_has_a_pooled_representation_but_no_blocks(rng):
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    model = models.build("R50x1", num_classes=5, layers=(1,))
    params = random_params(model, images)
    found = token_features(model, params, images)
    assert found.tokens == {}
    logits = found.pooled @ params["head"]["kernel"] + params["head"]["bias"]
    expected = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    for asked in (dict(layers=(1,)), dict(final_tokens=True)):
        with pytest.raises(ValueError, match="ResNet has no tokens"):
            token_features(model, params, images, **asked)
