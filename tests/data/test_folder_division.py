"""How the files of a folder are divided: by the name of each alone."""

import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from conftest import REPOSITORY, environment, write_jpegs

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


def test_added_files_move_no_other(folder):
    def held_out():
        return set(FolderDataset(folder).source("train[85%:]").files)

    before, train = held_out(), folder / "a" / "0.jpg"
    for number in range(30, 60):
        (folder / "a" / f"{number:04}.jpg").write_bytes(train.read_bytes())
    added = {file for file in held_out() if int(file[0].stem) >= 30}
    assert added and held_out() - added == before


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


def test_the_locale_does_not_count(tmp_path):
    """Python holds the bytes of names in another way where the locale is "C"."""
    for form in ("NFC", "NFD"):
        write_jpegs(tmp_path, {unicodedata.normalize(form, f"café {form}"): 2}, size=(8, 8))
    for path in sorted(tmp_path.glob("*/*")):
        path.rename(
            path.with_name(unicodedata.normalize(path.parent.name[-3:], f"Käfer{path.name}"))
        )
    program = """
import os, sys
sys.path.append(sys.argv[2])
from vit_jax.data.folders import FolderDataset
from vit_jax.data.fingerprint import fingerprint
dataset = FolderDataset(sys.argv[1])
source = dataset.source("train")
print([os.fsencode(path) for path, _ in source.files], end=" ")
print(fingerprint(dataset, labels=True, train=("train", source)).splits)
"""
    found = set()
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}):
        env = {**environment(), **locale}
        command = [sys.executable, "-c", program, str(tmp_path), str(REPOSITORY)]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1


def held_out(template, numbers):
    return np.array([position_of(template.format(i)) >= 0.85 for i in numbers])


@pytest.mark.parametrize("template", ["IMG_{}.JPG", "{:05}.png", "a 3 of 9 b{}.webp"])
@pytest.mark.parametrize("start", [0, 1, 4321])
def test_files_in_sequence_are_spread_evenly(template, start):
    """Of independent positions, the largest deviation would be 34 in one of a thousand cases."""
    found = np.cumsum(held_out(template, range(start, start + 1000)))
    assert np.abs(found - 0.15 * np.arange(1, 1001)).max() < 14


@pytest.mark.parametrize("start", [0, 1])
def test_of_a_few_numbered_files_one_is_held_out(start):
    found = np.cumsum(held_out("{}.jpg", range(start, start + 1000)))
    assert found[2] == 1
    assert np.abs(found - 0.15 * np.arange(1, 1001)).max() < 2


@pytest.mark.parametrize("step", [8, 13, 21, 32, 55, 144, 233, 377, 610, 987])
def test_numbers_in_steps_are_held_out_as_if_at_random(step):
    """Of 50 files, 7.5 with a standard deviation of 2.5, or 1.4 times as much."""
    counts = [held_out(f"f{series}_{{}}.jpg", range(0, 50 * step, step)) for series in range(30)]
    difference = np.sum(counts, axis=1) - 7.5
    assert np.sqrt(np.mean(difference**2)) < 1.4 * 1.5 * 2.525
    assert abs(difference.mean()) < 2.1


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
