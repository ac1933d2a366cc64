"""Workdirs that can't be written to."""

import contextlib
import shutil
import subprocess

import jobs
import pytest
from conftest import write_jpegs

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.train import train


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_whole(image_folder, tmp_path):
    with jobs.mounted(tmp_path / "disk", 2) as disk:
        process = jobs.start(image_folder, disk / "run", "--config.total_steps=100000")
        jobs.wait_for(process, (disk / "run" / "checkpoints" / "3").exists)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        status, out, errors = jobs.finish(process)
        assert (status, out) == (1, "")
        assert "Traceback" not in errors
        message = errors.splitlines()[-1]
        assert message.startswith("OSError: ")
        assert "can't be written" in message and "No space left on device" in message
        assert "goes on from" in message
        saved = read_checkpoint(disk / "run").step  # compares every file with its hash
        (disk / "filler").unlink()
        more = f"--config.total_steps={saved + 2}"
        status, _, errors = jobs.run(image_folder, disk / "run", more)
        assert status == 0
        assert f"continuing from {disk / 'run' / 'checkpoints' / str(saved)}" in errors
        assert not list((disk / "run" / "checkpoints").glob("*tmp*"))


def test_a_read_only_workdir_is_named(settings, tmp_path):
    with jobs.mounted(tmp_path / "disk", 2) as disk:
        (disk / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=f"{disk}/run can't be written to: Read-only file system"):
            train(settings, disk / "run")
        with pytest.raises(OSError, match=f"{disk}/new can't be made: Read-only file system"):
            train(settings, disk / "new")


def test_a_file_in_the_place_of_the_workdir_is_named(settings, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match=f"{tmp_path}/run can't be made: File exists"):
        train(settings, tmp_path / "run")


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_workdir_that_vanishes_ends_the_run(settings, tmp_path, monkeypatch, log_every):
    """It is missed by the next row or the next checkpoint, and not made again."""
    settings.data.name = str(write_jpegs(tmp_path / "data", {"a": 20, "b": 20}))
    settings.update(log_every=log_every, eval_every=0, total_steps=5)
    workdir = tmp_path / "run"
    monkeypatch.setattr(Progress, "advance", lambda *_: shutil.rmtree(workdir, ignore_errors=True))
    told = "metrics.csv .* it is gone" if log_every == 1 else "checkpoints is gone. None was saved"
    with pytest.raises(OSError, match=told):
        train(settings, workdir)
    assert not workdir.exists()
