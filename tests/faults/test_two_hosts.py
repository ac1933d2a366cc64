"""One of two processes of a run is lost: the other says so and ends, and both go on together."""

import io
import json
import os
import signal
import socket
import subprocess
import sys

import jobs
import pytest

from benchmarks import soak
from vit_jax.cli import lost_process

STEPS = 6
# The first process stays in the save of step 3: its arrays are written, its manifest is not.
STAYS_IN_SAVE = """
import pathlib, time
from vit_jax.checkpoints import manager
manager.write_manifest = lambda folder: (pathlib.Path({mark!r}).touch(), time.sleep(600))
"""
# One process doesn't begin with step 5, while the other waits for it.
STAYS_IN_STEP = """
import pathlib, time
from vit_jax.jobs import train as train_file
make_program = train_file.make_program

def make(*args, **kwargs):
    program = make_program(*args, **kwargs)
    def update(state, batch):
        if int(state.step) == 4:
            pathlib.Path({mark!r}).touch()
            time.sleep(600)
        return program.update(state, batch)
    return program._replace(update=update)

train_file.make_program = make
"""


def start_two(folder, workdir, *options, before=("", "")):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        jobs.start(
            folder,
            workdir,
            f"--config.total_steps={STEPS}",
            "--config.log_every=2",
            "--config.optim.polyak=0.9",
            "--config.model.dropout=0.1",
            f"--coordinator_address={address}",
            "--num_processes=2",
            f"--process_id={i}",
            "--lost_after=5",
            *options,
            before=before[i],
        )
        for i in range(2)
    ]


def run_two(folder, workdir):
    """Runs both to their end; returns what the first one says on stderr."""
    processes = start_two(folder, workdir)
    (status, out, said), (other, _, errors) = map(jobs.finish, processes)
    assert (status, other) == (0, 0), said + errors
    assert json.loads(out.splitlines()[-1])["step"] == STEPS
    assert "coordination_service" not in said + errors
    return said


def kill_one(processes, number, *marks):
    """Kills a process as soon as all marks are there; returns what the other one says."""
    jobs.wait_for(processes[0], lambda: all(mark.exists() for mark in marks))
    processes[number].kill()
    status, _, said = jobs.finish(processes[1 - number])
    jobs.finish(processes[number])
    assert status == -signal.SIGABRT
    assert f"Process {number} was lost: " in said.splitlines()[-1]
    assert said.endswith("the run resumes from its newest checkpoint.\n")
    for words in ("Traceback", "stack trace", "Fatal Python error", "coordination_service.cc"):
        assert words not in said
    return said


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit_after_either_was_killed(image_folder, tmp_path):
    """Process 1 is killed in the first save; then process 0 in a step."""
    run_two(image_folder, tmp_path / "undisturbed")

    workdir, mark = tmp_path / "run", tmp_path / "in_save"
    before = (STAYS_IN_SAVE.format(mark=str(mark)), "")
    said = kill_one(start_two(image_folder, workdir, before=before), 1, mark)
    assert "Process 1 was lost: no heartbeat for 5 s." in said
    (left,) = (workdir / "checkpoints").iterdir()
    assert ".orbax-checkpoint-tmp" in left.name

    mark = tmp_path / "in_step"
    before = (STAYS_IN_STEP.format(mark=str(mark)), "")
    saved = workdir / "checkpoints" / "3"
    said = kill_one(start_two(image_folder, workdir, before=before), 0, mark, saved)
    assert "Process 0 was lost: it can't be reached any more." in said
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["3"]

    said = run_two(image_folder, workdir)
    assert f"continuing from {saved}" in said
    assert list(soak.differences(tmp_path / "undisturbed", workdir)) == []


# --------------------------------------------------------------------------------- what is said

SILENT = """UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
3
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug.

RPC: /xla.coordination.CoordinationService/PollForError
*** Check failure stack trace: ***
    @     0x7fad97a40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
Fatal Python error: Aborted
"""
LEFT_EARLY = """INTERNAL: Shutdown barrier has failed.
Barrier result: 'DEADLINE_EXCEEDED: Barrier timed out. Id: Shutdown::449::0. This usually happens.
# of tasks that reached the barrier: 1/2.
The first task at the barrier: 1. Some timed out task names:
0
"""
IN_SHUTDOWN = """INTERNAL: Shutdown barrier has failed.
Barrier result: 'INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 \
heartbeat timeout. This indicates that the remote task has failed, got preempted.
"""
NO_LEADER = """UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was \
preempted/died/restarted unexpectedly or this task is experiencing network issues.
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
"""
TOO_EARLY = (
    "ABORTED: 1 unexpectedly tried to connect with a different incarnation. It has restarted."
)
NOT_THERE = """DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
"""


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (SILENT, "Processes 1, 3 were lost: no heartbeat for 100 s."),
        (IN_SHUTDOWN, "Process 1 was lost: no heartbeat for 100 s."),
        (LEFT_EARLY, "Process 1 was lost: it ended, and the others did not within 100 s."),
        (NO_LEADER, "Process 0 was lost: it can't be reached any more."),
        (TOO_EARLY, "Process 1 was lost: it was started again before the others had ended."),
        (NOT_THERE, "The processes can't be connected: not all of them had connected within 5"),
        ("INTERNAL: new kind\nmore", "JAX has ended this process, as another one has failed: INT"),
    ],
)
def test_the_reason_is_one_paragraph_in_place_of_a_stack_dump(reason, message):
    second = reason.partition("\n*** ")[0].splitlines()[-1]
    lines = (
        "I1126 20:11:49.961851   11501 other.cc:12] kept\n"
        "E1126 20:11:49.961851   11501 coordination_service.cc:1549] [919] left out:\n"
        f"{second}\n"
        "of a library in C\n"
        "W1126 20:11:49.961851   11501 other.cc:13] kept, too\n"
        "F1126 20:11:49.963844   11512 client.h:80] Terminating process because the JAX "
        "distributed service detected fatal errors. absl::Status: " + reason
    )
    said = []
    lost_process.pass_on(io.StringIO(lines), said.append, 100)
    *kept, paragraph = said
    kept = [line.rpartition("] ")[2] for line in kept]
    assert sorted(kept) == ["kept\n", "kept, too\n", "of a library in C\n"]
    assert paragraph.startswith(f"\n{message}") and paragraph.count("\n") == 2


@pytest.mark.parametrize("dump", ["*** Check failure", "Fatal Python error: Aborted"])
def test_the_paragraph_comes_before_the_stack_dump_ends(dump):
    """In a container, the kernel ends the program that writes it along with the process."""
    said = []

    def lines():
        yield f"F1126 client.h:80] {lost_process._ABORT}: absl::Status: {IN_SHUTDOWN}"
        yield "and more\n"
        yield f"{dump}\n"
        assert len(said) == 1, "it waits for the rest"
        yield "    @     0x7fad97a40634\n"

    lost_process.pass_on(lines(), said.append, 100)
    assert len(said) == 1 and said[0].startswith("\nProcess 1 was lost: no heartbeat")


def test_what_the_service_says_is_kept_if_the_process_ends_in_another_way():
    lines = [
        "E1126 20:11:49.961851   11501 coordination_service.cc:1549] of the service\n",
        "F1126 20:11:49.961851   11501 other.cc:12] of another crash\n",
        "Fatal Python error: Aborted\n",
    ]
    said = []
    lost_process.pass_on(iter(lines), said.append, 100)
    assert sorted(said) == sorted(lines)


def test_an_error_of_communication_is_told_apart_from_others():
    def error(message, cause=None):
        found = OSError(message)
        found.__cause__ = cause
        return found

    of_gloo = ValueError("UNKNOWN: Gloo AllReduce failed: Connection reset by peer\nmore")
    wrapped = error("A checkpoint can't be written: UNKNOWN: Gloo AllReduce failed.", of_gloo)
    assert lost_process.describe_lost_connection(wrapped, 100) == (
        "Another process doesn't answer: UNKNOWN: Gloo AllReduce failed: Connection reset by peer. "
        "In 100 s at most, this process ends and says which one was lost."
    )
    full = error("A checkpoint can't be written: no space left", ValueError("No space left"))
    assert lost_process.describe_lost_connection(full, 100) is None


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("There is no folder /data/barrier_reef to read images from.", False),
        ("/data/NCCL/Gloo has no images.", False),
        ("UNKNOWN: Gloo all-reduce failed: Connection reset by peer", True),
        ("UNKNOWN: Gloo context initialization failed: connectFullMesh timeout", True),
        ("INTERNAL: NCCL operation ncclAllReduce(...) failed: remote process exited", True),
        (LEFT_EARLY, True),
        (IN_SHUTDOWN, True),
        (NO_LEADER, True),
        ("DEADLINE_EXCEEDED: Barrier timed out. Id: save::1.", True),
    ],
)
def test_names_are_not_taken_for_errors_of_communication(message, is_lost):
    found = lost_process.describe_lost_connection(ValueError(message), 100)
    assert (found is not None) == is_lost


def test_one_process_alone_loses_no_other(tmp_path):
    """Whatever an error says; the folder is called like one."""
    name = tmp_path / "barrier timed out"
    process = jobs.start(name, tmp_path / "run")
    status, _, said = jobs.finish(process)
    assert status == 1 and "Another process" not in said and "There is no folder" in said


@pytest.mark.parametrize("stderr", ["closed", "pipe"])
def test_python_and_c_write_to_stderr_as_before(stderr):
    """What C writes goes through the pipe; without a stderr, there is none to go to."""
    program = """
import os, sys
from vit_jax.cli.lost_process import filter_stderr
filter_stderr(100)
print("of Python", file=sys.stderr) if sys.stderr else None
os.write(2, "of C, \\N{SNOWMAN}\\n".encode()) if sys.stderr else None
print("done")
"""
    command = [sys.executable, "-c", program]
    if stderr == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    done = subprocess.run(
        command, cwd=jobs.REPOSITORY, env=dict(os.environ), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, b"done\n")
    lines = sorted(done.stderr.decode().splitlines())
    assert lines == ([] if stderr == "closed" else ["of C, \N{SNOWMAN}", "of Python"])
