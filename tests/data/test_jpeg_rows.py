"""Parts of JPEG files have the pixels of the whole image, bit for bit."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vit_jax.config.defaults import default
from vit_jax.data import transforms
from vit_jax.data.jpeg_rows import encode_rows, keep_rows


def noise(height, width):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 5 + 2, width // 5 + 2, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height))


def pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("height, width", [(1, 1), (16, 40), (33, 17), (64, 64), (200, 61)])
def test_rows_have_the_bits_of_the_whole_image(height, width):
    data = encode_rows(noise(height, width), 80)
    whole = pillow(data)
    assert whole.shape == (height, width, 3)
    for first in range(0, height, 5):
        for end in {first + 1, (first + height + 1) // 2, min(first + 16, height), height}:
            part, start = keep_rows(data, first, end)
            rows = simplejpeg.decode_jpeg(part)[first - start : end - start]
            np.testing.assert_array_equal(rows, whole[first:end], f"{first} to {end}")
            assert len(part) <= len(data)


def test_fewer_rows_are_a_smaller_file():
    data = encode_rows(noise(320, 64), 80)
    assert len(keep_rows(data, 160, 170)[0]) < len(data) / 3


def test_other_files_stay_as_they_are():
    plain = simplejpeg.encode_jpeg(noise(64, 64))
    interrupted = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(interrupted, "JPEG", restart_marker_rows=1)
    for data in (plain, interrupted.getvalue(), b"", b"\xff\xd8", b"no image", plain[:300]):
        assert keep_rows(data, 30, 40) == (data, 0)


@pytest.mark.parametrize("crop", ["inception", "torchvision", "resize"])
def test_training_sees_the_same(crop):
    options = default().data
    options.crop = crop
    data = encode_rows(noise(150, 120), 80)
    image = pillow(data)
    for seed in range(30):
        found = transforms.training_view(data, (96, 96), np.random.default_rng(seed), options)
        rng = np.random.default_rng(seed)
        expected = transforms.TRAIN_CROPS[crop](image, (96, 96), rng, options)
        np.testing.assert_array_equal(found, expected)


def test_a_side_that_jpeg_cannot_have():
    with pytest.raises(ValueError, match="too long for JPEG"):
        encode_rows(np.zeros((1, 65_501, 3), np.uint8), 80)
