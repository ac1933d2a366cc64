"""3-Augment, colour jitter and random erasing, against NumPy in float64 and SciPy."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from vit_jax.config.defaults import default
from vit_jax.data import augmentation
from vit_jax.data.augmentation import augment, colour_jitter, random_erasing, three_augment
from vit_jax.data.folders import FolderDataset
from vit_jax.data.pipeline import SINGLE_PROCESS, Shard, seek, train_batches

GREY = [0.299, 0.587, 0.114]  # ITU-R BT.601


@pytest.fixture
def image(rng):
    """40 x 56, of smooth colours with some noise."""
    smooth = np.linspace(20, 200, 40 * 56).reshape(40, 56, 1) * [1.0, 0.7, 0.4]
    return (smooth + rng.integers(0, 40, smooth.shape)).astype(np.uint8)


def test_nothing_is_drawn_or_changed_by_default(image):
    rng, options = np.random.default_rng(0), default().data
    options.flip = False
    assert augment(image, rng, options) is image
    assert rng.random() == np.random.default_rng(0).random()


def test_augmentations_follow_each_other_in_the_documented_order(image, monkeypatch):
    options, called = default().data, []
    options.update(randaugment=1, three_augment=True, colour_jitter=0.3, erase=0.25)

    def recorder(name):
        return lambda image, rng, *arguments, **keywords: called.append((name, *arguments)) or image

    names = ["random_flip", "rand_augment", "three_augment", "colour_jitter", "random_erasing"]
    for name in names:
        monkeypatch.setattr(augmentation, name, recorder(name))
    augment(image, np.random.default_rng(0), options)
    assert called == [(name,) for name in names[:3]] + [(names[3], 0.3), (names[4], 0.25)]


# -------------------------------------------------------------------------------------- 3-Augment


def test_three_augment_greys_solarizes_or_blurs(image):
    grey = np.rint(np.repeat(image @ np.array(GREY)[:, None], 3, axis=-1))
    solarized = np.where(image < 128, image, 255 - image)
    counts, errors = Counter(), []
    for seed in range(300):
        found = three_augment(image, np.random.default_rng(seed)).astype(int)
        assert found.shape == image.shape
        if np.abs(found - grey).max() <= 1:
            counts["grey"] += 1
        elif np.array_equal(found, solarized):
            counts["solarized"] += 1
        else:
            rng = np.random.default_rng(seed)
            rng.integers(3)
            sigma = rng.uniform(0.1, 2)
            blurred = ndimage.gaussian_filter(
                image.astype(float), (sigma, sigma, 0), mode="nearest"
            )
            errors.append(np.abs(found - blurred).mean())
            counts["blurred"] += 1
    assert len(counts) == 3 and min(counts.values()) > 75  # 100 +- 8
    assert max(errors) < 0.6


# ----------------------------------------------------------------------------------- colour jitter


def enhanced(image, kind, factor):
    """The image after one change, in float64, rounded as bytes are."""
    grey = image @ np.array(GREY)
    other = {"brightness": 0.0, "contrast": np.rint(grey).mean(), "saturation": grey[..., None]}
    return np.clip(np.rint(factor * image + (1 - factor) * other[kind]), 0, 255)


@pytest.mark.parametrize("seed", range(8))
def test_colour_jitter_by_numpy(image, seed):
    found = colour_jitter(image, np.random.default_rng(seed), 0.4)
    rng, expected = np.random.default_rng(seed), image.astype(float)
    for i in rng.permutation(3):
        kind = ("brightness", "contrast", "saturation")[i]
        expected = enhanced(expected, kind, rng.uniform(0.6, 1.4))
    assert np.abs(found - expected).max() <= 3  # each change rounds
    assert np.abs(found.astype(int) - image).max() > 3


@pytest.mark.parametrize(("strength", "bounds"), [(0.3, (0.7, 1.3)), (1.5, (0.0, 2.5))])
def test_factors_of_colour_jitter_are_uniform(strength, bounds):
    """An image of one grey only changes its brightness."""
    grey = np.full((2, 2, 3), 100, np.uint8)
    rng = np.random.default_rng(1)
    factors = [colour_jitter(grey, rng, strength)[0, 0, 0] / 100 for _ in range(1500)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        expected = bounds[0] + share * (bounds[1] - bounds[0])
        assert np.quantile(factors, share) == pytest.approx(expected, abs=0.04 * np.ptp(bounds))


def test_colour_jitter_has_all_orders(image, monkeypatch):
    names, called = ("b", "c", "s"), []

    def recorder(name):
        return lambda image, factor: called.append(name) or image

    monkeypatch.setattr(augmentation, "_JITTERS", tuple(map(recorder, names)))
    rng = np.random.default_rng(0)
    for _ in range(600):
        colour_jitter(image, rng, 0.3)
    counts = Counter(zip(called[::3], called[1::3], called[2::3], strict=True))
    assert set(counts) == set(itertools.permutations(names)) and min(counts.values()) > 70


# --------------------------------------------------------------------------------- random erasing


def test_erasing_puts_noise_into_one_rectangle():
    """Its share of the area is uniform from 2 to 33 %, and its aspect ratio is 0.3 to 3.3."""
    image = np.zeros((100, 140, 3), np.uint8)
    rng, areas, aspects, noise = np.random.default_rng(0), [], [], []
    for _ in range(400):
        found = random_erasing(image, rng, 1.0)
        erased = found.any(-1)  # noise of three zeros is rare
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert erased.sum() > 0.99 * h * w
        areas.append(h * w / (100 * 140))
        aspects.append(w / h)
        noise.append(found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].ravel())
    assert not image.any()
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert np.quantile(areas, share) == pytest.approx(0.02 + share * (1 / 3 - 0.02), abs=0.03)
    assert 0.28 < min(aspects) < 0.4 and 2.6 < max(aspects) < 3.6
    assert np.exp(np.mean(np.log(aspects))) == pytest.approx(1, abs=0.12)
    shares = np.bincount(np.concatenate(noise), minlength=256) / sum(map(len, noise))
    np.testing.assert_allclose(shares, 1 / 256, rtol=0.05)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_images_are_erased_as_often_as_asked_for(image, probability):
    rng = np.random.default_rng(0)
    share = np.mean([random_erasing(image, rng, probability) is not image for _ in range(800)])
    assert share == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_an_image_into_which_no_rectangle_fits_stays(rng, shape):
    image = np.zeros((*shape, 3), np.uint8)
    for _ in range(50):
        assert random_erasing(image, rng, 1.0).any(-1).sum() < max(2, image.size // 3)


# ------------------------------------------------------------------------------------- the batches


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 20)])
def test_the_given_image_stays_and_all_randomness_is_in_the_generator(rng, shape):
    options = default().data
    options.update(randaugment=1, three_augment=True, colour_jitter=0.3, erase=1.0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    image.flags.writeable = False
    for seed in range(10):
        once, again = (augment(image, np.random.default_rng(seed), options) for _ in range(2))
        np.testing.assert_array_equal(once, again)
        assert once.shape == image.shape and once.dtype == np.uint8


def test_batches_are_the_same_when_resumed_and_between_processes(image_folder):
    options = default().data
    options.update(image_size=16, three_augment=True, colour_jitter=0.3, erase=0.5)
    source = FolderDataset(str(image_folder)).source("train")

    def batches(batch_size, start=0, shard=SINGLE_PROCESS):
        made = train_batches(
            source, options, num_classes=3, batch_size=batch_size, seed=5, shard=shard
        )
        seek(made, start)
        return made

    whole = [batch["image"] for batch in itertools.islice(batches(8), 4)]
    np.testing.assert_array_equal(next(batches(8, 2))["image"], whole[2])
    parts = [next(batches(4, 3, Shard(i, 2)))["image"] for i in range(2)]
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(whole[3].shape), whole[3])
    options.update(three_augment=False, colour_jitter=0.0, erase=0.0)
    assert (next(batches(8))["image"] != whole[0]).any()
