"""Files of big_vision give what its formulas give, written here in NumPy and float64."""

import logging

import jax
import numpy as np
import pytest
from conftest import random_checkpoint

from vit_jax.weights.api import adapt, load, load_for_new_head, load_params, save

rng = np.random.default_rng(0)
WIDTH, DEPTH, MLP, HEADS, PATCH, GRID = 24, 2, 32, 2, 8, 3
IMAGES = rng.uniform(-1, 1, (2, GRID * PATCH, GRID * PATCH, 3))


def random(*shape):
    return rng.normal(0, 0.3, shape).astype(np.float32)


def norm(name):
    return {f"{name}/scale": 1 + random(WIDTH), f"{name}/bias": random(WIDTH)}


def block(name):
    arrays = {}
    attention = f"{name}MultiHeadDotProductAttention_0"
    for part in ("query", "key", "value"):
        arrays[f"{attention}/{part}/kernel"] = random(WIDTH, HEADS, WIDTH // HEADS)
        arrays[f"{attention}/{part}/bias"] = random(HEADS, WIDTH // HEADS)
    arrays[f"{attention}/out/kernel"] = random(HEADS, WIDTH // HEADS, WIDTH)
    arrays[f"{attention}/out/bias"] = random(WIDTH)
    for n, shape in enumerate([(WIDTH, MLP), (MLP, WIDTH)]):
        arrays[f"{name}MlpBlock_0/Dense_{n}/kernel"] = random(*shape)
        arrays[f"{name}MlpBlock_0/Dense_{n}/bias"] = random(shape[1])
    return arrays | norm(f"{name}LayerNorm_0")


def tower(pool, head=0, pre_logits=False, positions=True):
    """Returns the arrays of a model of big_vision's `models/vit.py` since 2022."""
    arrays = {
        "embedding/kernel": random(PATCH, PATCH, 3, WIDTH),
        "embedding/bias": random(WIDTH),
        **norm("Transformer/encoder_norm"),
    }
    for i in range(DEPTH):
        name = f"Transformer/encoderblock_{i}/"
        arrays |= block(name) | norm(f"{name}LayerNorm_1")
    if positions:
        arrays["pos_embedding"] = random(1, GRID**2, WIDTH)
    if pool == "tok":
        arrays["cls"] = random(1, 1, WIDTH)
    if pool == "map":
        arrays |= {"MAPHead_0/probe": random(1, 1, WIDTH), **block("MAPHead_0/")}
    if pre_logits:
        arrays |= {"pre_logits/kernel": random(WIDTH, WIDTH), "pre_logits/bias": random(WIDTH)}
    if head:
        arrays |= {"head/kernel": random(WIDTH, head), "head/bias": random(head)}
    return arrays


def layer_norm(x, arrays, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def attend(queries, x, arrays, name):
    q, k, v = (
        np.einsum("bnd,dhe->bhne", y, arrays[f"{name}/{part}/kernel"])
        + arrays[f"{name}/{part}/bias"][:, None]
        for y, part in ((queries, "query"), (x, "key"), (x, "value"))
    )
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS))
    values = scores / scores.sum(-1, keepdims=True) @ v
    return (
        np.einsum("bhne,hed->bnd", values, arrays[f"{name}/out/kernel"])
        + arrays[f"{name}/out/bias"]
    )


def mlp(x, arrays, name):
    x = x @ arrays[f"{name}/Dense_0/kernel"] + arrays[f"{name}/Dense_0/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ arrays[f"{name}/Dense_1/kernel"] + arrays[f"{name}/Dense_1/bias"]


def sincos():
    """MoCo v3's positions, as big_vision's `posemb_sincos_2d` has them: (1, n, width)."""
    y, x = (z.reshape(-1, 1) for z in np.mgrid[:GRID, :GRID])
    omega = 1 / 10_000 ** (np.arange(WIDTH // 4) / (WIDTH // 4 - 1))
    return np.concatenate([f(z * omega) for z in (x, y) for f in (np.sin, np.cos)], axis=-1)[None]


def expected(arrays, images=IMAGES):
    """The output of big_vision's model."""
    arrays = {name: np.float64(x) for name, x in arrays.items()}
    patches = images.reshape(len(images), GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3)
    kernel = arrays["embedding/kernel"].reshape(-1, WIDTH)
    x = patches.reshape(len(images), GRID**2, -1) @ kernel + arrays["embedding/bias"]
    x = x + arrays.get("pos_embedding", sincos())
    if "cls" in arrays:
        x = np.concatenate([np.repeat(arrays["cls"], len(x), 0), x], axis=1)
    for i in range(DEPTH):
        name = f"Transformer/encoderblock_{i}"
        y = layer_norm(x, arrays, f"{name}/LayerNorm_0")
        x = x + attend(y, y, arrays, f"{name}/MultiHeadDotProductAttention_0")
        x = x + mlp(layer_norm(x, arrays, f"{name}/LayerNorm_1"), arrays, f"{name}/MlpBlock_0")
    x = layer_norm(x, arrays, "Transformer/encoder_norm")
    if "MAPHead_0/probe" in arrays:
        probe = np.repeat(arrays["MAPHead_0/probe"], len(x), 0)
        x = attend(probe, x, arrays, "MAPHead_0/MultiHeadDotProductAttention_0")
        y = layer_norm(x, arrays, "MAPHead_0/LayerNorm_0")
        x = (x + mlp(y, arrays, "MAPHead_0/MlpBlock_0"))[:, 0]
    else:
        x = x[:, 0] if "cls" in arrays else x.mean(1)
    for name in ("pre_logits", "head"):
        if f"{name}/kernel" in arrays:
            x = x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]
            x = np.tanh(x) if name == "pre_logits" else x
    return x


def check(checkpoint, reference, images=IMAGES):
    params = jax.tree.map(np.asarray, checkpoint.params)
    found = checkpoint.model().apply({"params": params}, np.float32(images))
    np.testing.assert_allclose(found, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


def stacked(arrays):
    """Returns the arrays as big_vision stores them with `scan=True`."""
    first = "Transformer/encoderblock_0/"
    whole = {
        name.replace("_0/", "/", 1): np.stack(
            [arrays[name.replace("_0/", f"_{i}/", 1)] for i in range(DEPTH)]
        )
        for name in arrays
        if name.startswith(first)
    }
    return {n: x for n, x in arrays.items() if not n.startswith("Transformer/encoderblock")} | whole


def with_text(arrays, prefix):
    others = {"txt/Embed_0/embedding": random(8, WIDTH), "t": random(1), "b": random(1)}
    named = {f"img/{name}": x for name, x in arrays.items()} | others
    return {prefix + name: x for name, x in named.items()}


@pytest.mark.parametrize(("pool", "options"), [
    ("gap", dict(head=3)),
    ("gap", dict(head=3, pre_logits=True)),
    ("tok", dict(head=3)),
    ("map", {}),
    ("map", dict(head=3)),
])  # fmt: skip
def test_every_pooling(tmp_path, pool, options):
    arrays = tower(pool, **options)
    np.savez(tmp_path / "x.npz", **arrays)
    found = load(tmp_path / "x.npz")
    check(found, expected(arrays))
    assert found.image_shape == (GRID * PATCH, GRID * PATCH)
    save(found, tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as file:
        same = [name for name, x in arrays.items() if name in file and (file[name] == x).all()]
    assert len(same) == len(arrays) if pool == "map" else same  # MAP heads are written so
    check(load(tmp_path / "again.npz"), expected(arrays))


@pytest.mark.parametrize("name", ["pos_embedding", "Transformer/pos_embedding"])
def test_tables_of_class_token_and_patches_before_2022(tmp_path, name):
    arrays = tower("tok", head=3)
    reference = expected(arrays)
    row = random(1, 1, WIDTH)
    arrays["cls"] = arrays["cls"] - row
    arrays[name] = np.concatenate([row, arrays.pop("pos_embedding")], axis=1)
    np.savez(tmp_path / "x.npz", **arrays)
    check(load(tmp_path / "x.npz"), reference)


@pytest.mark.parametrize("pool", ["tok", "gap"])
def test_tables_of_grids_that_are_no_squares_are_of_patches_alone(tmp_path, pool):
    arrays = tower(pool, head=3)
    arrays["pos_embedding"] = random(1, 12, WIDTH)
    np.savez(tmp_path / "x.npz", **arrays)
    found = load(tmp_path / "x.npz", image_size=(3 * PATCH, 4 * PATCH))
    assert found.grid == (3, 4) and found.model().pool == {"tok": "token"}.get(pool, pool)
    table = np.asarray(found.params["Transformer"]["posembed_input"]["pos_embedding"])
    np.testing.assert_array_equal(table[:, -12:], arrays["pos_embedding"])
    assert table.shape[1] == (13 if pool == "tok" else 12) and not table[:, :-12].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: stacked(a) | {k: x for k, x in a.items() if "encoderblock_0" in k},
        lambda a: a | {"Transformer/pos_embedding": a["pos_embedding"]},
        lambda a: a | {"Transformer/posembed_input/pos_embedding": a["pos_embedding"]},
    ],
)
def test_two_arrays_for_one_parameter_are_refused(tmp_path, change):
    np.savez(tmp_path / "x.npz", **change(tower("tok", head=3)))
    with pytest.raises(ValueError, match=r"x\.npz has two arrays for one parameter: "):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_image_towers_beside_text_towers(tmp_path, prefix):
    arrays = tower("map")
    np.savez(tmp_path / "x.npz", **with_text(stacked(arrays), prefix))
    found = load(tmp_path / "x.npz")
    check(found, expected(arrays))
    assert found.model().pool == "map" and found.config.data.eval_crop == "whole"
    assert f"Only {prefix}img/ is taken, not {prefix}txt/Embed_0/embedding" in found.changes[0]


def test_the_head_of_a_tower_is_a_projection(tmp_path):
    arrays = tower("gap", head=5)
    np.savez(tmp_path / "x.npz", **with_text(arrays, "params/"))
    with pytest.raises(ValueError, match="projects images into the space that they share"):
        load(tmp_path / "x.npz")
    check(load_for_new_head(tmp_path / "x.npz"), expected(arrays))
    features = {n: x for n, x in arrays.items() if not n.startswith("head")}
    check(load(tmp_path / "x.npz", num_classes=0), expected(features))


def test_blocks_in_one_array_are_read_once(tmp_path, monkeypatch):
    arrays = tower("gap", head=3)
    np.savez(tmp_path / "x.npz", **stacked(arrays))
    found = load(tmp_path / "x.npz")
    read, read_array = [], np.lib.format.read_array

    def counted(*args, **kwargs):
        read.append(args[0].name)
        return read_array(*args, **kwargs)

    monkeypatch.setattr(np.lib.format, "read_array", counted)
    block = found.params["Transformer"]["encoderblock_1"]["LayerNorm_0"]["bias"]
    for _ in range(2):  # also if it is asked for again
        np.testing.assert_array_equal(
            np.asarray(block), arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
        )
    read.clear()
    check(adapt(found, num_classes=None), expected(arrays))
    assert len(read) == len(set(read))


def test_blocks_of_different_number_are_named(tmp_path):
    arrays = stacked(tower("gap", head=3))
    arrays["Transformer/encoderblock/LayerNorm_0/bias"] = random(DEPTH + 1, WIDTH)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match="encoderblock_2"):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("pool", ["gap", "tok"])
def test_no_table_means_sines_and_cosines(tmp_path, caplog, pool):
    arrays = tower(pool, head=3, pre_logits=True, positions=False)
    np.savez(tmp_path / "x.npz", **arrays)
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "x.npz", image_size=GRID * PATCH)
    assert found.config.model.positions == "sincos"
    assert "positions='sincos'" in caplog.text and str(tmp_path / "x.npz") in caplog.text
    check(found, expected(arrays))
    without = load(tmp_path / "x.npz", positions="none").model()
    assert without.positions == "none"


def test_our_own_record_says_that_there_are_no_positions(tmp_path, caplog):
    arrays = tower("gap", head=3, positions=False)
    np.savez(tmp_path / "x.npz", **arrays)
    save(load(tmp_path / "x.npz", positions="none"), tmp_path / "ours.npz")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path / "ours.npz").config.model.positions == "none"
    assert not caplog.records
    reference = expected(arrays | {"pos_embedding": np.zeros((1, 1, WIDTH))})
    check(load(tmp_path / "ours.npz", image_size=GRID * PATCH), reference)


def test_convolutions_with_numbers_in_bit_files(tmp_path):
    checkpoint = random_checkpoint("R50x1", layers=(1, 1))
    save(checkpoint, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        arrays = dict(file)
    number = iter(range(len(arrays)))
    renamed = {
        name.replace("standardized_conv2d", f"standardized_conv2d_{next(number)}"): x
        for name, x in arrays.items()
    }
    np.savez(tmp_path / "renamed.npz", **renamed)
    found = load_params(tmp_path / "renamed.npz")
    np.testing.assert_array_equal(
        found["block2"]["unit1"]["conv_proj"]["kernel"],
        checkpoint.params["block2"]["unit1"]["conv_proj"]["kernel"],
    )
