"""What tells the data of a run from others: changes that count, and changes that don't."""

import shutil
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import write_jpegs
from faults.records import Meadow, prepare_meadow

from vit_jax.data import sources
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.fingerprint import Fingerprint, find_differences, fingerprint
from vit_jax.data.folders import FolderDataset


def found(dataset, *, labels=True, train="train[:85%]", test="train[85%:]"):
    splits = {"train": train, "test": test}
    opened = {part: (split, dataset.source(split)) for part, split in splits.items()}
    return fingerprint(dataset, labels=labels, **opened)


@pytest.fixture
def folder(tmp_path):
    return write_jpegs(tmp_path / "data", {"café": 9, "tea": 9}, size=(8, 8))


def move(folder):
    folder.rename(folder.with_name("elsewhere"))
    return folder.with_name("elsewhere")


def link(folder):
    folder.with_name("link").symlink_to(folder)
    return folder.with_name("link")


def other_files(folder):
    (folder / "notes.txt").write_text("x")
    (folder / "tea" / ".DS_Store").write_text("x")


def other_form_of_unicode(folder):
    (folder / "café").rename(folder / unicodedata.normalize("NFD", "café"))


def another_picture_of_the_same_name(folder):
    shutil.copy(folder / "tea" / "0.jpg", folder / "tea" / "1.jpg")


def files_in_order(folder):
    """The file name and the label of all images, in the order in which a run numbers them."""
    return [(path.name, label) for path, label in FolderDataset(folder).source("train").files]


@pytest.mark.parametrize(
    "change", [move, link, other_files, other_form_of_unicode, another_picture_of_the_same_name]
)
def test_these_are_the_same_data(folder, change):
    before, order = found(FolderDataset(folder)), files_in_order(folder)
    folder = change(folder) or folder
    assert found(FolderDataset(folder)) == before
    assert files_in_order(folder) == order


def test_files_of_the_same_name_keep_their_order_in_the_other_form_of_unicode(tmp_path):
    """As one character "é" comes after "t", as two before it."""
    folder = write_jpegs(tmp_path, {"éclair": 9, "tea": 9}, size=(8, 8))
    before = files_in_order(folder)
    (folder / "éclair").rename(folder / unicodedata.normalize("NFD", "éclair"))
    assert files_in_order(folder) == before


def test_a_folder_is_the_same_from_inside_and_with_a_slash(folder, monkeypatch):
    before = found(FolderDataset(folder))
    assert found(FolderDataset(f"{folder}/")) == before
    monkeypatch.chdir(folder)
    assert found(FolderDataset(".")) == before


def swap_two(folder):
    first, second, third = folder / "café" / "0.jpg", folder / "tea" / "0.jpg", folder / "x.jpg"
    for old, new in ((first, third), (second, first), (third, second)):
        old.rename(new)


def new_name(folder):
    (folder / "tea" / "0.jpg").rename(folder / "tea" / "zero.jpg")


def new_suffix(folder):
    (folder / "tea" / "0.jpg").rename(folder / "tea" / "0.jpeg")


def removed(folder):
    (folder / "tea" / "0.jpg").unlink()


def subfolder(folder):
    (folder / "tea" / "green").mkdir()
    (folder / "tea" / "0.jpg").rename(folder / "tea" / "green" / "0.jpg")


def empty_class(folder):
    (folder / "water").mkdir()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (new_name, "the train split, train[:85%], has"),
        (new_suffix, "the train split, train[:85%], has 16 images as before, but some are others"),
        (removed, "the train split, train[:85%], had 16 images, has 15"),
        (subfolder, "the train split, train[:85%], has 16 images as before, but some are others"),
        (empty_class, "the classes changed (new: water)"),
    ],
)
def test_these_are_other_data(folder, change, told):
    before = found(FolderDataset(folder))
    assert find_differences(before, found(FolderDataset(folder))) == []
    change(folder)
    assert find_differences(before, found(FolderDataset(folder)))[0].startswith(told)


def test_pictures_that_change_their_places_are_not_seen(folder):
    """Names are compared, not contents: this would have to read everything."""
    before = found(FolderDataset(folder))
    swap_two(folder)
    assert found(FolderDataset(folder)) == before


def test_one_split_can_be_compared_alone(folder):
    before = found(FolderDataset(folder))
    removed(folder)  # from the training split
    now = found(FolderDataset(folder))
    assert find_differences(before, now, parts=("test",)) == []


def test_the_order_of_classes_counts_and_unknown_names_do_not():
    old = Fingerprint(("0", "1", "10", "2"), None)
    new = Fingerprint(("0", "1", "2", "10"), None)
    assert find_differences(old, new) == ["the classes changed (label 2 was '10', is '2')"]
    assert find_differences(Fingerprint((), None), new) == []
    unprintable = find_differences(new, Fingerprint(("0", "1", "2", "a\n\u202e"), None))
    assert "\n" not in unprintable[0] and "\u202e" not in unprintable[0]


def test_many_changed_classes_are_cut():
    names = tuple(f"class{i}" for i in range(1000))
    [told] = find_differences(Fingerprint(names, None), Fingerprint((*names[::-1], "x"), None))
    assert len(told) < 200
    [told] = find_differences(Fingerprint(names, None), Fingerprint(("y",), None))
    assert "and 995 more" in told and len(told) < 200


def test_other_splits_are_named(folder):
    dataset = FolderDataset(folder)
    changed = find_differences(found(dataset), found(dataset, train="train[:50%]"))
    assert len(changed) == 1
    assert changed[0].startswith("the train split was train[:85%] (16 images), is train[:50%] (")
    assert found(dataset, train="train") != found(dataset)
    whole = find_differences(found(dataset, train="train"), found(dataset, train="train[:100%]"))
    assert whole == []  # the same images


def test_arrays_are_told_by_their_contents():
    images, labels = np.zeros((20, 4, 4), np.uint8), [0, 1] * 10
    before = found(ArrayDataset(images, labels, 0.2), train="train", test="test")
    assert found(ArrayDataset(images, labels, 0.2), train="train", test="test") == before
    images[3] = 1
    after = found(ArrayDataset(images, labels, 0.2), train="train", test="test")
    assert len(find_differences(before, after)) == 2


def test_a_data_set_of_tfds_is_told_by_its_version_and_its_numbers(tmp_path, monkeypatch):
    prepare_meadow(monkeypatch, tmp_path / "1")
    first = sources.open_dataset("meadow", str(tmp_path / "1"))
    before = found(first, train="train[:75%]", test="test")
    same = found(first, train="train[0:9]", test="test[:100%]")
    assert find_differences(before, same) == []
    monkeypatch.setattr(Meadow, "VERSION", tfds.core.Version("2.0.0"))
    prepare_meadow(monkeypatch, tmp_path / "2")
    second = sources.open_dataset("meadow", str(tmp_path / "2"))
    assert second.name == "meadow/2.0.0"
    assert len(find_differences(before, found(second, train="train[:75%]", test="test"))) == 2


def test_without_labels_no_class_is_stored(folder):
    assert found(FolderDataset(folder), labels=False).class_names == ()
