"""What timm's config.json says is read as timm reads it."""

import json

import numpy as np
import pytest
import safetensors.numpy
from peers import torch, torch_logits

from vit_jax.models.patches import to_float
from vit_jax.weights.api import load, load_params, save

timm = pytest.importorskip("timm")
from timm.models._hub import save_for_hf  # noqa: E402

pytestmark = pytest.mark.peers


@pytest.fixture
def folder(tmp_path):
    """A folder of timm's hub: a tiny ViT with random numbers in all parameters."""
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_for_hf(model, tmp_path / "x", model_args={"img_size": 32}, safe_serialization=True)
    return tmp_path / "x"


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config) or config))


def assert_logits_are_timms(folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    theirs = (pixels / 255 - np.array(data["mean"])) / np.array(data["std"])
    expected = torch_logits(model, np.float32(theirs))
    found = load(folder)
    params = {"params": load_params(folder)}
    logits = found.model().apply(params, to_float(pixels), train=False)
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    return found, data


def without(*keys):
    def change(config):
        for key in keys:
            del config["pretrained_cfg"][key]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["pretrained_cfg"].update(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]),
        without("mean"),
        without("std"),
        without("crop_pct"),
        lambda config: config["model_args"].update(global_pool="avg", fc_norm=False),
    ],
    ids=["mean and std", "no mean", "no std", "no crop_pct", "pooling"],
)
def test_logits_and_view_are_those_that_timm_takes(folder, change):
    edit(folder, change)
    found, data = assert_logits_are_timms(folder)
    view = found.config.data
    assert view.eval_crop == {"center": "central", "squash": "squash"}[data["crop_mode"]]
    assert view.crop_fraction == data["crop_pct"]
    assert view.eval_resize == f"{data['interpolation']}_antialias"


def test_early_files_have_images_beside_the_architecture(folder):
    images = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "crop_pct": 0.77}
    edit(folder, lambda config: config["pretrained_cfg"].update(images))
    expected, _ = assert_logits_are_timms(folder)
    edit(folder, lambda config: {**config.pop("pretrained_cfg"), **config})
    found = load(folder)
    assert found.config.data.crop_fraction == 0.77
    kernels = [np.asarray(x.params["embedding"]["kernel"]) for x in (found, expected)]
    np.testing.assert_array_equal(*kernels)


def test_another_architecture_is_refused(folder):
    with pytest.raises(ValueError, match="it is a test_vit, not a vit_base_patch16_224"):
        load(folder, variant="vit_base_patch16_224")
    assert load(folder, variant="timm/test_vit.r160_in1k").num_classes == 5


def test_names_of_classes_may_be_numbered(folder):
    names = ["a", "b", "c", "d", "e"]
    edit(folder, lambda config: config.update(label_names={str(i): x for i, x in enumerate(names)}))
    assert load(folder).class_names == tuple(names)
    edit(folder, lambda config: config.update(label_names={"1": "a"}))
    with pytest.raises(ValueError, match=r"config\.json: label_names must have a name for each"):
        load(folder)


@pytest.mark.parametrize("value", [["bicubic"], "border", 3])
def test_an_unknown_crop_is_said(folder, caplog, value):
    edit(folder, lambda config: config["pretrained_cfg"].update(crop_mode=value))
    assert load(folder).num_classes == 5
    assert "pretrained_cfg has crop_mode=" in caplog.text


def test_a_resnet_of_timm_opens(tmp_path):
    model = timm.models.ResNetV2(
        layers=(1, 1, 1, 1), num_classes=3, stem_type="fixed", conv_layer=timm.layers.StdConv2d
    )
    model.pretrained_cfg = timm.get_pretrained_cfg("resnetv2_50x1_bit").to_dict()
    model.pretrained_cfg["architecture"] = "resnetv2_50x1_bit"
    save_for_hf(model, tmp_path / "x", model_args={"global_pool": "avg"}, safe_serialization=True)
    assert load(tmp_path / "x").model().layers == (1, 1, 1, 1)


def test_a_timm_name_is_for_state_dicts_of_timm(folder, tmp_path):
    for name in ("x.npz", "x.safetensors", "orbax"):
        save(load(folder), tmp_path / name)
        with pytest.raises(ValueError, match="is timm's name of a model"):
            load(tmp_path / name, variant="test_vit")


def test_quantised_weights_are_refused(folder):
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    arrays["head.weight"] = np.int8(arrays["head.weight"])
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(ValueError, match=r"head\.weight holds int8: quantised weights"):
        load_params(folder)


def test_a_head_of_another_number_of_classes_is_refused(folder):
    edit(folder, lambda config: config.update(num_classes=7))
    with pytest.raises(ValueError, match=r"num_classes=7, but model\.safetensors has 5 logits"):
        load(folder)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"depth": 3}, "its arrays are those of depth=6"),
        ({"patch_size": 8}, "its arrays are those of patch_size=16"),
        ({"reg_tokens": 3}, "reg_token"),
        ({"pre_norm": True}, "norm_pre"),
        ({"pos_embed": "none"}, "pos_embed"),
        ({"dynamic_img_pad": True}, "model_args has dynamic_img_pad=True"),
    ],
)
def test_arguments_that_the_arrays_contradict_are_refused(folder, argument, message):
    edit(folder, lambda config: config["model_args"].update(argument))
    with pytest.raises(ValueError, match=message):
        load(folder)
