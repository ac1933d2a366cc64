"""What `data check` and a run say of all images: copies of the same file, and sizes."""

import logging
import shutil

import pytest
from conftest import write_jpegs
from PIL import Image

from vit_jax.config.defaults import default
from vit_jax.data.__main__ import main
from vit_jax.data.checks import require_decodable
from vit_jax.data.folders import FolderDataset
from vit_jax.data.inspection import Inspected, describe_sizes, find_copies, inspect_images


def check(folder, capsys):
    """The status and the lines of `data check`."""
    with pytest.raises(SystemExit) as exit:
        main(["check", str(folder)])
    return exit.value.code, capsys.readouterr().out.splitlines()


def warnings_of_a_run(folder, splits, caplog):
    caplog.set_level(logging.INFO, "vit_jax")
    require_decodable(FolderDataset(folder), splits, default().data, progress=False)
    return [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]


def test_copies_in_two_splits_are_named_by_check_and_before_a_run(tmp_path, capsys, caplog):
    for i, split in enumerate(("train", "valid", "test")):
        write_jpegs(tmp_path / split, {"a": 2, "b": 2}, size=(20, 20 + i))
    shutil.copy(tmp_path / "train/a/1.jpg", tmp_path / "test/a/photo.jpg")
    shutil.copy(tmp_path / "train/b/0.jpg", tmp_path / "valid/b/new\nline.jpg")
    (tmp_path / "test/b/link.jpg").symlink_to("../../train/b/1.jpg")
    in_test = {
        "test/a/photo.jpg (test) = train/a/1.jpg (train)",
        "test/b/link.jpg (test) = train/b/1.jpg (train)",
    }
    (warning,) = warnings_of_a_run(tmp_path, ("train", "test"), caplog)
    assert warning.startswith("2 images are byte for byte the same as images of another split: ")
    assert all(pair in warning for pair in in_test) and "valid" not in warning
    status, lines = check(tmp_path, capsys)
    before = "in two splits, byte for byte the same: "
    assert status == 0
    assert {line.removeprefix(before) for line in lines if line.startswith(before)} == {
        *in_test,
        r"valid/b/new\nline.jpg (valid) = train/b/0.jpg (train)",
    }


def test_copies_in_the_held_out_part_are_found(tmp_path, capsys, caplog):
    folder = write_jpegs(tmp_path, {"a": 30, "b": 1})
    held_out = FolderDataset(folder).source("train[85%:]").files
    kept = FolderDataset(folder).source("train[:85%]").files
    shutil.copy(held_out[0][0], kept[0][0])
    place, copy = (files[0][0].relative_to(folder) for files in (held_out, kept))
    pair = f"{place} (train[85%:]) = {copy} (train[:85%])"
    (warning,) = warnings_of_a_run(folder, ("train[:85%]", "train[85%:]"), caplog)
    assert f" split: {pair}. " in warning
    assert f"in two splits, byte for byte the same: {pair}" in check(folder, capsys)[1]


def test_an_image_that_is_itself_in_both_splits_is_no_copy(tmp_path, caplog):
    folder = write_jpegs(tmp_path, {"a": 3, "b": 3})
    assert warnings_of_a_run(folder, ("train", "train[50%:]"), caplog) == []


def test_copies_in_one_split_are_counted_and_named_if_their_labels_differ(tmp_path, capsys):
    for split in ("train", "test"):
        write_jpegs(tmp_path / split, {"a": 3, "b": 3}, size=(20, 20 + len(split)))
    shutil.copy(tmp_path / "train/a/1.jpg", tmp_path / "train/a/again.jpg")
    shutil.copy(tmp_path / "train/a/2.jpg", tmp_path / "train/b/2.jpg")
    _, lines = check(tmp_path, capsys)
    assert [line for line in lines if "byte for byte" in line] == [
        "with two labels, byte for byte the same: train/b/2.jpg = train/a/2.jpg",
        "2 images have a copy, byte for byte, in their own split",
    ]


def test_copies_are_grouped_as_a_search_of_all_pairs_groups_them():
    splits = {
        split: [
            Inspected(f"{split}{i}", None, i % 2, 1, 1, 1, digest.encode())
            for i, digest in enumerate(digests)
        ]
        for split, digests in {"x": "abca", "y": "bbd", "z": "dae"}.items()
    }
    found = find_copies(splits)
    everything = [(split, image) for split, images in splits.items() for image in images]
    leaks, in_own = set(), 0
    for i, (split, image) in enumerate(everything):
        same = [(s, x) for s, x in everything[:i] if x.digest == image.digest]
        if any(s == split for s, _ in same):
            in_own += 1
        elif same:
            leaks.add((same[0][1].id, image.id))
    assert {(a.id, b.id) for (_, a), (_, b) in found.leaks} == leaks
    assert len(found.leaks) == len(leaks) == 3 and found.others == in_own == 2
    assert [(a.id, b.id) for a, b in found.relabelled] == [("x0", "x3"), ("y0", "y1")]


def test_sizes_are_those_of_the_images_and_of_their_files(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    for i, size in enumerate([(30, 10), (8, 9), (50, 40), (10, 30), (7, 100)]):
        Image.new("RGB", size).save(tmp_path / "a" / f"{i}.png")
    total = sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) / 1e6
    (tmp_path / "a" / "bad.png").write_bytes(b"not an image")
    dataset = FolderDataset(tmp_path)
    images = inspect_images(dataset.source("train"), num_classes=1, progress=False)
    told = (
        f"sizes (width x height): 8 x 9 to 50 x 40, median 30 x 10 pixels; {total:.3g} MB in files"
    )
    assert describe_sizes(images) == told
    assert describe_sizes(x for x in images if x.problem) == ""
    (tmp_path / "a" / "bad.png").unlink()
    assert warnings_of_a_run(tmp_path, ("train",), caplog) == []
    assert f"{tmp_path}: {told}" in caplog.messages
