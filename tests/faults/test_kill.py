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
# The main thread doesn't come back from C, as in the compilation or in a step of a large model.
BLOCKED = """
import hashlib, pathlib
from vit_jax.jobs import train as train_file
make_program, calls = train_file.make_program, []

def make(*args, **kwargs):
    program = make_program(*args, **kwargs)
    def update(state, batch):
        calls.append(None)
        if len(calls) > {steps}:
            pathlib.Path({mark!r}).touch()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        return program.update(state, batch)
    return program._replace(update=update)

train_file.make_program = make
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
    return 128 + signal.SIGTERM


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
    assert (status, out) == (128 + number, "")
    assert "Stopped; the same command goes on" in errors and "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps", [0, 2])
def test_signals_are_answered_while_the_main_thread_is_in_c(image_folder, tmp_path, number, steps):
    mark, workdir = tmp_path / "blocked", tmp_path / "run"
    before = BLOCKED.format(steps=steps, mark=str(mark))
    process = jobs.start(image_folder, workdir, "--config.total_steps=9", before=before)
    jobs.wait_for(process, mark.exists)
    time.sleep(0.2)
    process.send_signal(number)
    if steps:  # they can be saved
        said, line = time.monotonic(), ""
        while "again to stop now" not in line:
            line = process.stderr.readline()
        assert time.monotonic() - said < 1
        assert "finishing step 3, saving; " in line and process.poll() is None
        time.sleep(0.6)
        process.send_signal(number)
    assert process.wait(timeout=1) == 128 + number
    _, out, errors = jobs.finish(process)
    assert ("Stopped now;" if steps else "Stopped; the same command goes on") in errors
    assert out == "" and "Traceback" not in errors


@pytest.mark.parametrize(
    ("number", "option", "expected"),
    [
        (signal.SIGINT, "--exit_zero_on_preemption", 130),
        (signal.SIGTERM, "--noexit_zero_on_preemption", 143),
        (signal.SIGTERM, "--exit_zero_on_preemption", 0),
    ],
)
@pytest.mark.parametrize("step", [2, 4])
def test_the_status_tells_how_a_run_ended(image_folder, tmp_path, number, option, expected, step):
    """A signal in a step, and in the evaluation after the last, which completes the run."""
    before = f"""
import os, time
from vit_jax.jobs import train as train_file
from vit_jax.jobs.pending import PendingMetrics
row, steps = PendingMetrics.row, []

def signalled(self):
    steps.append(None)
    if len(steps) == {step}:
        os.kill(os.getpid(), {number:d})
        time.sleep(0.5)
    return row(self)

PendingMetrics.row = signalled
"""
    options = ("--config.total_steps=4", "--config.log_every=1", option)
    status, out, errors = jobs.run(image_folder, tmp_path, *options, before=before)
    assert status == expected
    assert "Stopped; the same command goes on" in errors and "Traceback" not in errors
    assert read_checkpoint(tmp_path).step == step
    assert bool(out) == (step == 4)
    if out:
        assert json.loads(out)["step"] == 4


def test_one_signal_sent_twice_is_one(image_folder, tmp_path):
    """`timeout` tells the process, and then its whole group."""
    process = jobs.start(image_folder, tmp_path, "--config.total_steps=100000")
    jobs.wait_for(process, lambda: (tmp_path / "checkpoints" / "3").exists())
    process.terminate()
    process.terminate()
    status, _, errors = jobs.finish(process)
    assert status == 128 + signal.SIGTERM and "goes on" in errors
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
    assert ended.returncode == 124
    assert "Stopped; the same command goes on" in ended.stderr
