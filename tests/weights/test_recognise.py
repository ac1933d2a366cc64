"""The model of a file is recognised by its arrays, and everything that doesn't fit is named."""

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from tiny_weights import ENDINGS, VIT, random_params

from vit_jax.weights.api import load, load_params, save_params


@pytest.mark.parametrize(
    "variant",
    [
        "Ti/16",
        "R50x1",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("R26+S/32", "Axial-B/32", "R101x1")),
    ],
)
def test_a_files_variant_is_seen_in_its_shapes(tmp_path, variant):
    size = 64 if variant != "Axial-B/32" else 96
    params = random_params(variant, (size, size), num_classes=0)
    save_params(params, tmp_path / "x.npz", variant=variant, format="npz")
    found = load(tmp_path / "x.npz")
    assert found.config.model.variant == variant
    assert found.image_shape == (None if variant.startswith(("R50x", "R101")) else (size, size))


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
    return rf"{name} is missing; {name}s is not in the model \(did you mean '{name}'\?\)"


def another_array(arrays):
    arrays["another.weight"] = np.zeros(24, np.float32)
    return "another.weight is not in the model"


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


def test_without_a_layer_a_file_is_still_seen_as_its_variant(tmp_path):
    flat = flatten_dict(random_params("Ti/16", num_classes=0), sep="/")
    kept = {n: x for n, x in flat.items() if "encoderblock_3/" not in n}
    np.savez(tmp_path / "x.npz", **kept)
    with pytest.raises(ValueError) as error:
        load_params(tmp_path / "x.npz")
    for name in set(flat) - set(kept):
        assert f"{name} is missing" in str(error.value)
    assert "isn't a Ti/16: " in str(error.value)


@pytest.mark.slow
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


def test_files_of_something_else_say_what_they_hold(tmp_path):
    np.savez(tmp_path / "x.npz", weight=np.zeros(3), other=np.zeros(4))
    with pytest.raises(ValueError, match=r"holds no ViT .* 2 arrays are called weight"):
        load_params(tmp_path / "x.npz")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_params(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor "):
        load_params(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_params(tmp_path / "empty")
