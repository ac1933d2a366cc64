"""Folders of images as people and other systems leave them: which images and classes are found."""

import logging
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import IMAGE, TINY, random_checkpoint
from PIL import Image

from vit_jax.cli.arguments import find_images
from vit_jax.config.defaults import default
from vit_jax.data import splits
from vit_jax.data.__main__ import main
from vit_jax.data.folders import FolderDataset
from vit_jax.data.image_files import IMAGE_SUFFIXES, list_images
from vit_jax.data.inputs import open_inputs
from vit_jax.data.inspection import inspect_images, problems_of
from vit_jax.data.sources import open_dataset
from vit_jax.jobs.evaluate import evaluate
from vit_jax.weights.api import save


def draw(folder, count, suffix=".png", start=0):
    """Writes `count` images of noise, each another one; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = zlib.crc32("/".join(folder.parts[-2:]).encode())
    for i in range(start, start + count):
        pixels = np.random.default_rng([name, i]).integers(0, 256, (IMAGE, IMAGE, 3), np.uint8)
        Image.fromarray(pixels).save(
            folder / f"{i}{suffix}", format="JPEG" if suffix.lower() == ".jfif" else None
        )
    return folder


def files(dataset, split="train"):
    """{path in the folder: class} of a split."""
    return {
        path.relative_to(dataset.folder).as_posix(): dataset.class_names[label]
        for path, label in dataset.source(split).files
    }


def check(folder, capsys):
    """The status and the lines of `data check`."""
    with pytest.raises(SystemExit) as exit:
        main(["check", str(folder)])
    return exit.value.code, capsys.readouterr().out.splitlines()


# -------------------------------------------------------------------------------- which files


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_images_of_every_suffix_are_used_and_can_be_decoded(tmp_path, suffix):
    draw(tmp_path / "a", 1, suffix)
    draw(tmp_path / "a", 1, suffix.upper(), start=1)
    source = FolderDataset(tmp_path).source("train")
    assert len(source) == 2
    assert problems_of(inspect_images(source, num_classes=1, progress=False)) == []


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path):
    draw(tmp_path / "a", 2)
    draw(tmp_path / "a" / "more" / "deep", 1)
    draw(tmp_path / "b", 1)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert files(dataset) == {
        "a/0.png": "a",
        "a/1.png": "a",
        "a/more/deep/0.png": "a",
        "b/0.png": "b",
    }


def test_no_image_is_left_out_without_a_word(tmp_path, capsys):
    for name in "ab":
        draw(tmp_path / "valid" / "train" / name, 4)
        draw(tmp_path / "valid" / "valid" / name, 4)
        draw(tmp_path / "below" / name, 4)
        draw(tmp_path / "below" / name / "more", 4)
        for i, suffix in enumerate((".bmp", ".tif", ".gif", ".jfif")):
            draw(tmp_path / "suffixes" / name, 1, suffix, start=i)
            draw(tmp_path / "suffixes" / name, 1, start=10 + i)
    for folder in ("valid", "below", "suffixes"):
        status, lines = check(tmp_path / folder, capsys)
        assert status == 0
        assert " 16 images in 2 classes; 0 images can't be used" in lines[-1]


def test_a_wrapping_folder_is_told(tmp_path, capsys):
    for name in "ab":
        draw(tmp_path / "download" / "train" / name, 10)
    config = default()
    config.data.name, config.batch_size = str(tmp_path), 2
    with pytest.raises(ValueError, match=r"one class, download, .* one folder deeper"):
        open_inputs(config)
    assert any("only one class. If the classes" in line for line in check(tmp_path, capsys)[1])
    assert not any("only one" in line for line in check(tmp_path / "download", capsys)[1])


def leave_companions(folder):
    """Leaves what macOS, Windows and Synology do in a folder and beside its images."""
    for path in [x for x in folder.rglob("*.png")]:
        header = struct.pack(">II16xH", 0x51607, 0x20000, 0)  # AppleDouble, and nothing else
        path.with_name(f"._{path.name}").write_bytes(header)
    draw(folder / "__MACOSX" / "a", 1)
    draw(folder / "a" / "@eaDir", 1)
    draw(folder / ".thumbnails", 1)
    for name in (".DS_Store", "a/Thumbs.db", "b/DESKTOP.INI"):
        (folder / name).write_bytes(b"x")


def test_what_other_systems_leave_is_passed_over_and_counted(tmp_path, capsys):
    for name in "ab":
        draw(tmp_path / name, 4)
    leave_companions(tmp_path)
    (tmp_path / "a" / "album.jpg").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "b" / "phone.HEIC").write_bytes(b"x")
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.splits == {"train": 8}
    assert problems_of(inspect_images(dataset.source("train"), num_classes=2)) == []
    assert len(find_images([str(tmp_path)])) == 8
    # 8 of ._*, two folders and .DS_Store here, @eaDir and two files in classes.
    assert "14 files that other systems leave" in dataset.other_files
    status, lines = check(tmp_path, capsys)
    assert status == 0
    assert lines[:2] == ["class a: 4 in train", "class b: 4 in train"]
    assert "1 .txt files" in lines[2] and "1 .heic files" in lines[2]


def test_predict_training_and_check_find_the_same_files(tmp_path, capsys):
    draw(tmp_path / "a", 2, ".TIF")
    draw(tmp_path / "b" / "sub", 2, ".gif")
    leave_companions(tmp_path)
    (tmp_path / "b" / "more.jpg").mkdir()
    found = find_images([str(tmp_path)])
    assert found == sorted(str(tmp_path / name) for name in files(FolderDataset(tmp_path)))
    assert len(found) == 4
    assert check(tmp_path, capsys)[1][-1].startswith(f"{tmp_path}: 4 images in 2 classes; 0 images")


def test_a_glob_leaves_out_folders_and_companions(tmp_path):
    draw(tmp_path, 2)
    (tmp_path / "album.png").mkdir()
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert find_images([f"{tmp_path}/*"]) == [f"{tmp_path}/0.png", f"{tmp_path}/1.png"]


def test_links_are_followed_and_each_folder_is_read_once(tmp_path):
    draw(tmp_path / "elsewhere", 2)
    draw(tmp_path / "outside", 1)
    folder = tmp_path / "data"
    draw(folder / "a", 1)
    draw(folder / "c", 1)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "far_up").symlink_to(tmp_path)  # its other folders are none of the class's
    (folder / "a" / "of_c").symlink_to(folder / "c")  # c is read as itself
    (folder / "a" / "self.png").symlink_to("self.png")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "b2").symlink_to(folder / "b")
    (folder / "c" / "one.png").symlink_to(tmp_path / "outside" / "0.png")
    dataset = FolderDataset(folder)
    assert files(dataset) == {
        "a/0.png": "a",
        "a/self.png": "a",  # is reported when it is read
        "b/0.png": "b",
        "b/1.png": "b",
        "c/0.png": "c",
        "c/one.png": "c",
    }
    assert "4 links to a folder that is read already" in dataset.other_files
    assert find_images([str(folder)]) == sorted(f"{folder}/{name}" for name in files(dataset))


def test_a_split_that_is_a_link_to_another_is_no_second_split(tmp_path):
    for name in "ab":
        draw(tmp_path / "train" / name, 2)
    (tmp_path / "val").symlink_to("train")
    dataset = FolderDataset(tmp_path)
    assert dataset.splits == {"train": 4}
    assert dataset.describe()[-1] == "no images: 1 links to a folder that is read already"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_no_image(tmp_path):
    draw(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    found = list_images(tmp_path)
    assert [path.name for path in found.images] == ["0.png"]
    assert found.unused == {"pipes, sockets and devices": 2}


def test_a_folder_that_can_t_be_one_of_this_machine_is_explained(monkeypatch):
    with pytest.raises(ValueError, match=r"s3://bucket/x can't be used: only paths of this mach"):
        FolderDataset("s3://bucket/x")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user without a home
    with pytest.raises(FileNotFoundError, match=r"this user has no home folder: set HOME"):
        FolderDataset("~/photos")


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.heic").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no images in .*It holds 1 \.heic files\."):
        FolderDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no images in .*It holds 1 \.heic files\."):
        find_images([str(tmp_path)])


# ------------------------------------------------------------------------- splits and classes


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train", "valid"), ("train", "valid")),
        (("Train", "Val"), ("train", "val")),
        (("TRAIN", "TEST"), ("train", "test")),
        (("train", "Validation"), ("train", "validation")),
        (("Training", "Testing"), ("train", "test")),
    ],
)
def test_folders_of_splits_in_any_case(tmp_path, names, found):
    for name in names:
        draw(tmp_path / name / "a", 2)
        draw(tmp_path / name / "b", 1)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.splits == dict.fromkeys(found, 3)
    assert splits.default_splits(dataset.splits) == found


def test_the_test_split_comes_before_the_validation_split(tmp_path):
    for name in ("train", "valid", "test"):
        draw(tmp_path / name / "a", 1)
    assert splits.default_splits(FolderDataset(tmp_path).splits) == ("train", "test")


@pytest.mark.parametrize("names", [("val", "valid"), ("train", "Training"), ("Test", "TEST")])
def test_two_folders_of_one_split_are_refused(tmp_path, names):
    for name in names:
        draw(tmp_path / name / "a", 1)
    if len({os.stat(tmp_path / name).st_ino for name in names}) < 2:
        pytest.skip("the file system takes both names for one")
    with pytest.raises(ValueError, match="are the same split") as error:
        FolderDataset(tmp_path)
    assert all(f"{name}/" in str(error.value) for name in names)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus", "car"):
        draw(tmp_path / name, 2)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("bus", "car", "train")
    assert dataset.splits == {"train": 6}


def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path):
    draw(tmp_path / "train", 1)
    draw(tmp_path / "train" / "steam", 1)
    draw(tmp_path / "bus", 1)
    with pytest.raises(ValueError, match=r"train may be a split or a class: .*beside bus/"):
        FolderDataset(tmp_path)


def test_images_that_are_not_used_are_named_before_a_run_and_by_check(tmp_path, capsys, caplog):
    for split in ("train", "test"):
        for name in "ab":
            draw(tmp_path / split / name, 2)
    draw(tmp_path / "extra", 3)
    draw(tmp_path / "val", 4)  # without labels
    draw(tmp_path, 5)
    caplog.set_level(logging.INFO, "vit_jax")
    dataset = open_dataset(str(tmp_path))
    assert dataset.splits == {"train": 4, "test": 4}
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{tmp_path}: train: 4 images (a 2, b 2)",
        f"{tmp_path}: test: 4 images (a 2, b 2)",
        f"{tmp_path}: not used: 5 images that lie in no folder of a class",
        f"{tmp_path}: not used: 4 images in val/, a split without labels: they lie in no folder of "
        f"a class",
        f"{tmp_path}: not used: 3 images in extra/, which is no split, but lies beside test/, "
        f"train/, val/",
    ]
    status, printed = check(tmp_path, capsys)
    assert status == 0
    assert printed[:2] == ["class a: 2 in train, 2 in test", "class b: 2 in train, 2 in test"]
    assert [f"{tmp_path}: {line}" for line in printed[2:5]] == lines[2:]


def test_a_split_without_labels_is_told_and_is_no_class(tmp_path):
    flat, beside = tmp_path / "flat", tmp_path / "beside"
    for name in ("cats", "dogs"):
        draw(flat / name, 2)
        for split in ("Train", "valid"):
            draw(beside / split / name, 2)
    for folder in (flat / "test", beside / "Test" / "unknown"):
        draw(folder, 3)
    (flat / "val").mkdir()
    dataset = FolderDataset(flat)
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.splits == {"train": 4}
    assert dataset.describe_unused() == [
        "not used: 3 images in test/, a split without labels: they lie in no folder of a class"
    ]
    dataset = FolderDataset(beside)
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.splits == {"train": 4, "valid": 4}
    assert dataset.describe_unused() == [
        "not used: 3 images in Test/, a split without labels: the only folder in it is no class of "
        "the training split"
    ]


def test_a_test_split_of_one_class_has_labels(tmp_path):
    for name in ("cats", "dogs"):
        draw(tmp_path / "train" / name, 2)
    draw(tmp_path / "test" / "cats", 1)
    assert FolderDataset(tmp_path).splits == {"train": 4, "test": 1}
    draw(tmp_path / "test" / "birds", 1)  # two folders, and one is a class: that is no accident
    assert FolderDataset(tmp_path).class_names == ("birds", "cats", "dogs")


@pytest.mark.parametrize("name", ["train", "Test"])
def test_a_split_without_folders_of_classes_is_refused(tmp_path, name):
    draw(tmp_path / name, 2)
    with pytest.raises(FileNotFoundError, match=rf"{name} holds images itself \(2\)"):
        FolderDataset(tmp_path)


# ------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(i) for i in range(12)], [str(i) for i in range(12)]),
        (["10", "9", "007", "1"], ["1", "007", "9", "10"]),
        (["1", "01"], ["01", "1"]),
        (["10", "9", "n02"], ["10", "9", "n02"]),  # not all are numbers
        (["-1", "2", "10"], ["-1", "10", "2"]),
    ],
)
def test_folders_that_are_all_numbers_are_in_their_order(tmp_path, names, order):
    for name in names:
        draw(tmp_path / name, 1)
    assert FolderDataset(tmp_path).class_names == tuple(order)


def test_evaluation_of_weights_without_names_says_the_order_of_classes(tmp_path, caplog):
    for i in range(12):
        draw(tmp_path / "data" / str(i), 1)
    save(random_checkpoint(num_classes=12, **TINY)._replace(class_names=()), tmp_path / "a.npz")
    config = default()
    config.update(job="evaluate", init_from=str(tmp_path / "a.npz"), eval_batch_size=8)
    config.data.name = str(tmp_path / "data")
    evaluate(config, tmp_path / "run")
    (warning,) = [x.getMessage() for x in caplog.records if "no names of classes" in x.getMessage()]
    assert "by number, in the order 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11. Nothing says" in warning
