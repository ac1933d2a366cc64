"""How images are resized and cropped in evaluation, against Pillow's own resize of the whole."""

import math

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import resizing
from vit_jax.data.transforms import View, evaluation_view, view_of

PILLOW = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic_antialias": Image.Resampling.BICUBIC,
    "lanczos_antialias": Image.Resampling.LANCZOS,
    "box_antialias": Image.Resampling.BOX,
}


def noise(rng, shape):
    return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)


def by_pillow(image, whole, size, name):
    """The centre of an image that Pillow resizes to `whole` in one call."""
    resized = np.asarray(Image.fromarray(image).resize(whole[::-1], PILLOW[name]))
    top, left = (round((a - b) / 2) for a, b in zip(whole, size, strict=True))
    return resized[top : top + size[0], left : left + size[1]]


def test_every_name_antialiases_but_the_first():
    assert list(resizing.EVAL_RESIZES) == ["bilinear", *PILLOW]


@pytest.mark.parametrize("name", PILLOW)
def test_a_view_has_the_pixels_of_pillow(name, rng):
    shapes = [(1, 1), (5, 7), (48, 48), (47, 49), (333, 500), (500, 331), (9, 800), (400, 3)]
    for shape in shapes:
        image = noise(rng, shape)
        for side, fraction in ((48, 0.875), (32, 0.9), (31, 1.0), (20, 20 / 29)):
            scaled = math.floor(side / fraction + 1e-6)  # 29 for 20 / (20 / 29)
            wholes = {
                "central": [int(scaled * x / min(shape)) for x in shape],
                "squash": [scaled, scaled],
                "whole": [side, side],
            }
            for crop, whole in wholes.items():
                options = dict(eval_crop=crop, crop_fraction=fraction, eval_resize=name)
                found = evaluation_view(image, (side, side), options)
                expected = by_pillow(image, whole, (side, side), name)
                np.testing.assert_array_equal(found, expected, f"{shape} {side} {fraction} {crop}")


@pytest.mark.parametrize("name", PILLOW)
def test_strips_that_are_not_made_whole_are_close_to_pillow(name, rng):
    """A smooth strip that Pillow would resize to 45,000 pixels, of which 24 are kept."""
    ramp = np.linspace(0, 4, 4500)[None, :, None] * 60 + np.array([5, 8, 11])
    for strip in (ramp.repeat(3, axis=0), ramp.repeat(3, axis=0).swapaxes(0, 1)):
        strip = strip.astype(np.uint8)
        options = dict(crop_fraction=0.8, eval_resize=name)
        found = evaluation_view(strip, (24, 24), options).astype(int)
        whole = [int(30 * side / 3) for side in strip.shape[:2]]
        assert max(whole) > 2**13
        expected = by_pillow(strip, whole, (24, 24), name)
        assert np.abs(found - expected).max() <= 1


def test_a_very_long_side_is_averaged_first(rng):
    """Its mean colours stay; Pillow's weights alone would take 100 bytes a pixel of it."""
    image = np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 3000)[None, :, None]
    image = np.broadcast_to(image, (2, 192_000, 3))
    options = dict(eval_crop="whole", eval_resize="bicubic_antialias")
    for strip in (image, image.swapaxes(0, 1)):
        found = evaluation_view(strip, (64, 64), options)
        along = found[0, :, 0] if strip is image else found[:, 0, 0]
        assert np.abs(along.astype(int) - np.arange(0, 256, 4)).max() <= 1


def test_antialiasing_averages_what_bilinear_jumps_over():
    """Stripes one pixel wide become grey; the four nearest pixels alone keep them."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, ::3] = 255
    for name in resizing.EVAL_RESIZES:
        found = evaluation_view(image, (12, 12), dict(eval_crop="whole", eval_resize=name))
        spread = np.ptp(found[2:-2, 2:-2].astype(int))
        assert (spread > 100) if name == "bilinear" else (spread < 40), (name, spread)


def test_a_squash_begins_where_its_share_says():
    image = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (50, 200, 3))
    for name in resizing.EVAL_RESIZES:
        options = dict(eval_crop="squash", crop_fraction=0.8, eval_resize=name)
        found = evaluation_view(image, (40, 40), options)[20, :, 0].astype(int)
        assert abs(found[0] - 21.5) <= 1 and abs(found[-1] - 177.5) <= 1  # 5 of 50 at each border


def test_an_image_may_be_a_view_of_other_memory(rng):
    grey = np.broadcast_to(rng.integers(0, 256, (30, 40, 1)).astype(np.uint8), (30, 40, 3))
    for image in (grey, noise(rng, (80, 60))[::2, ::-1]):
        for crop in resizing.EVAL_CROPS:
            options = dict(eval_crop=crop, eval_resize="bicubic_antialias")
            found = evaluation_view(image, (16, 16), options)
            np.testing.assert_array_equal(found, evaluation_view(image.copy(), (16, 16), options))


@pytest.mark.parametrize(
    "options",
    [
        {"eval_crop": "corner"},
        {"eval_resize": "bicubic"},
        *({"crop_fraction": x} for x in (1.5, 0, "0.9", float("nan"))),
    ],
    ids=str,
)
def test_an_unknown_view_is_explained(options):
    (key,) = options
    with pytest.raises(ValueError, match=rf"data\.{key}={options[key]!r}.*: images can't be shown"):
        view_of(options)


def test_the_first_that_sets_a_key_of_the_view_decides():
    assert view_of({}) == view_of({"eval_crop": None}) == View("central", 0.875, "bilinear")
    own, weights = {"eval_crop": "whole"}, {"eval_crop": "squash", "crop_fraction": 0.9}
    assert view_of(own, weights) == View("whole", 0.9, "bilinear")
    assert view_of({"eval_crop": None, "crop_fraction": 1.0}, weights).crop_fraction == 1.0
