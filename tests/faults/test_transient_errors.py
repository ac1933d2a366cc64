"""What can't be read at the moment is no bad image: it is tried again, and never skipped."""

import errno
import os
import pathlib

import numpy as np
import pytest
import simplejpeg
from conftest import write_jpegs
from PIL import Image

from vit_jax.config.defaults import default
from vit_jax.data import decoding, pipeline, reading, sources, transforms
from vit_jax.data.__main__ import main as data_main
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.dataset import ExampleError, ReadError
from vit_jax.data.inspection import inspect_images
from vit_jax.data.skipped import SkippedImages
from vit_jax.inference.classifier import read_image

TRANSIENT = ("ESTALE", "EIO", "ENOMEM", "EMFILE", "ENFILE", "ETIMEDOUT", "EAGAIN", "ENOTCONN")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(reading, "_WAITS", (0, 0, 0))


@pytest.fixture
def options():
    options = default().data
    options.update(image_size=16, on_error="skip")
    return options


@pytest.fixture
def folder(tmp_path):
    return write_jpegs(tmp_path / "data", {"a": 4, "b": 4})


@pytest.fixture
def fail(monkeypatch):
    """Makes the next reads of a file fail with an error."""

    def start(path, error, times=10**6):
        read, left = pathlib.Path.read_bytes, [times]

        def read_bytes(self):
            if str(self) == str(path) and left[0]:
                left[0] -= 1
                raise error
            return read(self)

        monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)

    return start


def error_of(name):
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def source_of(folder):
    return sources.open_dataset(str(folder)).source("train")


def batch_of(source, options, skipped=None):
    batches = pipeline.train_batches(
        source, options, num_classes=2, batch_size=8, seed=0, skipped=skipped
    )
    return next(batches)


@pytest.mark.parametrize("name", TRANSIENT)
def test_each_transient_error_is_tried_again(name):
    errors = [error_of(name)] * 3

    def read():
        if errors:
            raise errors.pop()
        return 5

    assert reading.retry(read, "x") == 5
    errors += [error_of(name)] * 4
    with pytest.raises(ReadError, match=r"^x can't be read: .* 4 attempts in ") as error:
        reading.retry(read, "x")
    assert not error.value.permanent


@pytest.mark.parametrize("name", ["EACCES", "ENOENT", "ELOOP"])
def test_a_permanent_error_is_not_tried_again(name):
    calls = []

    def read():
        calls.append(1)
        raise error_of(name)

    with pytest.raises(ReadError) as error:
        reading.retry(read, "x")
    assert str(error.value) == f"x can't be read: {os.strerror(getattr(errno, name))}."
    assert error.value.permanent and len(calls) == 1


@pytest.mark.parametrize("name", ["ESTALE", "EIO"])
def test_a_transient_error_changes_nothing(folder, options, fail, name):
    expected = batch_of(source_of(folder), options)
    skipped = SkippedImages()
    fail(folder / "b" / "2.jpg", error_of(name), times=3)
    found = batch_of(source_of(folder), options, skipped)
    for part in expected:
        np.testing.assert_array_equal(found[part], expected[part])
    assert not len(skipped)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("name", ["ESTALE", "EIO"])
def test_an_error_that_stays_ends_the_run_and_skips_nothing(folder, options, fail, name, on_error):
    options.on_error = on_error
    path, skipped = folder / "b" / "2.jpg", SkippedImages()
    fail(path, error_of(name))
    reason = os.strerror(getattr(errno, name))
    for use in (
        lambda: batch_of(source_of(folder), options, skipped),
        lambda: list(
            pipeline.eval_batches(source_of(folder), options, num_classes=2, batch_size=4)
        ),
        lambda: inspect_images(source_of(folder), num_classes=2, progress=False),
        lambda: ArrayDataset([path], ["a"]).source("train")[0],
        lambda: read_image(path),
    ):
        with pytest.raises(ReadError) as error:
            use()
        assert str(error.value).startswith(f"{path} can't be read: {reason}. 4 attempts in ")
    assert not len(skipped)


def test_the_waits_between_attempts_grow_to_a_few_seconds(monkeypatch, folder, fail):
    monkeypatch.undo()
    waits = []
    monkeypatch.setattr(reading.time, "sleep", waits.append)
    path = folder / "a" / "0.jpg"
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", lambda _: (_ for _ in ()).throw(error_of("EIO")))
        with pytest.raises(ReadError):
            reading.read_file(path)
    assert waits == sorted(waits) and 1 < sum(waits) < 5
    waits.clear()
    assert reading.read_file(path) == path.read_bytes() and not waits


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_too_little_memory_is_told_as_that(folder, options, monkeypatch, on_error):
    options.on_error = on_error
    path = folder / "b" / "2.jpg"
    decode, bad = decoding.decode, path.read_bytes()

    def no_memory(data, *background, **factor):
        if data == bad:
            raise MemoryError
        return decode(data, *background, **factor)

    for module in (transforms, decoding):  # of training, and of whole images
        monkeypatch.setattr(module, "decode", no_memory)
    for use in (lambda: batch_of(source_of(folder), options), lambda: read_image(path)):
        with pytest.raises(MemoryError, match=f"{path} can't be read and decoded, 4 attempts"):
            use()


def test_decoding_doesn_t_call_too_little_memory_a_bad_image(folder, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", no_memory)
    with pytest.raises(MemoryError):
        transforms.decode((folder / "a" / "0.jpg").read_bytes())


def test_a_file_that_vanishes_is_not_skipped(folder, options):
    source, skipped = source_of(folder), SkippedImages()
    (folder / "b" / "2.jpg").unlink()
    with pytest.raises(ReadError, match=r"b/2\.jpg can't be read: No such file. It was there when"):
        batch_of(source, options, skipped)
    assert not len(skipped)
    with pytest.raises(ExampleError, match="can't be read: No such file"):
        ArrayDataset([folder / "b" / "2.jpg"], ["a"]).source("train")[0]


@pytest.mark.parametrize("name", ["EACCES", "EISDIR", "ELOOP"])
def test_what_is_wrong_with_the_file_itself_is_skipped(folder, options, fail, name):
    """It is the same for every run."""
    path, skipped = folder / "b" / "2.jpg", SkippedImages()
    fail(path, error_of(name))
    assert batch_of(source_of(folder), options, skipped)["mask"].all()
    assert len(skipped) == 1 and str(path) in skipped
    options.on_error = "stop"
    with pytest.raises(ValueError, match=f"{path}: can't be read: .*on_error=skip"):
        batch_of(source_of(folder), options)


def test_ids_of_a_batch_are_told_though_a_file_can_t_be_read(folder, options, fail):
    source = source_of(folder)
    expected = pipeline.batch_ids(source, options, 1, batch_size=8, seed=0)
    fail(folder / "b" / "2.jpg", error_of("ESTALE"))
    assert pipeline.batch_ids(source, options, 1, batch_size=8, seed=0) == expected


@pytest.fixture
def fail_to_list(monkeypatch):
    """Makes the next listings of a folder fail with an error."""

    def start(folder, error, times=10**6):
        scandir, left = os.scandir, [times]

        def failing(path):
            if str(path) == str(folder) and left[0]:
                left[0] -= 1
                raise error
            return scandir(path)

        monkeypatch.setattr(os, "scandir", failing)

    return start


@pytest.mark.parametrize("name", [".", "b"])
def test_a_folder_that_can_t_be_listed_for_a_moment_loses_no_image(folder, fail_to_list, name):
    fail_to_list(folder / name, error_of("ESTALE"), times=3)
    assert len(source_of(folder)) == 8
    fail_to_list(folder / name, error_of("ESTALE"))
    with pytest.raises(ReadError, match=f"{folder / name} can't be read: Stale file handle. 4 at"):
        source_of(folder)


def test_a_folder_that_may_not_be_listed_is_warned_of(folder, fail_to_list, caplog):
    fail_to_list(folder / "b", error_of("EACCES"))
    assert len(source_of(folder)) == 4
    assert [x.getMessage() for x in caplog.records if x.levelname == "WARNING"] == [
        f"1 folders can't be read, so no image in them is used: {folder / 'b'} can't be read: "
        f"Permission denied."
    ]


def test_a_file_too_large_for_an_image_is_not_read(folder, options):
    path, skipped = folder / "b" / "2.jpg", SkippedImages()
    with open(path, "wb") as file:
        file.truncate(30 * 2**30)  # a sparse file
    with pytest.raises(ExampleError, match=r"it has 30\.0 GiB, and no image has above 1"):
        reading.read_file(path)
    assert batch_of(source_of(folder), options, skipped)["mask"].all() and len(skipped) == 1


def test_a_pipe_or_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", pathlib.Path("/dev/zero")):
        with pytest.raises(ExampleError, match=f"{path}: can't be read: it is a pipe, a socket"):
            reading.read_file(path)


def test_the_check_of_a_folder_ends_with_one_message(folder, fail, capsys):
    path = folder / "b" / "2.jpg"
    fail(path, error_of("EIO"))
    with pytest.raises(SystemExit) as exit:
        data_main(["check", str(folder)])
    assert f"ReadError: {path} can't be read: Input/output error." in str(exit.value)
    assert "\n" not in str(exit.value)
