"""What other processes make of examples, beside what this one makes."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import write_jpegs

from vit_jax.config.defaults import default
from vit_jax.data import packing, pipeline, sources
from vit_jax.data.dataset import Example, ExampleError, ReadError
from vit_jax.data.inspection import inspect_images
from vit_jax.data.packed_records import PackOptions
from vit_jax.data.skipped import SkippedImages

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="they need Linux")

THREADS = 8  # of two processes
SIZE = 16  # pixels
MOST_PROCESSES = 2**22  # Linux numbers them from 1


class Reporting:
    """Examples whose labels are the numbers of the processes that read them."""

    def __init__(self, count, wrong=None, error=None):
        self.count, self.wrong, self.error = count, wrong, error

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.wrong:
            raise self.error
        return Example(np.full((SIZE, SIZE, 3), index, np.uint8), os.getpid(), f"image {index}")


@pytest.fixture
def options():
    found = default().data
    found.image_size, found.threads, found.prefetch = SIZE, THREADS, 2
    return found


def batches_of(source, options, **changes):
    """Returns the training batches of a source, four images each."""
    arguments = {"num_classes": MOST_PROCESSES, "batch_size": 4, "seed": 0, **changes}
    return pipeline.train_batches(source, options, **arguments)


def made_elsewhere(batches):
    """Returns the numbers of the processes that made the first batches that others made."""
    for _ in range(600):
        found = {*next(batches)["label"].tolist()} - {os.getpid()}
        if found:
            return found
        time.sleep(0.1)  # they start
    raise AssertionError("all batches were made in this process")


def test_other_processes_make_the_batches(options):
    batches = batches_of(Reporting(20), options)
    first = made_elsewhere(batches)
    assert all(pathlib.Path(f"/proc/{number}").exists() for number in first)
    while len(first) < 2:  # both of them
        first |= {*next(batches)["label"].tolist()} - {os.getpid()}
    assert len(first) == 2
    batches.close()


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_they_make_the_batches_that_this_process_makes(kind, options, tmp_path):
    """Every array, from a step in the middle on, and the same images are skipped."""
    folder = tmp_path / "photos"
    write_jpegs(folder, {"train/a": 7, "train/b": 6})
    if kind == "packed":
        folder = packing.pack(str(folder), tmp_path / "packed", PackOptions(side=20))
    else:
        options.on_error = "skip"
        damaged = sorted(folder.glob("*/*/*.jpg"))[::5]
        for path in damaged:
            path.write_bytes(b"no image")
    source = sources.open_dataset(str(folder)).source("train")
    made_elsewhere(batches_of(Reporting(20), options))  # they have started now
    found = {}
    for threads in (1, THREADS):
        options.threads, skipped = threads, SkippedImages()
        batches = batches_of(source, options, num_classes=2, skipped=skipped)
        pipeline.seek(batches, 3)
        evaluation = pipeline.eval_batches(
            source, options, num_classes=2, batch_size=5, skipped=skipped
        )
        found[threads] = [next(batches) for _ in range(10)] + list(evaluation)
        assert len(skipped) == (len(damaged) if kind == "folder" else 0)
        batches.close()
    assert len(found[1]) == len(found[THREADS]) > 10
    for one, other in zip(*found.values(), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


def test_images_are_packed_and_inspected_there_alike(options, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "vit_jax.data.processes")
    folder = write_jpegs(tmp_path / "photos", {"train/a": 7, "train/b": 6})
    (folder / "train" / "a" / "3.jpg").write_bytes(b"no image")
    source = sources.open_dataset(str(folder)).source("train")
    made_elsewhere(batches_of(Reporting(20), options))
    found = {}
    for threads in (1, THREADS):
        monkeypatch.setattr(packing, "available_cpus", lambda threads=threads: range(threads))
        out = tmp_path / f"packed by {threads}"
        packing.pack(str(folder), out, PackOptions(side=16, on_error="skip"))
        records = {path.name: path.read_bytes() for path in out.glob("*record*")}
        images = inspect_images(source, num_classes=2, threads=threads, progress=False)
        described = [(str(x.problem), x[2:]) for x in images]
        found[threads] = records, described
    assert found[1] == found[THREADS]
    assert len(records) == 2 and "not a readable image" in str(described)
    assert not [x for x in caplog.records if x.name == "vit_jax.data.processes"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ExampleError("image 3", "is cut off"), (ValueError, "image 3: is cut off. Remove")),
        (
            ReadError("image 3", "The disk is away.", permanent=True),
            (ReadError, "image 3 can't be read: The disk"),
        ),
        (MemoryError("too little"), (MemoryError, "too little")),
        (KeyError("a mistake in a program"), (KeyError, "a mistake in a program")),
    ],
)
def test_their_errors_are_raised_here(error, expected, options):
    made_elsewhere(batches_of(Reporting(20), options))
    kind, message = expected
    batches = batches_of(Reporting(8, 3, error), options, batch_size=8)
    with pytest.raises(kind, match=message) as caught:
        next(batches)
    assert type(caught.value) is kind
    assert getattr(caught.value, "permanent", True)
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert "__getitem__" in notes  # where it was raised, in the other process


def test_where_they_make_no_batches_this_process_does(options, caplog):
    """What batches are made from can't be sent: a lock."""
    caplog.set_level(logging.DEBUG, "vit_jax.data.processes")
    source = Reporting(20)
    source.lock = threading.Lock()
    batches = batches_of(source, options)
    assert all({*next(batches)["label"]} == {os.getpid()} for _ in range(12))
    assert "can't be pickled" in caplog.text or "cannot pickle" in caplog.text


def test_where_none_starts_this_process_makes_the_batches(options, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", "/no/python")
    options.threads = 13  # of four processes, which no other test uses
    batches = batches_of(Reporting(20), options)
    assert all({*next(batches)["label"]} == {os.getpid()} for _ in range(30))
    assert "Fewer processes than planned read images" in caplog.text
    assert "/no/python" in caplog.text


def test_a_process_that_is_killed_is_named_and_the_others_go_on(options):
    options.threads = 9  # of three processes, which no other test uses
    batches = batches_of(Reporting(20), options)
    killed = made_elsewhere(batches).pop()
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ReadError, match=r"was killed.*memory runs out.*smaller data\.threads"):
        for _ in range(1000):
            next(batches)
    for _ in range(THREADS):  # once for each of its threads, at most
        batches = batches_of(Reporting(20), options)
        try:
            found = {x for _ in range(30) for x in next(batches)["label"].tolist()}
            break
        except ReadError:
            continue
    assert killed not in found


# A script without `if __name__ == "__main__"`, which prints where its batches are made.
SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_processes as tests
options = tests.default().data
options.image_size, options.threads = tests.SIZE, tests.THREADS
batches = tests.batches_of(tests.Reporting(20), options)
print(*tests.made_elsewhere(batches), flush=True)
{then}
"""


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_they_end_when_the_process_ends(end, tmp_path):
    then = "" if end == "normal" else "time.sleep(600)"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(pathlib.Path(__file__).parent), then=then))
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    numbers = process.stdout.readline().split()
    assert numbers
    if end == "killed":
        process.kill()
    process.wait(60)
    process.stdout.close()
    for _ in range(300):
        if not any(pathlib.Path(f"/proc/{number}").exists() for number in numbers):
            return
        time.sleep(0.1)
    raise AssertionError(f"{numbers} are still there")
