"""Logits against transformers' ViT with the same weights, read and written."""

import json

import numpy as np
import peers
import pytest
from peers import torch
from safetensors.torch import save_file

from vit_jax import models
from vit_jax.weights.api import load, load_params, save, save_params

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

SIZES = {
    "Ti/16": dict(hidden_size=192, intermediate_size=768, num_attention_heads=3, patch_size=16),
    "S/32": dict(hidden_size=384, intermediate_size=1536, num_attention_heads=6, patch_size=32),
    "B/16": {},  # its sizes are transformers' own
}
NAMES = ["rose", "tulip", "daisy"]


def reference(variant, kind="ViTForImageClassification", **kwargs):
    config = transformers.ViTConfig(**SIZES[variant], **kwargs)
    return peers.randomise(getattr(transformers, kind)(config))


def loaded(folder, kind="ViTForImageClassification"):
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("variant", SIZES)
def test_logits_equal_transformers_both_ways(tmp_path, variant):
    """Its default is the exact GELU and a layer-norm epsilon of 1e-12."""
    images = peers.random_images()
    theirs = reference(variant, num_labels=10)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = load(tmp_path / "theirs")
    model = opened.model()
    assert opened.config.model.variant == variant and opened.image_shape == (224, 224)
    assert (model.gelu, model.norm_epsilon) == ("exact", 1e-12)
    found = peers.our_logits(model, load_params(tmp_path / "theirs"), images)
    peers.assert_close(found, peers.torch_logits(theirs, images))

    params = peers.random_params(model)
    save_params(
        params, tmp_path / "ours", variant=variant, format="hf", gelu="exact", norm_epsilon=1e-12
    )
    expected = peers.torch_logits(loaded(tmp_path / "ours"), images)
    peers.assert_close(peers.our_logits(model, params, images), expected)


def test_the_newer_spelling_of_names(tmp_path):
    theirs = reference("Ti/16", num_labels=10)
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()  # in memory it has the newer names
    assert "vit.layers.0.attention.q_proj.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    images = peers.random_images()
    model = load(tmp_path).model()
    found = peers.our_logits(model, load_params(tmp_path), images)
    peers.assert_close(found, peers.torch_logits(theirs, images))


@pytest.mark.parametrize(
    ("settings", "gelu"),
    [
        (dict(layer_norm_eps=0.1), "exact"),
        (dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6), "tanh"),
        (dict(hidden_act="gelu_new"), "tanh"),
    ],
)
def test_gelu_and_epsilon_are_those_of_the_config(tmp_path, settings, gelu):
    images = peers.random_images()
    theirs = reference("Ti/16", num_labels=10, **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = load(tmp_path / "theirs")
    assert opened.model().gelu == gelu
    params = load_params(tmp_path / "theirs")
    found = peers.our_logits(opened.model(), params, images)
    expected = peers.torch_logits(theirs, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    save(opened, tmp_path / "again", format="hf")
    peers.assert_close(found, peers.torch_logits(loaded(tmp_path / "again"), images))


def test_the_base_models_pooler_is_pre_logits(tmp_path):
    images = peers.random_images()
    theirs = reference("Ti/16", "ViTModel")
    theirs.save_pretrained(tmp_path / "theirs")
    opened = load(tmp_path / "theirs")
    model = opened.model()
    assert model.pre_logits and not opened.num_classes
    found = peers.our_logits(model, load_params(tmp_path / "theirs"), images)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).pooler_output.numpy()
    peers.assert_close(found, expected)

    save(opened, tmp_path / "ours", format="hf")
    again = loaded(tmp_path / "ours", "ViTModel")
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_size_that_is_not_square(tmp_path):
    size = (192, 256)
    images = peers.random_images(size)
    theirs = reference("Ti/16", num_labels=10, image_size=list(size))
    theirs.save_pretrained(tmp_path / "theirs")
    opened = load(tmp_path / "theirs")
    assert opened.image_shape == size
    found = peers.our_logits(opened.model(), load_params(tmp_path / "theirs"), images)
    peers.assert_close(found, peers.torch_logits(theirs, images))

    save(opened, tmp_path / "ours", format="hf")
    peers.assert_close(found, peers.torch_logits(loaded(tmp_path / "ours"), images))


def test_class_names_and_preprocessing_come_along(tmp_path):
    theirs = reference("Ti/16", id2label=dict(enumerate(NAMES)))
    theirs.save_pretrained(tmp_path / "theirs")
    opened = load(tmp_path / "theirs")
    assert opened.class_names == tuple(NAMES)
    opened.config.data.eval_crop = "whole"
    save(opened, tmp_path / "ours", format="hf")
    assert loaded(tmp_path / "ours").config.id2label == dict(enumerate(NAMES))

    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "ours")
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    found = processor(pixels, return_tensors="np")["pixel_values"]
    expected = pixels.transpose(2, 0, 1) / 127.5 - 1  # what our models are given
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_sizes_that_no_variant_has_are_taken_from_the_config(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
        num_labels=5,
    )
    theirs = peers.randomise(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    opened, images = load(tmp_path / "theirs"), peers.random_images((24, 24))
    model = opened.model()
    assert (model.width, model.depth, model.num_heads, model.mlp_dim) == (32, 2, 4, 48)
    found = peers.our_logits(model, load_params(tmp_path / "theirs"), images)
    expected = peers.torch_logits(theirs, images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match=r"isn't a B/16.*its width is 32, the model's is 768"):
        load(tmp_path / "theirs", variant="B/16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; known are gelu,"),
        ({"model_type": "deit"}, "architectures has 'ViTForImageClassification'"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"pooler_act": "relu"}, "pooler_act is 'relu'"),
        ({"hidden_size": "x"}, "width='x' must be a whole number above 0"),
        ({"num_hidden_layers": 10**12}, "it records 1000000000000 blocks, but has"),
        ({"intermediate_size": 10**20}, "model.safetensors"),
        ({"image_size": [1, 2, 3]}, "image_size must be one or two whole numbers above 0"),
        ({"id2label": {"0": "a"}}, "it names 1 classes, but has 2 logits"),
        ({"id2label": "a"}, "id2label must be a dict, not 'a'"),
        ({"num_attention_heads": 5}, "width=192 is not a multiple of num_heads=5"),
    ],
)
def test_configs_that_are_not_ours_to_compute_are_refused(tmp_path, changes, message):
    reference("Ti/16").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_what_transformers_has_no_place_for_is_refused(tmp_path):
    for options, message in (
        (
            dict(pool="gap", pre_norm=True),
            "IJepaForImageClassification would, but for pre_norm",
        ),
        (dict(positions="none"), "positions='none'"),
        (dict(positions="2d"), "ViTForImageClassification would, but for positions='2d'"),
        (dict(pre_logits=True), "pre_logits=True"),
        (dict(norm="rms"), "norm='rms'"),
        (dict(registers=2), "registers=2"),
        (dict(pool="map"), "no class of transformers with a head"),
    ):
        model = models.build("Ti/16", num_classes=10, depth=1, **options)
        with pytest.raises(ValueError) as error:
            save_params(
                peers.random_params(model), tmp_path / "x", variant="Ti/16", format="hf", depth=1
            )
        assert message in str(error.value)
        assert not list(tmp_path.iterdir())
