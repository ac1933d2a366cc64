"""Every class of transformers that is a plain ViT: its own outputs, read and written."""

import json
import re

import numpy as np
import peers
import pytest
from conftest import random_checkpoint
from missing_arrays import unnoticed
from peers import torch
from safetensors.numpy import load_file, save_file

from vit_jax.models.patches import to_float
from vit_jax.weights import hugging_face
from vit_jax.weights.api import load, load_params, save

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

TINY = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
    layer_norm_eps=1e-3,
)
TEXT = dict(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    vocab_size=20,
    max_position_embeddings=8,
    bos_token_id=1,
    eos_token_id=2,
)
CLASSES = dict(num_labels=3)
DECODER = dict(
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=32,
)


def towers(tower, **options):
    return dict(text_config=TEXT, vision_config={**TINY, **tower}, **options)


# The settings of each class, and the class that the model is written as.
SETTINGS = {
    "ViTModel": (TINY, "ViTModel"),
    "ViTForImageClassification": (
        dict(TINY, **CLASSES, hidden_act="gelu_new"),
        "ViTForImageClassification",
    ),
    "DeiTModel": (TINY, "DeiTModel"),
    "DeiTForImageClassification": (
        dict(TINY, **CLASSES, qkv_bias=False),
        "DeiTForImageClassification",
    ),
    "DeiTForImageClassificationWithTeacher": (
        dict(TINY, **CLASSES),
        "DeiTForImageClassificationWithTeacher",
    ),
    "Dinov2Model": (TINY, "ViTModel"),
    "Dinov2ForImageClassification": (
        dict(TINY, **CLASSES, use_swiglu_ffn=True),
        "Dinov2ForImageClassification",
    ),
    "Dinov2WithRegistersModel": (
        dict(TINY, use_swiglu_ffn=True, qkv_bias=False),
        "Dinov2WithRegistersModel",
    ),
    "Dinov2WithRegistersForImageClassification": (
        dict(TINY, **CLASSES, num_register_tokens=2),
        "Dinov2WithRegistersForImageClassification",
    ),
    "CLIPVisionModel": (TINY, "CLIPVisionModel"),
    "CLIPVisionModelWithProjection": (
        dict(TINY, hidden_act="gelu", projection_dim=24),
        "CLIPVisionModelWithProjection",
    ),
    "CLIPModel": (towers({}, projection_dim=24), "CLIPVisionModelWithProjection"),
    "CLIPForImageClassification": (towers({}, **CLASSES), "CLIPForImageClassification"),
    "SiglipVisionModel": (TINY, "SiglipVisionModel"),
    "SiglipModel": (towers(dict(hidden_act="quick_gelu")), "SiglipVisionModel"),
    "SiglipForImageClassification": (towers({}, **CLASSES), "IJepaForImageClassification"),
    "ViTMAEModel": (dict(TINY, mask_ratio=0.0), "ViTModel"),
    "ViTMAEForPreTraining": (dict(TINY, mask_ratio=0.0, **DECODER), "ViTModel"),
    "ViTMSNModel": (TINY, "ViTModel"),
    "ViTMSNForImageClassification": (dict(TINY, **CLASSES), "ViTForImageClassification"),
    "IJepaModel": (TINY, "IJepaModel"),
    "IJepaForImageClassification": (dict(TINY, **CLASSES), "IJepaForImageClassification"),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def write_theirs(folder, name, mean=MEAN, std=STD, **settings):
    """Writes a folder by transformers, with random weights; returns the module."""
    kind = getattr(transformers, name)
    config = kind.config_class(**{**SETTINGS[name][0], **settings})
    module = peers.randomise(kind(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, tensor in module.named_parameters():
            if "layer_scale" in parameter:
                tensor += 0.5 * torch.rand(tensor.shape, generator=generator)
    module.save_pretrained(folder)
    side = settings.get("image_size", 32)
    processor = transformers.ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=mean, image_std=std
    )
    processor.save_pretrained(folder)
    return module


def their_outputs(module, folder, pooled=True, images=IMAGES):
    """What a module gives for the images, as its folder's image processor prepares them."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    name = type(module).__name__
    with torch.no_grad():
        if name in ("CLIPModel", "SiglipModel"):
            return module.get_image_features(pixels).pooler_output.numpy()
        found = (module.vit if name == "ViTMAEForPreTraining" else module)(pixels)
    if name.startswith("IJepaM"):
        return found.last_hidden_state.mean(1).numpy()
    for key in ("logits", "image_embeds", *["pooler_output"] * pooled):
        if found.get(key) is not None:
            return found[key].numpy()
    return found.last_hidden_state[:, 0].numpy()


def our_outputs(checkpoint, images=IMAGES):
    params = load_params(checkpoint.path.removesuffix("model.safetensors"))
    return np.asarray(checkpoint.model().apply({"params": params}, to_float(images)))


def test_all_classes_are_compared():
    assert set(SETTINGS) == set(hugging_face.CLASSES)


@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_are_those_of_the_class_both_ways(tmp_path, name):
    module = write_theirs(tmp_path / "theirs", name)
    expected = their_outputs(module, tmp_path / "theirs")
    checkpoint = load(tmp_path / "theirs")
    found = our_outputs(checkpoint)
    assert expected.std() > 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert any("standard deviation" in change for change in checkpoint.changes)

    save(checkpoint, tmp_path / "ours", format="hf")
    (written,) = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]
    assert written == SETTINGS[name][1]
    module, report = getattr(transformers, written).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    with_pooler = checkpoint.model().pre_logits or written != "ViTModel"
    missing = () if with_pooler else ("pooler.dense.bias", "pooler.dense.weight")
    assert set(report["missing_keys"]) == set(missing)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    again = their_outputs(module.eval(), tmp_path / "ours", with_pooler)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", SETTINGS)
def test_no_array_that_counts_is_missing_in_silence(tmp_path, name):
    write_theirs(tmp_path, name)
    found = unnoticed(tmp_path / "model.safetensors", lambda: load(tmp_path))
    others = r".*mask_token|decoder.*|text_.*|logit_(scale|bias)"  # no part of what the class gives
    if name == "CLIPForImageClassification":  # it doesn't normalise in the end
        others += r"|vision_model.post_layernorm.*"
    if name == "SiglipForImageClassification":
        others += r"|vision_model.head.*"
    assert [x for x in found if not re.fullmatch(others, x)] == []


@pytest.mark.parametrize("name", ["SiglipVisionModel", "ViTForImageClassification"])
def test_pixels_beside_whole_patches_are_left_out_as_by_transformers(tmp_path, rng, name):
    """google/siglip-so400m-patch14-384 has 6 of them on each axis."""
    images = rng.integers(0, 256, (2, 37, 37, 3), np.uint8)
    module = write_theirs(tmp_path / "theirs", name, image_size=37)
    expected = their_outputs(module, tmp_path / "theirs", images=images)
    checkpoint = load(tmp_path / "theirs")
    assert checkpoint.image_shape == (37, 37) and checkpoint.grid == (4, 4)
    found = our_outputs(checkpoint, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    save(checkpoint, tmp_path / "ours", format="hf")
    module = getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()
    again = their_outputs(module, tmp_path / "ours", images=images)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [
        "ViTModel",
        "ViTForImageClassification",
        "IJepaModel",
        "IJepaForImageClassification",
        "CLIPVisionModelWithProjection",
        "SiglipVisionModel",
    ],
)
def test_arrays_that_are_not_folded_keep_their_bits(tmp_path, name):
    write_theirs(tmp_path / "theirs", name, [0.5] * 3, [0.5] * 3)
    checkpoint = load(tmp_path / "theirs")
    save(checkpoint, tmp_path / "ours", format="hf")
    theirs, ours = (load_file(tmp_path / x / "model.safetensors") for x in ("theirs", "ours"))
    if name == "SiglipVisionModel":  # has the prefix, which version 4 needs and version 5 takes
        ours = {key.removeprefix("vision_model."): x for key, x in ours.items()}
    assert theirs.keys() == ours.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)
    texts = [(tmp_path / x / "preprocessor_config.json").read_text() for x in ("theirs", "ours")]
    assert json.loads(texts[0]).items() == json.loads(texts[1]).items()


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("Dinov2ForImageClassification", None),
        ("DeiTForImageClassificationWithTeacher", None),
        ("IJepaModel", None),
        ("CLIPVisionModel", "vision_model."),
        ("SiglipVisionModel", "vision_model."),
        ("ViTMSNForImageClassification", None),
    ],
)
def test_other_spellings_of_names(tmp_path, name, rename):
    """Version 5 has other names in memory; version 4 wrote a prefix that version 5 doesn't."""
    module = write_theirs(tmp_path, name)
    expected = their_outputs(module, tmp_path)
    written = set(load_file(tmp_path / "model.safetensors"))
    state = {(rename or "") + key: x.numpy().copy() for key, x in module.state_dict().items()}
    assert state.keys() != written
    save_file(state, tmp_path / "model.safetensors")
    found = our_outputs(load(tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def change(folder, **changes):
    """Changes the folder's config.json; None leaves a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: x for key, x in config.items() if x is not None}))


@pytest.mark.parametrize(
    ("name", "epsilon", "gelu"),
    [
        ("ViTModel", 1e-12, "exact"),
        ("Dinov2Model", 1e-6, "exact"),
        ("ViTMSNModel", 1e-6, "exact"),
        ("CLIPVisionModel", 1e-5, "quick"),
        ("SiglipVisionModel", 1e-6, "tanh"),
    ],
)
def test_keys_that_are_left_out_have_the_defaults_of_the_class(tmp_path, name, epsilon, gelu):
    settings = getattr(transformers, name).config_class()
    write_theirs(tmp_path, name, num_attention_heads=settings.num_attention_heads, hidden_size=96)
    # What the arrays show needs no key.
    keys = ("layer_norm_eps", "hidden_act", "num_attention_heads", "hidden_size", "patch_size")
    change(tmp_path, **dict.fromkeys(keys))
    model = load(tmp_path).model()
    assert (model.norm_epsilon, model.gelu, model.num_heads) == (epsilon, gelu, 12)
    assert epsilon == settings.layer_norm_eps
    assert (model.width, model.patch_size) == (96, 8)


def test_a_class_that_is_not_named_is_found_by_its_arrays(tmp_path):
    for name in ("DeiTForImageClassificationWithTeacher", "ViTForImageClassification", "CLIPModel"):
        module = write_theirs(tmp_path / name, name)
        change(tmp_path / name, architectures=None)
        expected = their_outputs(module, tmp_path / name)
        found = our_outputs(load(tmp_path / name))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_gated_mlp_is_seen_in_the_arrays(tmp_path):
    write_theirs(tmp_path, "Dinov2Model", use_swiglu_ffn=True)
    change(tmp_path, use_swiglu_ffn=None)
    assert load(tmp_path).model().mlp == "swiglu"


def test_a_model_with_an_empty_array_of_registers(tmp_path):
    name = "Dinov2WithRegistersModel"
    module = write_theirs(tmp_path, name, num_register_tokens=0)
    expected = their_outputs(module, tmp_path)
    found = our_outputs(load(tmp_path))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_tower_without_a_head_gives_the_mean(tmp_path):
    module = write_theirs(tmp_path, "SiglipVisionModel", vision_use_head=False)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        tokens = module(**processor(list(IMAGES), return_tensors="pt")).last_hidden_state
    expected = tokens.mean(1).numpy()
    np.testing.assert_allclose(our_outputs(load(tmp_path)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ViTModel", dict(model_type="swin"), "model_type is 'swin'; known are vit, deit,"),
        ("ViTModel", dict(model_type=None), "model_type is ''; known are"),
        ("Dinov2Model", dict(architectures=["Dinov2Backbone"]), "architectures has 'Dinov2Back"),
        ("Dinov2Model", dict(hidden_act="relu"), "hidden_act is 'relu'"),
        ("Dinov2Model", dict(use_swiglu_ffn=True), "MlpBlock_0/Gate"),
        ("Dinov2Model", dict(use_swiglu_ffn="yes"), "use_swiglu_ffn must be a bool"),
        ("Dinov2WithRegistersModel", dict(num_register_tokens=3), "embeddings.register_tokens"),
        ("ViTModel", dict(qkv_bias="no"), "qkv_bias must be a bool"),
        ("DeiTModel", dict(num_hidden_layers=3), "encoder.layer.2"),
        ("CLIPModel", dict(vision_config=[1]), "vision_config must be a dict"),
        ("SiglipVisionModel", dict(vision_use_head=False), "head.probe is not in the model"),
        ("ViTModel", dict(quantization_config={"bits": 8}), "quantization_config"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, name, changes, message):
    write_theirs(tmp_path, name)
    change(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_missing_biases_are_no_zeros_unless_the_configuration_says_so(tmp_path):
    write_theirs(tmp_path, "ViTForImageClassification", qkv_bias=False)
    load(tmp_path)
    change(tmp_path, qkv_bias=True)
    with pytest.raises(ValueError, match=r"query\.bias is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (dict(registers=2, pool="token+gap", mlp_dim=100), "has no MLP of mlp_dim=100"),
        (dict(pre_norm=True, pool="gap", class_tokens=1, final_norm="none"), "images of 32x48"),
        (dict(class_tokens=2, num_classes=0), "ViTModel would, but for class_tokens=2"),
        (dict(pool="gap", class_tokens=1), "would, but for pool='gap'"),
        (dict(patch_norm=True), "patch_norm=True"),
    ],
)
def test_models_that_no_class_computes_are_not_written(tmp_path, attributes, message):
    checkpoint = random_checkpoint("Nano/8", **attributes)
    with pytest.raises(ValueError) as error:
        save(checkpoint, tmp_path / "hf", format="hf")
    assert message in str(error.value) and not list(tmp_path.iterdir())
