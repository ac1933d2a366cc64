"""Processes that are killed or told to stop, at the worst moments."""

import json
import signal
import subprocess
import time

import jobs
import pytest

from vit_jax.checkpoints.checkpoint import read_checkpoint

# Checkpoints after the third step are not finished within any patience.
SLOW_TO_SAVE = """
import time
from vit_jax.checkpoints import manager
write = manager.write_manifest
manager.write_manifest = lambda folder: (
    write(folder) if folder.name.startswith("3.") else time.sleep(600)
)
"""
SLOW_TO_READ = """
import pathlib, time
from vit_jax.data import inputs
inputs.open_dataset = lambda *args: (pathlib.Path({mark!r}).touch(), time.sleep(600))
"""


def partial(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def end_by_kill(process, workdir):
    process.kill()
    return -signal.SIGKILL


def end_by_signals(process, workdir):
    """The first asks to save and stop, which takes too long for whoever sends the second."""
    process.terminate()
    time.sleep(1)
    process.terminate()
    return -signal.SIGTERM


@pytest.mark.parametrize("end", [end_by_kill, end_by_signals])
def test_a_process_ended_while_it_saves_goes_on_from_what_is_whole(image_folder, tmp_path, end):
    process = jobs.start(image_folder, tmp_path, "--config.total_steps=100000", before=SLOW_TO_SAVE)
    jobs.wait_for(process, lambda: partial(tmp_path))
    jobs.wait_for(process, lambda: (tmp_path / "checkpoints" / "3").exists())
    jobs.wait_for(process, lambda: partial(tmp_path))
    expected = end(process, tmp_path)
    assert process.wait(timeout=10) == expected
    (left,) = partial(tmp_path)

    status, out, errors = jobs.run(
        image_folder,
        tmp_path,
        "--config.total_steps=100000",
        "--config.total_steps=5",
        "--config.checkpoint.every=0",
    )
    assert status == 0
    assert f"{left} was not finished, and is removed" in errors
    assert f"continuing from {tmp_path / 'checkpoints' / '3'}" in errors
    assert json.loads(out)["step"] == 5
    assert not partial(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_in_peace(image_folder, tmp_path, number):
    mark = tmp_path / "reading"
    process = jobs.start(
        image_folder,
        tmp_path,
        "--config.total_steps=5",
        before=SLOW_TO_READ.format(mark=str(mark)),
    )
    jobs.wait_for(process, mark.exists)
    process.send_signal(number)
    status, out, errors = jobs.finish(process)
    assert (status, out) == (0, "")
    assert "Stopped; the same command goes on" in errors and "Traceback" not in errors


def test_one_signal_sent_twice_is_one(image_folder, tmp_path):
    """`timeout` tells the process, and then its whole group."""
    process = jobs.start(image_folder, tmp_path, "--config.total_steps=100000")
    jobs.wait_for(process, lambda: (tmp_path / "checkpoints" / "3").exists())
    process.terminate()
    process.terminate()
    status, _, errors = jobs.finish(process)
    assert status == 0 and "goes on" in errors
    assert read_checkpoint(tmp_path).step > 3 and not partial(tmp_path)


def test_a_second_run_of_a_workdir_is_refused_until_the_first_has_ended(image_folder, tmp_path):
    first = jobs.start(image_folder, tmp_path, "--config.total_steps=100000")
    jobs.wait_for(first, lambda: (tmp_path / "metrics.csv").exists())
    status, _, errors = jobs.run(image_folder, tmp_path, "--config.total_steps=5")
    assert status == 1
    assert f"{tmp_path} is in use by process {first.pid} on " in errors.splitlines()[-1]
    assert "Traceback" not in errors and first.poll() is None
    first.kill()
    first.wait()
    assert jobs.run(image_folder, tmp_path, "--config.total_steps=4")[0] == 0


def test_the_command_under_timeout_saves(image_folder, tmp_path):
    """As a batch system ends a job."""
    command = jobs.start(image_folder, tmp_path, "--config.total_steps=100000")
    arguments = command.args
    command.kill()
    command.wait()
    ended = subprocess.run(
        ["timeout", "15", *arguments],
        cwd=jobs.REPOSITORY,
        env=jobs.environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode in (0, 124)
    assert "Stopped; the same command goes on" in ended.stderr
