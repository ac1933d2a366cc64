"""What Hugging Face's image processors say of images, against the processors themselves."""

import json
import logging

import numpy as np
import peers  # noqa: F401 (prepares torchvision, which the processors import)
import pytest
from conftest import random_checkpoint

from vit_jax.data.transforms import evaluation_view
from vit_jax.weights.api import adapt, load, save
from vit_jax.weights.image_processor import PREPROCESSOR, read_images

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

SIDES = dict(height=48, width=48)
PHOTOS = [
    np.random.default_rng(0).integers(0, 256, size, np.uint8).repeat(7, axis=0).repeat(7, axis=1)
    for size in ((13, 20, 3), (20, 13, 3), (5, 5, 3))
]
PROCESSORS = {
    "ViT": dict(size=SIDES, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]),
    "ViT without mean": dict(size=SIDES, do_normalize=False),
    "ViT without rescaling": dict(size=SIDES, do_rescale=False),
    "ViT to [-1, 1]": dict(size=SIDES, rescale_factor=1 / 127.5, image_mean=[1.0] * 3),
    "ViT not square": dict(size=dict(height=48, width=72), resample=1),
    "DeiT": dict(size=dict(height=60, width=60), crop_size=SIDES),
    "DeiT without crop": dict(size=SIDES, do_center_crop=False),
    "CLIP": dict(size={"shortest_edge": 48}, crop_size=SIDES),
    "Bit": dict(size={"shortest_edge": 56}, crop_size=SIDES, resample=4),
    "Bit by torchvision": dict(size={"shortest_edge": 56}, crop_size=SIDES),
    "Siglip": dict(size=SIDES),
}


def model_input(photo, images, size):
    """The numbers that a model is given, by what is said of its images."""
    pixels = evaluation_view(photo, size, images.view).astype(np.float64) / 255
    return ((pixels - images.mean) / images.std).transpose(2, 0, 1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_model_is_given_what_the_processor_gives(tmp_path, name):
    backend = "" if "torchvision" in name else "Pil"
    kind = f"{name.split()[0]}ImageProcessor{backend}"
    processor = getattr(transformers, kind)(**PROCESSORS[name])
    processor.save_pretrained(tmp_path)
    images = read_images(tmp_path, "vit")
    for photo in PHOTOS:
        (expected,) = processor(photo, return_tensors="np")["pixel_values"]
        found = model_input(photo, images, expected.shape[1:])
        assert images.size == expected.shape[1:]
        level = np.max(1 / 255 / np.asarray(images.std))  # of a pixel, in these units
        differ = np.abs(found - expected) > 1e-4 * level
        assert np.abs(found - expected).max() < (1.01 if backend else 2.01) * level
        assert not backend or differ.mean() < 0.001


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "CLIP", "Bit", "Siglip"])
def test_keys_that_are_left_out_are_those_of_the_class(tmp_path, kind):
    getattr(transformers, f"{kind}ImageProcessor")().save_pretrained(tmp_path)
    full = read_images(tmp_path, "vit")
    for spelling in (f"{kind}ImageProcessorFast", f"{kind}FeatureExtractor"):
        key = "feature_extractor_type" if "Feature" in spelling else "image_processor_type"
        (tmp_path / PREPROCESSOR).write_text(json.dumps({key: spelling}))
        assert read_images(tmp_path, "vit") == full


def test_the_size_of_old_files_is_one_number(tmp_path):
    """It is both sides for ViT and DeiT, and the shorter one for CLIP."""
    for kind, crop in (("ViT", "whole"), ("DeiT", "squash"), ("CLIP", "central_down")):
        settings = {"feature_extractor_type": f"{kind}FeatureExtractor", "size": 60}
        if kind != "ViT":
            settings["crop_size"] = 48
        (tmp_path / PREPROCESSOR).write_text(json.dumps(settings))
        images = read_images(tmp_path, "vit")
        assert images.view["eval_crop"] == crop
        assert images.view.get("crop_fraction", 0.8) == 0.8
        processor = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(tmp_path)
        (expected,) = processor(PHOTOS[0], return_tensors="np")["pixel_values"]
        found = model_input(PHOTOS[0], images, images.size)
        np.testing.assert_allclose(found, expected, atol=1.01 * np.max(1 / 255 / images.std[0]))


def test_processors_of_images_and_text_have_another_file(tmp_path):
    settings = {"image_processor_type": "CLIPImageProcessor", "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_images(tmp_path, "clip_vision_model").std == (0.1, 0.2, 0.3)


def test_processors_of_text_alone_say_nothing_of_images(tmp_path, caplog):
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIP"}))
    assert read_images(tmp_path, "vit").mean is None
    assert read_images(tmp_path, "clip_vision_model").mean == (0.48145466, 0.4578275, 0.40821073)
    assert "Taken for granted" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False, "do_center_crop": True, "crop_size": 32},
        {"keep_aspect_ratio": True},
        {"size_divisor": 32},
    ],
)
def test_steps_that_evaluation_lacks_are_refused(tmp_path, settings):
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"size": 32, **settings}))
    with pytest.raises(ValueError, match="images can't be prepared in this way here"):
        read_images(tmp_path, "vit")


def test_without_a_file_only_clip_and_siglip_are_known(tmp_path, caplog):
    assert read_images(tmp_path, "vit").mean is None
    assert not caplog.messages
    assert read_images(tmp_path, "clip_vision_model").mean == (0.48145466, 0.4578275, 0.40821073)
    assert read_images(tmp_path, "siglip_vision_model").mean == (0.5, 0.5, 0.5)
    assert len(caplog.messages) == 2 and "Taken for granted" in caplog.messages[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(do_flip_channel_order=True), "do_flip_channel_order is True"),
        (dict(crop_pct=0.9), "crop_pct is 0.9"),
        (dict(image_std=[0.5, 0, 0.5]), "image_std must be above 0"),
        (dict(image_mean=[0.5, 0.5]), "image_mean must be three numbers"),
        (dict(rescale_factor=0), "rescale_factor must be a number above 0"),
        (dict(do_rescale="yes"), "do_rescale must be a bool"),
        (dict(size={"longest_edge": 224}), "size must have a height and a width"),
        (dict(size="big"), "size must be one or two whole numbers"),
        (dict(resample="bicubic"), "resample must be the number of one of Pillow's"),
        (dict(resample=[3]), "resample must be the number of one of Pillow's"),
        (dict(do_center_crop=True, crop_size=256), "resized to 224x224 and cut to 256x256"),
        (
            dict(do_center_crop=True, crop_size=dict(height=100, width=200)),
            "resized to 224x224 and cut to 100x200",
        ),
        ([], "must hold a JSON object"),
    ],
    ids=str,
)
def test_what_can_not_be_followed_is_refused(tmp_path, settings, message):
    (tmp_path / PREPROCESSOR).write_text(json.dumps(settings))
    with pytest.raises(ValueError) as error:
        read_images(tmp_path, "vit")
    assert message in str(error.value) and PREPROCESSOR in str(error.value)


@pytest.mark.parametrize(("resample", "name"), [(0, "nearest"), (5, "hamming")])
def test_a_filter_that_is_missing_is_said(tmp_path, caplog, resample, name):
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"resample": resample}))
    assert read_images(tmp_path, "vit").view["eval_resize"].startswith("bilinear")
    assert f"not by Pillow's {name} filter" in caplog.text


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (dict(eval_crop="whole", eval_resize="bicubic_antialias"), "ViT"),
        (
            dict(eval_crop="central_down", crop_fraction=0.8, eval_resize="lanczos_antialias"),
            "CLIP",
        ),
        (dict(eval_crop="squash", crop_fraction=0.8, eval_resize="box_antialias"), "DeiT"),
    ],
)
def test_the_view_of_a_checkpoint_is_written(tmp_path, caplog, view, kind):
    checkpoint = adapt(random_checkpoint("Nano/8"), image_size=48)
    checkpoint.config.data.update(view)
    with caplog.at_level(logging.WARNING):
        save(checkpoint, tmp_path / "hf", format="hf")
    assert "has no place" not in caplog.text
    data = load(tmp_path / "hf").config.data
    assert {key: data[key] for key in view} == view
    processor = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(tmp_path / "hf")
    (expected,) = processor(PHOTOS[0], return_tensors="np")["pixel_values"]
    found = evaluation_view(PHOTOS[0], (48, 48), view).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(found, expected, atol=1.01 / 127.5)


def test_a_view_that_it_has_no_place_for_is_said(tmp_path, caplog):
    checkpoint = random_checkpoint("Nano/8")
    checkpoint.config.data.update(eval_crop="central", crop_fraction=0.8, eval_resize="bilinear")
    save(checkpoint, tmp_path / "hf", format="hf")
    assert "data.eval_crop=central" in caplog.text and "data.eval_resize=bilinear" in caplog.text


def test_a_processor_for_images_of_another_size_is_said(tmp_path, caplog):
    save(adapt(random_checkpoint("Nano/8"), image_size=48), tmp_path / "hf", format="hf")
    path = tmp_path / "hf" / PREPROCESSOR
    settings = {"size": {"height": 24, "width": 24}}
    path.write_text(json.dumps(settings))
    caplog.clear()
    assert load(tmp_path / "hf").image_shape == (48, 48)
    assert "images of 24x24 pixels, but positions are for 48x48" in caplog.text


@pytest.fixture
def folder(tmp_path):
    save(random_checkpoint("Nano/8", gelu="exact"), tmp_path / "x", format="hf")
    return tmp_path / "x"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["ConvNext", "Levit", "EfficientNet"])
def test_processors_with_steps_of_their_own_are_refused(folder, kind):
    edit(folder / PREPROCESSOR, image_processor_type=f"{kind}ImageProcessor")
    with pytest.raises(ValueError, match=f"{kind}ImageProcessor', which has steps of its own"):
        load(folder)


def test_pixels_beside_whole_patches_are_left_out_if_nothing_else_is_asked_for(folder):
    edit(folder / "config.json", image_size=[33, 49])
    assert load(folder).model().crop_to_patches
    with pytest.raises(ValueError, match="33x49 pixels can't be cut into patches of 8x8"):
        load(folder, crop_to_patches=False)
