"""The names of published `.npz` files, and `.npz` files that are damaged."""

import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from tiny_weights import STEM, VIT, assert_same, published, random_params

from vit_jax.weights.api import load, load_params, save_params


def test_names_of_a_published_vit(tmp_path):
    """The keys of a public .npz of ImageNet-21k, two blocks of it."""
    params = random_params("B/16", **VIT, pre_logits=True)
    save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    expected = {
        "cls": (1, 1, 24),
        "embedding/kernel": (8, 8, 3, 24),
        "embedding/bias": (24,),
        "Transformer/posembed_input/pos_embedding": (1, 17, 24),
        "Transformer/encoder_norm/scale": (24,),
        "Transformer/encoder_norm/bias": (24,),
        "pre_logits/kernel": (24, 24),
        "pre_logits/bias": (24,),
        "head/kernel": (24, 3),
        "head/bias": (3,),
    }
    for i in (0, 1):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            expected[f"{attention}/{name}/kernel"] = (24, 2, 12)
            expected[f"{attention}/{name}/bias"] = (2, 12)
        expected[f"{attention}/out/kernel"] = (2, 12, 24)
        expected[f"{attention}/out/bias"] = (24,)
        for n in (0, 2):
            expected |= {f"{block}/LayerNorm_{n}/{x}": (24,) for x in ("scale", "bias")}
        expected[f"{block}/MlpBlock_3/Dense_0/kernel"] = (24, 32)
        expected[f"{block}/MlpBlock_3/Dense_0/bias"] = (32,)
        expected[f"{block}/MlpBlock_3/Dense_1/kernel"] = (32, 24)
        expected[f"{block}/MlpBlock_3/Dense_1/bias"] = (24,)
    with np.load(tmp_path / "x.npz") as file:
        assert {name: file[name].shape for name in file} == expected


def test_names_of_a_published_hybrid_and_a_published_bit_resnet(tmp_path):
    options = dict(STEM, stem=(1, 2))
    params = random_params("R50+B/16", **options)
    save_params(params, tmp_path / "x.npz", variant="R50+B/16", format="npz", **options)
    with np.load(tmp_path / "x.npz") as file:
        stem = {n: file[n].shape for n in file if not n.startswith(("Transf", "head", "cls"))}
    assert stem["conv_root/kernel"] == (7, 7, 3, 64) and stem["gn_root/scale"] == (64,)
    assert stem["block1/unit1/conv_proj/kernel"] == (1, 1, 64, 256)
    assert stem["block2/unit2/conv2/kernel"] == (3, 3, 128, 128)
    assert stem["block2/unit1/gn_proj/bias"] == (512,)
    assert stem["embedding/kernel"] == (1, 1, 512, 24)

    options = dict(layers=(2, 1))
    params = random_params("R50x1", **options)
    save_params(params, tmp_path / "y.npz", variant="R50x1", format="npz", **options)
    with np.load(tmp_path / "y.npz") as file:
        found = {n: file[n].shape for n in file}
    conv = "standardized_conv2d/kernel"
    assert found[f"resnet/root_block/{conv}"] == (7, 7, 3, 64)
    assert found[f"resnet/block1/unit01/a/proj/{conv}"] == (1, 1, 64, 256)
    assert found[f"resnet/block1/unit02/b/{conv}"] == (3, 3, 64, 64)
    assert found["resnet/block2/unit01/a/group_norm/gamma"] == (256,)
    assert found["resnet/group_norm/beta"] == (512,)
    assert found["resnet/head/conv2d/kernel"] == (1, 1, 512, 3)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_a_prefix_before_every_name(tmp_path, prefix):
    arrays, params = published(tmp_path)
    arrays = {prefix + name: x for name, x in arrays.items()}
    np.savez(tmp_path / "x.npz", **arrays, **{"opt/state/step": np.array(7)})
    found = load(tmp_path / "x.npz", variant="B/16", **VIT)
    assert_same(jax.tree.map(np.asarray, found.params), params)
    assert found.changes == (f"Only {prefix} is taken, not opt/state/step.",)


def test_names_in_linens_numbering(tmp_path):
    params = random_params("B/16", **VIT)
    np.savez(tmp_path / "x.npz", **flatten_dict(params, sep="/"))
    assert_same(load_params(tmp_path / "x.npz", variant="B/16", **VIT), params)


def test_position_tables_at_the_top_as_in_big_vision(tmp_path):
    params = random_params("B/16", **VIT)
    arrays = flatten_dict(params, sep="/")
    arrays["pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")
    np.savez(tmp_path / "x.npz", **{f"params/{name}": x for name, x in arrays.items()})
    assert_same(load_params(tmp_path / "x.npz", variant="B/16", **VIT), params)


@pytest.mark.parametrize("shape", [(-1,), (1, 1, 1, -1)])
def test_group_norms_in_either_shape(tmp_path, shape):
    arrays, params = published(tmp_path, "R50+B/16", dict(STEM, stem=(1, 1)))
    arrays = {k: x.reshape(shape) if "/gn" in k or "gn_" in k else x for k, x in arrays.items()}
    assert arrays["block1/unit1/gn1/scale"].ndim == len(shape)
    np.savez(tmp_path / "x.npz", **arrays)
    found = load_params(tmp_path / "x.npz", variant="R50+B/16", **dict(STEM, stem=(1, 1)))
    assert_same(found, params)


def test_half_precision_is_read_as_float32(tmp_path):
    """bfloat16 comes from NumPy's files as two bytes without a type."""
    arrays, params = published(tmp_path)
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
        stored = {name: x.astype(dtype) for name, x in arrays.items()}
        np.savez(tmp_path / "x.npz", **stored)
        expected = jax.tree.map(lambda x, t=dtype: x.astype(t).astype(np.float32), params)
        assert_same(load_params(tmp_path / "x.npz", variant="B/16", **VIT), expected)
    save_params(params, tmp_path / "x.safetensors", variant="B/16", format="timm", **VIT)
    arrays = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in arrays.items()}
    safetensors.numpy.save_file(half, tmp_path / "half.safetensors")
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(load_params(tmp_path / "half.safetensors", variant="B/16", **VIT), expected)


def test_flipped_bytes_in_an_npz_are_found(tmp_path):
    _, _ = published(tmp_path)
    path = tmp_path / "published.npz"
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("embedding/kernel.npy")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 1000] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"the array embedding/kernel is damaged: Bad CRC"):
        load_params(path, variant="B/16", **VIT)


def test_python_objects_are_never_loaded(tmp_path):
    arrays, _ = published(tmp_path)
    np.savez(tmp_path / "x.npz", **arrays, evil=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match=r"evil\.npy holds Python objects, which are never loaded"):
        load_params(tmp_path / "x.npz")


def test_archives_of_an_unknown_kind_are_refused(tmp_path):
    published(tmp_path)
    path = tmp_path / "published.npz"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 10] = 77  # the compression of the last entry in the directory
    path.write_bytes(data)
    with pytest.raises(ValueError, match="compression method is not supported"):
        load_params(path, variant="B/16", **VIT)


def integers_for_text(arrays):
    name = next(name for name in arrays if name in ("embedding/bias", "patch_embed.proj.bias"))
    arrays[name] = np.array(["a"] * 24)
    return f"{name} holds <U1, not numbers"


def test_text_in_a_file_is_refused(tmp_path):
    arrays, _ = published(tmp_path)
    message = integers_for_text(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "x.npz", variant="B/16", **VIT)
