"""Packing that is killed, or that finds the disk full: the same command goes on."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment, write_jpegs
from jobs import limited

from vit_jax.data import packing
from vit_jax.data.packed_records import PackOptions
from vit_jax.data.sources import open_dataset

pytestmark = pytest.mark.faults
SMALL = PackOptions(side=8)


@pytest.fixture
def small_files(monkeypatch):
    """So many images that there are several files a split."""
    monkeypatch.setattr(packing, "_IMAGES_OF_FILE", 4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 30 JPEGs without a test split."""
    return write_jpegs(tmp_path_factory.mktemp("photos"), {"rose": 18, "daisy": 12})


def contents(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir()}


KILLED = """
import os, signal, sys
from vit_jax.data import packing
from vit_jax.data.packed_records import PackOptions
packing._IMAGES_OF_FILE = 4
writer = packing.ArrayRecordWriter
count = 0
class Writer:
    def __init__(self, *args):
        self._writer = writer(*args)
        self.close = self._writer.close
    def write(self, record):
        global count
        count += 1
        if count == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        self._writer.write(record)
packing.ArrayRecordWriter = Writer
packing.pack(*sys.argv[1:], PackOptions(side=8))
"""


def test_killed_the_same_command_goes_on(photos, tmp_path, small_files):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(photos), str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    left = {x.name: x.stat().st_mtime_ns for x in out.iterdir()}
    finished = [name for name in left if name.startswith("packed-")]
    assert len(finished) == 2
    assert any(name.startswith(".partial-") for name in left)
    packing.pack(str(photos), out, SMALL)
    assert all((out / name).stat().st_mtime_ns == left[name] for name in finished)
    assert contents(out) == contents(packing.pack(str(photos), tmp_path / "whole", SMALL))


def test_full_disk(photos, tmp_path, small_files):
    out = tmp_path / "packed"
    with limited(50_000), pytest.raises(OSError, match=r"packed can't be written: .*go|start"):
        packing.pack(str(photos), out, PackOptions(side=20, quality=100))
    assert not [*out.glob("packed-*")]
    packing.pack(str(photos), out, PackOptions(side=20, quality=100))
    assert sum(open_dataset(str(out)).splits.values()) == 30
