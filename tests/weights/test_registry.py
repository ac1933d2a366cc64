"""Models of timm, written by timm and opened by `vit_jax.load`, as `benchmarks.registry` does."""

import functools
import random
import re
import shutil

import numpy as np
import pytest
from peers import torch  # noqa: F401  # skips the file if PyTorch is not installed

import vit_jax
from vit_jax.weights import architectures

timm = pytest.importorskip("timm")
registry = pytest.importorskip("benchmarks.registry")

pytestmark = pytest.mark.peers


def small(name, **arguments):
    """A model of timm, one block deep, for images of 2 x 2 patches."""
    patch = int(re.search(r"patch(\d+)", name)[1]) if "patch" in name else 16
    return registry.create(name, depth=1, img_size=2 * patch, **arguments)


@functools.cache
def smallest_of_families():
    """The model of the smallest width of every family that isn't refused."""
    names = [name for name in registry.names() if not architectures.refusal_of(name)]
    names.sort(key=lambda name: architectures.attributes_of(name)["num_heads"], reverse=True)
    return list({registry.family(name): name for name in names}.values())


DRAWN = random.Random(22).sample(smallest_of_families(), 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_logits_are_timms(name):
    model = small(name)
    result = registry.compare(model, registry.random_images(model))
    assert not result.refused
    assert result.error < registry.TOLERANCE


@pytest.mark.parametrize(
    "change", [{}, {"norm_epsilon": 1e-5}, {"gelu": "tanh"}, {"pool": "gap"}], ids=str
)
def test_the_comparison_sees_what_no_array_shows(change):
    model = small("vit_tiny_patch16_224")
    result = registry.compare(model, registry.random_images(model), **change)
    assert (result.error > registry.TOLERANCE) == bool(change)


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": (16, 48), "reg_tokens": 2, "num_heads": 4},
        {"patch_size": (16, 8), "embed_dim": 96, "num_heads": 3, "mlp_ratio": 2.5},
        {"act_layer": "quick_gelu", "init_values": 1e-5, "qkv_bias": False, "proj_bias": False},
        {"norm_layer": "rmsnorm", "pre_norm": True, "no_embed_class": True},
        {"global_pool": "avg", "fc_norm": False},  # with a class token, which isn't pooled
        {"fc_norm": True},  # with token pooling
        {"global_pool": "map", "reg_tokens": 3, "act_layer": "gelu_tanh"},
        {"final_norm": False, "pos_embed": "none", "num_classes": 0},
    ],
    ids=str,
)
def test_arguments_of_timm_are_followed(arguments):
    model = registry.create("test_vit", depth=1, **{"img_size": 32, **arguments})
    result = registry.compare(model, registry.random_images(model))
    assert not result.refused
    assert result.error < registry.TOLERANCE


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("beit3_base_patch16_224", "normalisation inside its attention and its MLP"),
        ("vit_small_patch16_18x2_224", "blocks of two attentions side by side"),
        ("vit_dwee_patch16_reg1_gap_256", "differential attention"),
        ("vit_base_patch16_rpn_224", "residual post-normalisation"),
    ],
)
def test_refusals_name_what_a_model_has(name, what):
    model = small(name)
    result = registry.compare(model, registry.random_images(model))
    assert what in result.refused
    (row,) = registry.rows_of([result])
    assert (row["models"], row["opened"], row["largest error"]) == (1, 0, None)
    assert row["refused because of"].startswith(what[:10])


def saved(folder, **arguments):
    """A hub folder of timm's plain ViT of width 384; its images have the mean 0.5."""
    sizes = {"depth": 1, "img_size": 32} | arguments
    model = registry.create("vit_small_patch16_224", **sizes)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def test_what_the_name_of_a_bare_file_says(tmp_path):
    arrays = saved(tmp_path / "hub", depth=12) / "model.safetensors"
    plain = vit_jax.load(tmp_path / "hub")
    dino = shutil.copy(arrays, tmp_path / "vit_small_patch16_224.dino.safetensors")
    found = vit_jax.load(dino)
    (change,) = found.changes
    assert "0.485, 0.456, 0.406" in change
    kernel, expected = (np.asarray(x.params["embedding"]["kernel"]) for x in (found, plain))
    np.testing.assert_allclose(kernel[:, :, 0], expected[:, :, 0] * 0.5 / 0.229, rtol=1e-6)
    with pytest.raises(ValueError, match="isn't a B/16"):
        vit_jax.load(shutil.copy(arrays, tmp_path / "vit_base_patch16_224.safetensors"))
    with pytest.raises(ValueError, match="its arrays are those of patch_size=16"):
        vit_jax.load(shutil.copy(arrays, tmp_path / "vit_small_patch8_224.safetensors"))
    with pytest.raises(ValueError, match=r"norm_pre.bias is missing"):
        vit_jax.load(shutil.copy(arrays, tmp_path / "vit_small_patch16_clip_224.safetensors"))
    with pytest.raises(ValueError, match="rotary positions"):
        vit_jax.load(shutil.copy(arrays, tmp_path / "vit_pe_core_small_patch16_384.safetensors"))


def test_the_record_in_a_file_of_ours_goes_before_its_name(tmp_path):
    checkpoint = vit_jax.load(saved(tmp_path / "hub"))
    path = tmp_path / "vit_base_patch16_gap_224.safetensors"  # 16 heads, pooling of patches
    vit_jax.save(checkpoint, path)
    assert vit_jax.load(path).model() == checkpoint.model()


def test_a_folder_of_an_unknown_architecture_is_refused(tmp_path):
    config = saved(tmp_path) / "config.json"
    config.write_text(config.read_text().replace("vit_small_patch16_224", "vit_small_new"))
    with pytest.raises(ValueError, match="the architecture 'vit_small_new' is unknown"):
        vit_jax.load(tmp_path)
    assert vit_jax.load(tmp_path, variant="vit_small_patch16_224").model().num_heads == 6
