"""Weights written and read again, fitted, and refused, over all formats."""

import os
import pathlib
import subprocess
import sys
import time
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import models
from vit_jax.models.params import parameter_shapes
from vit_jax.models.positions import resize_positions
from vit_jax.weights import npz
from vit_jax.weights.api import FORMATS, load, load_params, save_params

SIZES = dict(width=24, depth=2, mlp_dim=32, num_heads=2)
ENDINGS = {"npz": "x.npz", "timm": "x.safetensors", "hf": "x", "orbax": "x"}


def random_params(variant, image=(32, 32), num_classes=3, seed=0, **options):
    model = models.build(variant, num_classes=num_classes, **options)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(model, image)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def assert_same(found, expected):
    found, expected = (flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


VIT, STEM = dict(SIZES, patch_size=8), dict(SIZES, patch_size=1)
MODELS = {
    "vit": ("B/16", VIT),
    "headless": ("B/16", dict(VIT, num_classes=0)),
    "pre_logits": ("B/16", dict(VIT, pre_logits=True)),
    "pooler": ("B/16", dict(VIT, pre_logits=True, num_classes=0)),
    "gap": ("B/16", dict(VIT, pool="gap")),
    "layers": ("B/16", dict(VIT, positions_at="layers")),
    "2d": ("B/16", dict(VIT, positions="2d", image=(32, 48))),
    "relative": ("B/16", dict(VIT, positions="relative")),
    "none": ("B/16", dict(VIT, positions="none")),
    "axial": ("Axial-B/16", VIT),
    "hybrid": ("R50+B/16", dict(STEM, stem=(1, 2))),
    "root": ("R+Ti/16", dict(STEM, stem=(), patch_size=4)),
    "bit": ("R50x1", dict(layers=(2, 1))),
    "axial-resnet": ("AxialResNet50", dict(layers=(1, 1))),
}
# What a format has no place for.
IMPOSSIBLE = {
    "npz": (),
    "orbax": (),
    "timm": ("layers", "2d", "relative", "axial", "axial-resnet"),
    "hf": (
        "pre_logits",
        "gap",
        "layers",
        "2d",
        "relative",
        "none",
        "axial",
        "hybrid",
        "root",
        "bit",
        "axial-resnet",
    ),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_written_and_read_again_every_bit_is_the_same(tmp_path, name, format):
    variant, options = MODELS[name]
    params = random_params(variant, **options)
    path = tmp_path / ENDINGS[format]
    options = {k: v for k, v in options.items() if k not in ("image", "num_classes")}
    if name in IMPOSSIBLE[format]:
        with pytest.raises(ValueError, match=r"has no place for|ViT reads a class token"):
            save_params(params, path, variant=variant, format=format, **options)
        assert not list(tmp_path.iterdir())
        return
    save_params(params, path, variant=variant, format=format, **options)
    said = options if format == "npz" else {}  # the other formats tell sizes no variant has
    found = load(path, variant=variant if said else None, **said)
    assert_same(load_params(path, variant=variant if said else None, **said), params)
    model, expected = found.model(), models.build(variant, num_classes=0, **options)
    for key in ("pool", "pre_logits", "positions", "positions_at", "stem", "axial", "layers"):
        assert getattr(model, key, None) == getattr(expected, key, None)
    assert_same(jax.tree.map(np.asarray, found.params), params)


@pytest.mark.parametrize("format", ["timm", "orbax", "hf"])
def test_what_weights_are_computed_with_is_noted(tmp_path, format):
    params = random_params("B/16", **VIT)
    mathematics = dict(gelu="exact", norm_epsilon=1e-3)
    save_params(
        params,
        tmp_path / ENDINGS[format],
        variant="B/16",
        format=format,
        **VIT,
        **mathematics,
        class_names=("a", "b", "c"),
    )
    found = load(tmp_path / ENDINGS[format])
    assert {key: getattr(found.model(), key) for key in mathematics} == mathematics
    assert found.class_names == ("a", "b", "c") and found.image_shape == (32, 32)


def test_formats_that_can_not_tell_are_warned_of(tmp_path, caplog):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    assert not caplog.text
    save_params(params, tmp_path / "y.npz", variant="B/16", format="npz", **VIT, gelu="exact")
    assert "y.npz: other readers of this format don't know that it is for gelu=exact" in caplog.text


def test_positions_shared_by_layers_are_for_orbax_alone(tmp_path):
    """Their names are those of positions added once, so other formats would lose them silently."""
    options = dict(VIT, positions_at="shared")
    params = random_params("B/16", **options)
    for format in ("npz", "timm", "hf"):
        with pytest.raises(ValueError, match="no format but Orbax can tell"):
            save_params(params, tmp_path / "x", variant="B/16", format=format, **options)
    save_params(params, tmp_path / "x", variant="B/16", format="orbax", **options)
    assert load(tmp_path / "x").model().positions_at == "shared"


def test_sincos_positions_become_a_table_in_other_formats(tmp_path):
    """Which gives the same logits."""
    options = dict(VIT, positions="sincos")
    params = random_params("B/16", **options)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    expected = models.build("B/16", num_classes=3, **options).apply({"params": params}, image)
    for format in ("npz", "timm", "hf"):
        path = tmp_path / ENDINGS[format]
        save_params(params, path, variant="B/16", format=format, image_size=32, **options)
        found = load(path, variant="B/16", **VIT)
        assert found.model().positions == "1d"
        table = jax.tree.map(np.asarray, found.params)
        logits = found.model().apply({"params": table}, image)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="positions='sincos': give its image_size"):
        save_params(params, tmp_path / "y.npz", variant="B/16", format="npz", **options)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_that_exists_is_overwritten(tmp_path, format):
    path = tmp_path / ENDINGS[format]
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="left as it is"):
        params = random_params("B/16", **VIT)
        save_params(params, path, variant="B/16", format=format, **VIT)
    assert path.read_text() == "mine"


def test_saving_checks_names_shapes_and_values(tmp_path):
    params = random_params("B/16", **VIT)
    with pytest.raises(ValueError, match=r"isn't a B/16.*embedding/kernel has the shape"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="npz")
    params["head"]["kernel"] = np.full_like(params["head"]["kernel"], np.nan)
    with pytest.raises(ValueError, match="72 of the 72 values of head/kernel are NaN"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    with pytest.raises(ValueError, match="only Orbax checkpoints are written to a bucket"):
        save_params(params, "gs://bucket/x.npz", variant="B/16", format="npz", **VIT)
    with pytest.raises(ValueError, match="no format 'tar': npz, orbax, timm, hf"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="tar", **VIT)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------- the published layouts
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


def published(tmp_path, variant="B/16", options=VIT, **more):
    """The arrays of a published file, and the parameters it has."""
    params = random_params(variant, **options, **more)
    said = {k: v for k, v in {**options, **more}.items() if k != "num_classes"}
    save_params(params, tmp_path / "published.npz", variant=variant, format="npz", **said)
    with np.load(tmp_path / "published.npz") as file:
        return dict(file), params


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_a_prefix_before_every_name(tmp_path, prefix, caplog):
    arrays, params = published(tmp_path)
    arrays = {prefix + name: x for name, x in arrays.items()}
    np.savez(tmp_path / "x.npz", **arrays, **{"opt/state/step": np.array(7)})
    with caplog.at_level("INFO"):
        assert_same(load_params(tmp_path / "x.npz", variant="B/16", **VIT), params)
    assert f"1 arrays beside {prefix} are left out" in caplog.text


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


@pytest.mark.parametrize("variant", ["Ti/16", "R26+S/32", "R50x1", "Axial-B/32", "R101x1"])
def test_a_files_variant_is_seen_in_its_shapes(tmp_path, variant):
    size = 64 if variant != "Axial-B/32" else 96
    params = random_params(variant, (size, size), num_classes=0)
    save_params(params, tmp_path / "x.npz", variant=variant, format="npz")
    found = load(tmp_path / "x.npz")
    assert found.config.model.variant == variant
    assert found.image_shape == (None if variant.startswith(("R50x", "R101")) else (size, size))


# ------------------------------------------------------------------------------------- surgery
def test_loading_for_fine_tuning(tmp_path):
    """A new head of zeros, no pre_logits, and position embeddings of another grid."""
    _, params = published(tmp_path, pre_logits=True)
    path, said = tmp_path / "published.npz", dict(variant="B/16", **VIT)
    found = load_params(path, image_size=(48, 40), num_classes=7, **said)
    assert "pre_logits" not in found
    assert found["head"]["kernel"].shape == (24, 7) and not found["head"]["kernel"].any()
    assert not found["head"]["bias"].any()
    table = params["Transformer"]["posembed_input"]["pos_embedding"]
    for method in ("linear", "cubic"):
        found = load_params(path, image_size=(48, 40), resize=method, **said)
        np.testing.assert_array_equal(
            found["Transformer"]["posembed_input"]["pos_embedding"],
            resize_positions(table, (4, 4), (6, 5), method),
        )
        np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
        np.testing.assert_array_equal(found["pre_logits"]["kernel"], params["pre_logits"]["kernel"])
    assert not {"head", "pre_logits"} & set(load_params(path, num_classes=0, **said))


def test_loading_into_a_model_pooled_otherwise(tmp_path):
    _, params = published(tmp_path)
    said = dict(variant="B/16", **VIT)
    found = load_params(tmp_path / "published.npz", pool="gap", **said)
    table = params["Transformer"]["posembed_input"]["pos_embedding"]
    assert "cls" not in found
    np.testing.assert_array_equal(
        found["Transformer"]["posembed_input"]["pos_embedding"], table[:, 1:]
    )
    save_params(found, tmp_path / "gap.npz", variant="B/16", format="npz", **VIT)
    again = load_params(tmp_path / "gap.npz", pool="token", **said)
    assert not again["cls"].any()
    assert not again["Transformer"]["posembed_input"]["pos_embedding"][:, 0].any()


def test_positions_of_an_unknown_grid(tmp_path):
    """A table of 4 x 6 patches may be of other grids, too: it is taken as it is or not at all."""
    params = random_params("B/16", (32, 48), **VIT)
    save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    said = dict(variant="B/16", **VIT)
    assert load(tmp_path / "x.npz", **said).image_shape is None
    assert_same(load_params(tmp_path / "x.npz", image_size=(48, 32), **said), params)
    without_head = {k: v for k, v in params.items() if k != "head"}
    assert_same(load_params(tmp_path / "x.npz", num_classes=0, **said), without_head)
    with pytest.raises(ValueError, match=r"25 rows, of patches in a grid .*not square.*48x48"):
        load_params(tmp_path / "x.npz", image_size=384, **said)
    with pytest.raises(ValueError, match="the image size is not known"):
        save_params(params, tmp_path / "hf", variant="B/16", format="hf", **VIT)
    save_params(params, tmp_path / "hf", variant="B/16", format="hf", image_size=(32, 48), **VIT)
    assert load(tmp_path / "hf").image_shape == (32, 48)


# --------------------------------------------------------------------------------------- errors
def transposed(arrays):
    name = next(name for name in arrays if "Dense_0/kernel" in name or "mlp.fc1.weight" in name)
    arrays[name] = np.ascontiguousarray(arrays[name].T)
    return rf"{name} has the shape .*\(transposed\?\)"


def nan(arrays):
    name = next(name for name in arrays if "Dense_1/bias" in name or "mlp.fc2.bias" in name)
    arrays[name] = np.full_like(arrays[name], np.nan)
    return f"24 of the 24 values of {name} are NaN or infinite"


def missing_layer(arrays):
    layer = [name for name in arrays if "encoderblock_1/" in name or "blocks.1." in name]
    assert len(layer) in (16, 12)
    for name in layer:
        del arrays[name]
    return ".*".join(f"{name} is missing" for name in layer[:1])


def missing_class_token(arrays):
    name = next(name for name in arrays if name in ("cls", "cls_token"))
    del arrays[name]
    return f"{name} is missing"


def misspelt(arrays):
    name = next(name for name in arrays if "encoder_norm/scale" in name or name == "norm.weight")
    arrays[name + "s"] = arrays.pop(name)
    return rf"{name} is missing; {name}s is not in the model \(did you mean {name}\?\)"


def another_array(arrays):
    arrays["fc_norm.weight"] = np.zeros(24, np.float32)
    return "fc_norm.weight is not in the model"


def integers_for_text(arrays):
    name = next(name for name in arrays if name in ("embedding/bias", "patch_embed.proj.bias"))
    arrays[name] = np.array(["a"] * 24)
    return f"{name} holds <U1, not numbers"


@pytest.mark.parametrize("format", ["npz", "timm"])
@pytest.mark.parametrize(
    "damage",
    [transposed, nan, missing_layer, missing_class_token, misspelt, another_array],
)
def test_what_does_not_fit_is_named(tmp_path, format, damage):
    params = random_params("B/16", **VIT)
    path = tmp_path / ENDINGS[format]
    save_params(params, path, variant="B/16", format=format, **VIT)
    if format == "npz":
        with np.load(path) as file:
            arrays = dict(file)
        message = damage(arrays)
        np.savez(path, **arrays)
    else:
        arrays = safetensors.numpy.load_file(path)
        message = damage(arrays)
        safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=message) as error:
        load_params(path, variant="B/16", **VIT)
    assert str(path) in str(error.value)


def test_text_in_a_file_is_refused(tmp_path):
    arrays, _ = published(tmp_path)
    message = integers_for_text(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_params(tmp_path / "x.npz", variant="B/16", **VIT)


@pytest.mark.parametrize("missing", [3, 11])
def test_without_a_layer_a_file_is_still_seen_as_its_variant(tmp_path, missing):
    """Not as a variant with fewer layers, even where it is the last one that is missing."""
    flat = flatten_dict(random_params("Ti/16", num_classes=0), sep="/")
    kept = {n: x for n, x in flat.items() if f"encoderblock_{missing}/" not in n}
    np.savez(tmp_path / "x.npz", **kept)
    with pytest.raises(ValueError) as error:
        load_params(tmp_path / "x.npz")
    for name in set(flat) - set(kept):
        assert f"{name} is missing" in str(error.value)
    assert "isn't a Ti/16: " in str(error.value)


@pytest.mark.parametrize("ending", ["x.npz", "x.safetensors"])
def test_a_wrong_variant_is_named(tmp_path, ending):
    params = random_params("Ti/16", num_classes=0)
    format = "npz" if ending == "x.npz" else "timm"
    save_params(params, tmp_path / ending, variant="Ti/16", format=format)
    with pytest.raises(ValueError, match=r"isn't a S/16, it looks most like Ti/16: .* has"):
        load_params(tmp_path / ending, variant="S/16")
    save_params(params, tmp_path / "orbax", variant="Ti/16", format="orbax")
    with pytest.raises(ValueError, match="is a Ti/16, not a S/16"):
        load_params(tmp_path / "orbax", variant="S/16")


@pytest.mark.parametrize("ending", ["x.npz", "x.safetensors", "x.pth"])
def test_truncated_files_are_named(tmp_path, ending):
    if ending == "x.pth":
        pytest.importorskip("torch")
    path = tmp_path / ending
    format = "npz" if ending == "x.npz" else "timm"
    params = random_params("B/16", **VIT)
    save_params(params, path, variant="B/16", format=format, **VIT)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="can't be read as") as error:
            load_params(path, variant="B/16", **VIT)
        assert str(path) in str(error.value)


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


def test_pickles_that_run_code_are_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"x": Evil()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="can't be read as a PyTorch state dict"):
        load_params(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "noted",
    [
        "[]",
        "{",
        '{"model": 3}',
        '{"model": {"width": "x"}}',
        '{"model": {"depth": 1000000000}}',
        '{"model": {"variant": {}}}',
        '{"image_size": "big"}',
        '{"class_names": 3}',
    ],
)
def test_notes_in_a_safetensors_file_may_be_wrong(tmp_path, noted):
    params = random_params("B/16", **VIT)
    path = tmp_path / "x.safetensors"
    save_params(params, path, variant="B/16", format="timm", **VIT)
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path, metadata={"vit_jax": noted})
    with pytest.raises(ValueError, match=str(path)):
        load_params(path)


def test_archives_of_an_unknown_kind_are_refused(tmp_path):
    published(tmp_path)
    path = tmp_path / "published.npz"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 10] = 77  # the compression of the last entry in the directory
    path.write_bytes(data)
    with pytest.raises(ValueError, match="compression method is not supported"):
        load_params(path, variant="B/16", **VIT)


@pytest.mark.parametrize("format", ["npz", "timm"])
def test_a_file_is_recognised_without_its_suffix(tmp_path, format):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / ENDINGS[format], variant="B/16", format=format, **VIT)
    (tmp_path / ENDINGS[format]).rename(tmp_path / "blob")
    assert_same(load_params(tmp_path / "blob", variant="B/16", **VIT), params)
    (tmp_path / "blob").write_text("something else")
    with pytest.raises(ValueError, match="blob is no file of weights"):
        load_params(tmp_path / "blob")


def test_files_of_something_else_say_what_they_hold(tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.zeros(3), other=np.zeros(4))
    with pytest.raises(ValueError, match=r"holds no ViT .* 2 arrays are called weight"):
        load_params(tmp_path / "x.npz")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_params(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch"):
        load_params(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_params(tmp_path / "empty")


def test_a_hugging_face_file_alone_is_not_enough(tmp_path):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / "hf", variant="B/16", format="hf", **VIT)
    file = tmp_path / "hf" / "model.safetensors"
    assert_same(load_params(file), params)  # its config.json is beside it
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json beside it, which tells its GELU"):
        load_params(file)


# ---------------------------------------------------------------------------------------- large
def test_l16_converts_fast_and_in_little_memory(tmp_path):
    """1.2 GB: under a minute and under twice the file's size, from and to each kind of format."""
    tree = parameter_shapes(models.build("L/16", num_classes=1000), 224)
    shapes = flatten_dict(tree, sep="/")
    rng = np.random.default_rng(0)
    values = rng.normal(size=4 * 1024 * 1024).astype(np.float32)  # of the largest array
    arrays = {
        n: np.resize(values, x.shape) if x.size > values.size else values[: x.size].reshape(x.shape)
        for n, x in shapes.items()
    }
    npz.write(tmp_path / "l16.npz", arrays.items())
    size = (tmp_path / "l16.npz").stat().st_size
    assert size == pytest.approx(4 * 304_326_632, rel=1e-3)
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system doesn't tell a process's largest size")
    program = (
        "import sys; from vit_jax import convert; convert.main(sys.argv[1:]); "
        f"print(open('{status}').read().split('VmHWM:')[1].split()[0])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    for source, destination in (("l16.npz", "orbax"), ("orbax", "x.safetensors")):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / source, tmp_path / destination],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert time.monotonic() - start < 60
        assert "304,326,632 parameters" in done.stdout
        assert 1024 * int(done.stdout.split()[-1]) < 2 * size


def test_names_are_nested_as_linen_nests_them(tmp_path):
    _, params = published(tmp_path)
    found = load_params(tmp_path / "published.npz", variant="B/16", **VIT)
    model = models.build("B/16", num_classes=3, **VIT)
    images = np.zeros((1, 32, 32, 3), np.float32)
    fresh = model.init(jax.random.key(0), images)["params"]
    assert jax.tree.structure(found) == jax.tree.structure(unflatten_dict(flatten_dict(fresh)))
    logits = model.apply({"params": found}, images)
    np.testing.assert_array_equal(logits, model.apply({"params": params}, images))
