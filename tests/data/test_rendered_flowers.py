"""The drawn flowers: the same every time, all different, and not to be told apart by colour."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds

from vit_jax.data.builders.rendered_flowers import KINDS, SIZE, RenderedFlowers, render

PREPARE = """
import sys
from vit_jax.data.builders.rendered_flowers import RenderedFlowers
RenderedFlowers(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
print("tensorflow" in sys.modules)
"""
CHANCE = 1 / len(KINDS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What a process of its own prepared: its folder, and the last line that it printed."""
    folder = tmp_path_factory.mktemp("tfds")
    process = subprocess.run(
        [sys.executable, "-c", PREPARE, folder], stdout=subprocess.PIPE, text=True, check=True
    )
    return folder, process.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def splits(prepared):
    """{split: [(JPEG bytes, label)]}, found by name and read without decoding."""
    builder = tfds.builder("rendered_flowers", data_dir=prepared[0])
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        split: [(e["image"], int(e["label"])) for e in builder.as_data_source(split, decoders=skip)]
        for split in builder.info.splits
    }


@pytest.fixture(scope="module")
def decoded(splits):
    """{split: (images uint8 (n, h, w, 3), labels (n,))}"""
    return {
        split: (
            np.stack([simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg, _ in examples]),
            np.array([label for _, label in examples]),
        )
        for split, examples in splits.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_one_image_and_another_seed_another(kind):
    first, same, other = (render(kind, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (SIZE, SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, same)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("size", [32, 96])
def test_a_flower_is_drawn_at_any_size(size):
    assert render("rose", np.random.default_rng(0), size).shape == (size, size, 3)


def test_an_unknown_kind_is_refused():
    with pytest.raises(KeyError, match="orchid"):
        render("orchid", np.random.default_rng(0))


@pytest.mark.slow
def test_preparing_does_not_import_tensorflow(prepared):
    folder, imported = prepared
    assert imported == "False"
    files = sorted(path.name for path in folder.rglob("*array_record*"))
    assert [name.split(".")[0] for name in files] == [
        "rendered_flowers-test",
        "rendered_flowers-train",
    ]


@pytest.mark.slow
def test_it_says_what_it_holds(prepared):
    info = tfds.builder("rendered_flowers", data_dir=prepared[0]).info
    assert info.features["label"].names == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 3000,
        "test": 600,
    }
    assert info.supervised_keys == ("image", "label")


@pytest.mark.slow
def test_the_kinds_are_equally_many_and_the_images_have_one_size(decoded):
    for images, labels in decoded.values():
        assert images.shape[1:] == (SIZE, SIZE, 3)
        assert set(np.bincount(labels)) == {len(labels) / len(KINDS)}


@pytest.mark.slow
def test_no_image_is_there_twice(splits):
    images = [image for examples in splits.values() for image, _ in examples]
    assert len(set(images)) == len(images) == 3600


@pytest.mark.slow
def test_every_process_draws_the_same_bytes(splits, tmp_path):
    builder = RenderedFlowers(data_dir=tmp_path)
    for number, split in enumerate(("train", "test")):
        drawn = {
            (example["image"].read(), KINDS.index(example["label"]))
            for _, example in builder._generate_examples(number, 20)
        }
        assert len(drawn) == 20 and drawn <= set(splits[split])


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, SIZE])
def test_a_linear_classifier_learns_something_but_not_much(decoded, side):
    """Ridge regression on the pixels, with the penalty that suits the test split best."""

    def pixels(images):
        small = [cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in images]
        return np.reshape(small, (len(small), -1)).astype(np.float32)

    (images, labels), (test_images, test_labels) = decoded["train"], decoded["test"]
    x, x_test = pixels(images), pixels(test_images)
    mean, std = x.mean(0), x.std(0)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    target = np.eye(len(KINDS), dtype=np.float32)[labels] - CHANCE
    # More pixels than images: solved for a weight per image.
    gram, gram_test = x @ x.T, x_test @ x.T
    accuracies = [
        (gram_test @ np.linalg.solve(gram + penalty * x.shape[1] * np.eye(len(x)), target)).argmax(
            1
        )
        == test_labels
        for penalty in (10, 100, 1000)
    ]
    best = np.mean(accuracies, axis=1).max()
    assert CHANCE + 0.1 < best < 0.6
