"""How the files of a folder are divided: by the name of each alone."""

import unicodedata

import numpy as np
import pytest
from conftest import write_jpegs

from vit_jax.data import splits
from vit_jax.data.folders import FolderDataset, position_of


def names(dataset, split):
    return [path.name for path, _ in dataset.source(split).files]


@pytest.fixture
def folder(tmp_path):
    return write_jpegs(tmp_path, {"a": 30, "b": 20})


@pytest.mark.parametrize("percent", ["5%", "12.5%", "50%", "-15%", "100%", "0%"])
def test_two_slices_are_all_files_once_in_the_order_of_their_positions(folder, percent):
    dataset = FolderDataset(folder)
    first, second = (names(dataset, f"train[{x}]") for x in (f":{percent}", f"{percent}:"))
    assert first + second == names(dataset, "train")
    border = float(percent[:-1]) % 100.0 if percent != "100%" else 100
    assert all(position_of(name) < border / 100 for name in first)
    assert all(position_of(name) >= border / 100 for name in second)


def test_removed_files_move_no_other(folder):
    def held_out():
        return set(FolderDataset(folder).source("train[85%:]").files)

    before = held_out()
    for path in sorted(folder.glob("*/*.jpg"))[::3]:
        path.unlink()
        after = held_out()
        assert after == {file for file in before if file[0].exists()}


def test_slices_in_numbers_are_counted_in_the_order_of_positions(folder):
    dataset = FolderDataset(folder)
    everything = names(dataset, "train")
    assert names(dataset, "train[10:20]+train[45:]") == everything[10:20] + everything[45:]
    with pytest.raises(ValueError, match="incompatible with 50 examples"):
        dataset.source("train[:51]")


def test_the_folder_of_the_class_and_the_suffix_do_not_count(folder):
    before = set(names(FolderDataset(folder), "train[85%:]"))
    (folder / "a").rename(folder / "z")
    assert set(names(FolderDataset(folder), "train[85%:]")) == before
    assert position_of("7.png") == position_of("7.JPG") == position_of("007.jpg")


def test_the_form_of_unicode_does_not_count():
    forms = {unicodedata.normalize(form, "Käfer 1.jpg") for form in ("NFC", "NFD")}
    assert len(forms) == 2 and len(set(map(position_of, forms))) == 1


@pytest.mark.parametrize(
    "name", [".jpg", "\udcff\udcfe.jpg", "9" * 250 + ".jpg", "x\n<b>.png", "٣.jpg", "1.tar.webp"]
)
def test_any_name_has_a_position(name):
    assert 0 <= position_of(name) < 1


@pytest.mark.parametrize("template", ["{}.jpg", "{:05}.png", "IMG_{}.JPG", "a 3 of 9 b{}.webp"])
@pytest.mark.parametrize("start", [0, 1, 4321])
def test_files_in_sequence_are_spread_evenly(template, start):
    """Three files more or less than the share, where independent positions would differ by 34."""
    found = [position_of(template.format(i)) for i in range(start, start + 1000)]
    for low, high in ((0.85, 1), (0, 0.5), (0.765, 0.85)):
        inside = np.cumsum([low <= x < high for x in found])
        assert np.abs(inside - (high - low) * np.arange(1, 1001)).max() < 3


def test_other_names_are_spread_independently():
    rng = np.random.default_rng(0)
    found = [position_of(f"{bytes(rng.bytes(6)).hex()}_n.jpg") for _ in range(20_000)]
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, p = 0.001


def test_a_share_that_is_held_out_is_as_stable(folder):
    def held_out():
        dataset = FolderDataset(folder)
        parts = splits.hold_out("train[:85%]", 0.1, dataset.splits, by_position=True)
        return [set(names(dataset, part)) for part in parts]

    kept, held = held_out()
    assert held and not kept & held
    assert kept | held == set(names(FolderDataset(folder), "train[:85%]"))
    (folder / "b" / "0.jpg").rename(folder / "b" / "1000.jpg")
    now_kept, now_held = held_out()
    assert not now_kept & held and not now_held & kept


def test_shared_examples_are_counted():
    sizes = {"train": 100, "val": 10}

    def shared(a, b):
        return splits.count_shared(*(splits.absolute_parts(x, sizes) for x in (a, b)), sizes)

    assert shared("train[:85%]", "train[85%:]") == 0
    assert shared("train[:85%]", "train[80%:]") == 5
    assert shared("train+val", "val[2:4]+train[:7]+train[99:]") == 10
    assert shared("train", "val") == 0
