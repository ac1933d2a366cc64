"""What a run reads, opened in one call: all of the data, once, in this process's part."""

import logging
import pathlib
import types

import jax
import numpy as np
import pytest
from conftest import write_jpegs
from jax.experimental import multihost_utils

from vit_jax.data import transforms
from vit_jax.data.checks import require_test_labels
from vit_jax.data.dataset import Example
from vit_jax.data.inputs import evaluation_batches, open_inputs
from vit_jax.data.pipeline import seek
from vit_jax.data.skipped import SkippedImages


@pytest.fixture
def processes(monkeypatch):
    """Makes this process take itself for one of several."""

    def pretend(index, count):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.tile(x, count))

    return pretend


def ids(source):
    return [source[i].id for i in range(len(source))]


def test_the_splits_hold_every_image_of_the_folder_once(settings, image_folder, caplog):
    with caplog.at_level(logging.INFO):
        inputs = open_inputs(settings)
    assert inputs.class_names == inputs.dataset.class_names == ("blue", "green", "red")
    assert (inputs.train_split, inputs.test_split) == ("train[:85%]", "train[85%:]")
    found = ids(inputs.train_source) + ids(inputs.test_source)
    assert sorted(found) == sorted(str(path) for path in image_folder.glob("*/*.jpg"))
    assert caplog.messages[-1] == (
        f"{image_folder}: 3 classes; train on train[:85%] (68 images), "
        f"test on train[85%:] (12 images)"
    )


def test_the_configuration_names_the_splits(settings):
    settings.data.update(train="train[:40]", test="train[40:50]")
    inputs = open_inputs(settings)
    assert (inputs.train_split, len(inputs.train_source)) == ("train[:40]", 40)
    assert (inputs.test_split, len(inputs.test_source)) == ("train[40:50]", 10)


def test_opening_reads_no_image(settings, monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    monkeypatch.setattr(transforms, "decode", refuse)
    open_inputs(settings)


def test_batches_are_of_the_splits(settings):
    """Labels of an epoch and of an evaluation, against those of the folder's own order."""
    settings.data.update(train="train[:48]", test="train[48:]")
    inputs = open_inputs(settings)

    def labels(source):
        return sorted(source[i].label for i in range(len(source)))

    seek(inputs.train_batches, 3)  # the second epoch
    epoch = [next(inputs.train_batches) for _ in range(3)]
    assert all(batch["image"].shape == (16, 16, 16, 3) for batch in epoch)
    assert sorted(np.concatenate([b["label"] for b in epoch])) == labels(inputs.train_source)
    for _ in range(2):  # they can be gone through again
        batches = list(inputs.test_batches)
        assert {len(batch["label"]) for batch in batches} == {settings.eval_batch_size}
        found = np.concatenate([b["label"][b["mask"]] for b in batches])
        assert sorted(found) == labels(inputs.test_source)
    other = inputs.make_eval_batches(inputs.train_source, num_classes=3)
    found = np.concatenate([b["label"][b["mask"]] for b in other])
    assert sorted(found) == labels(inputs.train_source)


def test_processes_share_the_batches(settings, processes):
    whole = open_inputs(settings)
    parts = []
    for process in range(2):
        processes(process, 2)
        parts.append(open_inputs(settings))
    for _ in range(2):
        expected, found = next(whole.train_batches), [next(part.train_batches) for part in parts]
        for process, batch in enumerate(found):
            for name in ("image", "label", "mask"):
                np.testing.assert_array_equal(batch[name], expected[name][process::2])
    for expected, *found in zip(
        whole.test_batches, *(part.test_batches for part in parts), strict=True
    ):
        for process, batch in enumerate(found):
            np.testing.assert_array_equal(batch["image"], expected["image"][process::2])


def test_bad_images_of_both_splits_are_found_or_skipped(settings, tmp_path, processes, capsys):
    folder = write_jpegs(tmp_path / "images", {"a": 40, "b": 40})
    settings.data.name = str(folder)
    inputs = open_inputs(settings)
    for source in (inputs.train_source, inputs.test_source):
        pathlib.Path(source[0].id).write_bytes(b"no image")
    for process, shown in ((0, "80/80"), (1, "")):  # a progress bar
        processes(process, 2)
        with pytest.raises(ValueError, match="2 of 80 images can't be used"):
            inputs.check_decodable(settings.data)
        err = capsys.readouterr().err
        assert shown in err if shown else err == ""
    processes(0, 1)
    settings.data.on_error = "skip"
    inputs = open_inputs(settings)
    inputs.check_decodable(settings.data)
    list(inputs.test_batches)
    assert len(inputs.skipped_images) == 1
    list(inputs.make_eval_batches(inputs.train_source, num_classes=2))
    assert len(inputs.skipped_images) == 2


def test_processes_with_other_images_are_refused(settings, processes, monkeypatch):
    processes(1, 3)
    open_inputs(settings)
    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda x: np.array([x, x + np.uint32(1), x])
    )
    with pytest.raises(ValueError, match=r"see different images: .* process 1 are not those of"):
        open_inputs(settings)


def test_evaluation_batches_take_their_options_from_elsewhere(settings, tmp_path):
    """As a checkpoint's image size."""
    options = settings.data.copy_and_resolve_references()
    options.update(image_size=24, on_error="skip")
    source = open_inputs(settings).test_source
    skipped = SkippedImages()
    batches = list(evaluation_batches(settings, options, skipped)(source, num_classes=3))
    assert {batch["image"].shape for batch in batches} == {(8, 24, 24, 3)}
    assert sum(batch["mask"].sum() for batch in batches) == len(source) and not len(skipped)


def test_what_can_not_be_trained_is_refused(settings, tmp_path):
    settings.data.train = "train[:15]"
    with pytest.raises(ValueError, match="15 images, fewer than batch_size=16"):
        open_inputs(settings)
    write_jpegs(tmp_path, {"only": 40})
    settings.data.update(name=str(tmp_path), train=None)
    with pytest.raises(ValueError, match="only one class, only"):
        open_inputs(settings)
    assert open_inputs(settings, labels=False).class_names == ("only",)


def test_a_test_split_without_labels_is_refused_at_the_start():
    """As tfds's imagenet2012 has one where the public test images were prepared."""
    splits = {"train": 3, "val": 2, "test": 1}
    dataset = types.SimpleNamespace(class_names=("a", "b"), splits=splits)
    require_test_labels(dataset, [Example(b"", 1, "0")], "test")
    with pytest.raises(ValueError, match="The test split test can't be used: 7: has the label -1,"):
        require_test_labels(dataset, [Example(b"", -1, "7")], "test")
    with pytest.raises(ValueError, match=r"such as one of train, val: --config\.data\.test=SPLIT"):
        require_test_labels(dataset, [Example(b"", -1, "7")], "test")
