"""What is folded into other arrays computes the same, by NumPy in float64."""

import re

import numpy as np
import pytest

from vit_jax.weights.folding import fold
from vit_jax.weights.tensor_file import LazyArray

rng = np.random.default_rng(0)
OUT = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_0/out/"
MLP = "Transformer/encoderblock_{}/MlpBlock_0/Dense_1/"
SCALE = "Transformer/encoderblock_{}/LayerScale_{}"
TABLE = "Transformer/posembed_input/pos_embedding"


def lazy(**arrays):
    """Returns the arrays as a file gives them; "__" in their keywords stands for "/"."""
    named = {name.replace("__", "/"): x for name, x in arrays.items()}
    return {name: LazyArray(x.shape, lambda x=x: x) for name, x in named.items()}


def random(*shape):
    return rng.normal(size=shape).astype(np.float32)


def two_blocks():
    arrays = {}
    for i in range(2):
        for layer in (OUT, MLP):
            arrays |= {
                layer.format(i) + "kernel": random(6, 4),
                layer.format(i) + "bias": random(4),
            }
        arrays |= {SCALE.format(i, n): random(4) for n in (0, 1)}
    return arrays


def test_layer_scale_multiplies_the_last_layer_of_a_branch():
    arrays = two_blocks()
    found, changes = fold(lazy(**arrays))
    x = np.float64(random(5, 6))
    for i in range(2):
        for n, layer in enumerate((OUT, MLP)):
            kernel, bias = (np.float64(arrays[layer.format(i) + k]) for k in ("kernel", "bias"))
            expected = (x @ kernel + bias) * arrays[SCALE.format(i, n)]
            new = [np.asarray(found[layer.format(i) + k], np.float64) for k in ("kernel", "bias")]
            np.testing.assert_allclose(x @ new[0] + new[1], expected, rtol=1e-5, atol=1e-5)
    assert not any("LayerScale" in name for name in found)
    assert "LayerScale" in changes[0] and len(changes) == 1


@pytest.mark.parametrize("missing", [SCALE.format(1, 0), SCALE.format(0, 1)])
def test_a_layer_scale_that_is_missing_is_named(missing):
    arrays = two_blocks()
    del arrays[missing]
    with pytest.raises(ValueError, match=f"{missing.rsplit('/', 1)[0]} lacks a LayerScale"):
        fold(lazy(**arrays))


def test_mean_and_standard_deviation_go_into_the_patch_embedding():
    kernel, bias = random(4, 4, 3, 8), random(8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found, changes = fold(lazy(embedding__kernel=kernel, embedding__bias=bias), mean=mean, std=std)
    pixels = rng.integers(0, 256, (10, 4, 4, 3))
    theirs = (pixels / 255 - np.array(mean)) / np.array(std)
    expected = np.einsum("nhwc,hwcd->nd", theirs, np.float64(kernel)) + bias
    ours = pixels / 127.5 - 1
    new = {name: np.asarray(x, np.float64) for name, x in found.items()}
    logits = np.einsum("nhwc,hwcd->nd", ours, new["embedding/kernel"]) + new["embedding/bias"]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert "0.485, 0.456, 0.406" in changes[0]


def test_nothing_is_touched_if_images_are_scaled_as_ours():
    arrays = lazy(embedding__kernel=random(4, 4, 3, 8), embedding__bias=random(8))
    found, changes = fold(arrays, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert changes == [] and all(found[name] is x for name, x in arrays.items())


def test_a_stem_cannot_take_another_scale():
    arrays = lazy(conv_root__kernel=random(7, 7, 3, 64))
    with pytest.raises(ValueError, match="can't be folded into a stem"):
        fold(arrays, mean=(0.4,) * 3, std=(0.5,) * 3)


def table_of(cls, registers, rows, patches=None):
    arrays = {TABLE: random(1, rows, 4)}
    if cls:
        arrays["cls"] = random(1, cls, 4)
    if registers:
        arrays["Transformer/registers"] = random(1, registers, 4)
    found, changes = fold(lazy(**arrays), patches=patches)
    return arrays, {name: np.asarray(x) for name, x in found.items()}, changes


@pytest.mark.parametrize(
    ("cls", "registers", "rows", "patches"),
    [
        (0, 0, 9, None),
        (1, 0, 10, None),
        (2, 0, 11, None),
        (1, 4, 10, None),
        (1, 0, 7, 6),
        (0, 4, 6, 6),
    ],
)
def test_tables_of_class_tokens_and_patches_are_kept(cls, registers, rows, patches):
    arrays, found, changes = table_of(cls, registers, rows, patches)
    assert changes == []
    np.testing.assert_array_equal(found[TABLE], arrays[TABLE])


@pytest.mark.parametrize(
    ("cls", "registers", "rows", "patches"), [(1, 0, 9, None), (2, 4, 16, None), (1, 2, 6, 6)]
)
def test_tables_of_patches_alone_get_rows_of_zeros(cls, registers, rows, patches):
    arrays, found, changes = table_of(cls, registers, rows, patches)
    assert "one of zeros" in changes[0]
    np.testing.assert_array_equal(found[TABLE][:, cls:], arrays[TABLE])
    assert found[TABLE].shape == (1, cls + rows, 4) and not found[TABLE][:, :cls].any()


@pytest.mark.parametrize(
    ("cls", "registers", "rows", "patches"), [(1, 4, 21, None), (0, 4, 8, None), (1, 1, 8, 6)]
)
def test_positions_of_registers_are_added_to_them(cls, registers, rows, patches):
    arrays, found, changes = table_of(cls, registers, rows, patches)
    assert "registers" in changes[0]
    tokens = np.concatenate(
        [arrays.get("cls", random(1, 0, 4)), arrays["Transformer/registers"]], axis=1
    )
    sums = tokens + arrays[TABLE][:, : cls + registers]
    np.testing.assert_array_equal(found["Transformer/registers"], sums[:, cls:])
    kept = np.concatenate([arrays[TABLE][:, :cls], arrays[TABLE][:, cls + registers :]], axis=1)
    np.testing.assert_array_equal(found[TABLE], kept)


def test_two_heads_of_a_distilled_model_become_their_mean():
    arrays = {"cls": random(1, 1, 6), "distillation_token": random(1, 1, 6)}
    for layer in ("head", "head_dist"):
        arrays |= {f"{layer}/kernel": random(6, 3), f"{layer}/bias": random(3)}
    found, changes = fold(lazy(**arrays))
    tokens = np.float64(random(5, 2, 6))
    each = [
        tokens[:, n] @ arrays[f"{layer}/kernel"] + arrays[f"{layer}/bias"]
        for n, layer in enumerate(("head", "head_dist"))
    ]
    kernel, bias = (np.asarray(found[f"head/{x}"], np.float64) for x in ("kernel", "bias"))
    np.testing.assert_allclose(tokens.reshape(5, 12) @ kernel + bias, sum(each) / 2, atol=1e-6)
    assert found["cls"].shape == (1, 2, 6) and "distillation_token" not in found
    assert len(changes) == 1


def test_biases_that_no_block_has_are_zeros():
    zeros = re.compile(r"Transformer/.*/bias")
    arrays = {
        f"Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/kernel": random(4, 6) for i in (0, 1)
    }
    found, changes = fold(lazy(**arrays), zeros=zeros)
    for i in (0, 1):
        bias = np.asarray(found[f"Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/bias"])
        np.testing.assert_array_equal(bias, np.zeros(6, np.float32), strict=True)
    assert "Dense_0" in changes[0]
    arrays["Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"] = random(6)
    found, changes = fold(lazy(**arrays), zeros=zeros)
    assert changes == [] and "Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias" not in found
