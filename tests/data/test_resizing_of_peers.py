"""Views of evaluation against the preprocessing of timm and transformers."""

import numpy as np
import pytest
from peers import torch  # noqa: F401  # skips the file if PyTorch is not installed
from PIL import Image
from timm.data import create_transform
from transformers.models.bit.image_processing_bit import BitImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.vit.image_processing_vit import ViTImageProcessor

from vit_jax.data.transforms import decode, evaluation_view

pytestmark = pytest.mark.peers
SHAPES = [(1, 1), (7, 5), (223, 224), (225, 227), (17, 400), (640, 23), (401, 500), (377, 300)]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]


@pytest.fixture(scope="module")
def real_photos(photos):
    return [decode(path.read_bytes()) for path in sorted(photos.glob("*/*.jpg"))[::600]]


def by_timm(image, size, fraction, mode, interpolation):
    transform = create_transform(
        (3, *size),
        crop_pct=fraction,
        crop_mode=mode,
        interpolation=interpolation,
        normalize=False,
    )
    return transform(Image.fromarray(image)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "box"])
@pytest.mark.parametrize(("mode", "crop"), [("center", "central"), ("squash", "squash")])
@pytest.mark.parametrize("size", [(224, 224), (48, 31), (40, 64)], ids=str)
def test_a_view_has_the_bits_of_timm(size, mode, crop, interpolation, images):
    for fraction in (0.875, 0.9, 0.95, 1.0):
        options = dict(eval_crop=crop, crop_fraction=fraction)
        options["eval_resize"] = f"{interpolation}_antialias"
        for image in images:
            expected = by_timm(image, size, fraction, mode, interpolation)
            found = evaluation_view(image, size, options)
            np.testing.assert_array_equal(found, expected, f"{image.shape} {fraction}")


def test_photos_have_the_bits_of_timm(real_photos):
    for fraction in (0.9, 0.95, 1.0):
        options = dict(crop_fraction=fraction, eval_resize="bicubic_antialias")
        for image in real_photos:
            expected = by_timm(image, (224, 224), fraction, "center", "bicubic")
            np.testing.assert_array_equal(evaluation_view(image, (224, 224), options), expected)


DINOV2 = dict(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
BICUBIC = dict(eval_resize="bicubic_antialias")
PROCESSORS = {
    # transformers resizes by Pillow: the same bits
    "ViT, Pillow": (
        ViTImageProcessorPil(),
        dict(eval_crop="whole", eval_resize="bilinear_antialias"),
        0,
    ),
    "CLIP, Pillow": (CLIPImageProcessorPil(), dict(crop_fraction=1.0, **BICUBIC), 0),
    "DeiT, Pillow": (
        DeiTImageProcessorPil(),
        dict(eval_crop="squash", crop_fraction=0.875, **BICUBIC),
        0,
    ),
    # or by torchvision, which rounds the weights of the filter in another way
    "ViT": (ViTImageProcessor(), dict(eval_crop="whole", eval_resize="bilinear_antialias"), 2),
    "DINOv2": (BitImageProcessor(**DINOV2), dict(crop_fraction=0.875, **BICUBIC), 2),
    "SigLIP": (SiglipImageProcessor(), dict(eval_crop="whole", **BICUBIC), 2),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_view_is_that_of_transformers(name, images, real_photos):
    processor, options, largest = PROCESSORS[name]
    for image in images + real_photos:
        found = evaluation_view(image, (224, 224), options).astype(int)
        (expected,) = processor(
            Image.fromarray(image), do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"]
        expected = np.asarray(expected).transpose(1, 2, 0)
        if "eval_crop" not in options:  # a half is rounded to an even pixel here, there down
            scaled = round(224 / options["crop_fraction"])
            extra = [int(scaled * side / min(image.shape[:2])) - 224 for side in image.shape[:2]]
            top, left = (round(x / 2) - x // 2 for x in extra)
            found, expected = found[: 224 - top, : 224 - left], expected[top:, left:]
        assert np.abs(found - expected).max() <= largest, image.shape
