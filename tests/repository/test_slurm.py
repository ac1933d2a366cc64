"""scripts/slurm.sh with programs in the place of Slurm's, which start two processes here."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ONE_DEVICE, REPOSITORY, TINY

SCRIPT = REPOSITORY / "scripts" / "slurm.sh"
# Starts the processes as Slurm does, writes their numbers, and ends with the highest status.
SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count = int(os.environ["SLURM_NTASKS"])
running = []
for number in map(str, range(count)):
    who = dict(SLURM_PROCID=number, SLURM_LOCALID=number, SLURM_STEP_NODELIST="localhost")
    running.append(subprocess.Popen(words, env=os.environ | who))
with open({folder!r} + "/pids", "w") as file:
    print(*(process.pid for process in running), file=file, flush=True)
sys.exit(max(process.wait() for process in running))
"""
LOGGING = """#!{python}
import json, sys
with open({folder!r} + "/log", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
print({answer!r})
"""


def job_id():
    """A job whose port, which JAX computes from its number, is free."""
    for number in range(1, 4096):
        with socket.socket() as candidate:
            if candidate.connect_ex(("localhost", 65535 - 4095 + number)):
                return str(number)
    raise AssertionError("no port is free")


@pytest.fixture
def cluster(tmp_path):
    """Returns a function that starts the script as sbatch does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {"srun": None, "squeue": "RUNNING", "scontrol": ""}
    for name, answer in answers.items():
        text = SRUN if answer is None else LOGGING
        text = text.format(python=sys.executable, folder=str(tmp_path), answer=answer)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def start(*arguments, **settings):
        env = {**os.environ, "XLA_FLAGS": ONE_DEVICE, "PATH": f"{folder}:{os.environ['PATH']}"}
        env |= dict(PYTHON=sys.executable, SLURM_JOB_ID=job_id(), SLURM_NTASKS="2")
        env |= dict(SLURM_NTASKS_PER_NODE="2", SLURM_CPUS_PER_TASK="1") | settings
        env = {name: value for name, value in env.items() if value is not None}
        pipe = subprocess.PIPE
        command = ["bash", SCRIPT, *arguments]
        return subprocess.Popen(
            command, env=env, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True
        )

    return start


def calls(tmp_path):
    path = tmp_path / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[os.path.basename(first), *rest] for first, *rest in map(json.loads, lines)]


@pytest.mark.slow
def test_a_job_stops_at_its_time_is_queued_again_and_goes_on(cluster, image_folder, tmp_path):
    """Slurm's `--signal` sends SIGTERM to the processes, and not to the script."""
    workdir = tmp_path / "run"
    sizes = [f"--config.model.{key}={value}" for key, value in TINY.items()]
    arguments = [
        "--config=quickstart",
        f"--workdir={workdir}",
        f"--config.data.name={image_folder}",
        "--config.data.image_size=16",
        "--config.batch_size=4",
        "--config.log_every=1",
        "--config.eval_every=1000000",
        *sizes,
    ]
    job = cluster(*arguments, "--config.total_steps=1000000")
    table = workdir / "metrics.csv"
    deadline = time.monotonic() + 100
    while not table.exists() or table.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()
        time.sleep(0.1)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    for pid in pids:
        os.kill(int(pid), signal.SIGTERM)
    _, errors = job.communicate(timeout=100)
    assert job.returncode == 143 and "The job is queued again" in errors, errors
    ((_, *asked), queued) = calls(tmp_path)
    assert queued[:2] == ["scontrol", "requeue"] and f"--jobs={queued[2]}" in asked

    with open(table, newline="") as file:
        saved = int(list(csv.DictReader(file))[-1]["step"])
    job = cluster(*arguments, f"--config.total_steps={saved + 2}")
    summary, errors = job.communicate(timeout=100)
    assert job.returncode == 0, errors
    (line,) = [x for x in summary.splitlines() if x.startswith("{")]  # one process prints it
    assert json.loads(line)["step"] == saved + 2
    assert f"steps {saved + 1} to {saved + 2}" in errors and "on 2 x cpu" in errors
    assert len(calls(tmp_path)) == 2  # a job that is done is not queued again


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, r"sbatch \[OPTION …\] scripts/slurm.sh"),
        (["--config=quickstart"], {"SLURM_JOB_ID": None}, r"sbatch \[OPTION …\]"),
        (["--config=quickstart"], {"PYTHON": "none/python"}, "There is no none/python in "),
        (["--config=quickstart"], {"SLURM_GPUS_ON_NODE": "4"}, "4 GPUs and 2 processes"),
    ],
)
def test_what_a_job_lacks_is_said(cluster, tmp_path, arguments, settings, message):
    job = cluster(*arguments, **settings)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 2 and re.search(message, errors) and errors.count("\n") == 1
    assert not (tmp_path / "pids").exists()


@pytest.mark.parametrize(("state", "status"), [("COMPLETING", "143"), ("RUNNING", "1")])
def test_a_job_that_was_cancelled_or_failed_is_not_queued_again(cluster, tmp_path, state, status):
    for name, line in (("srun", f"exit {status}"), ("squeue", f"echo {state}")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
    job = cluster("--config=quickstart", SLURM_GPUS_ON_NODE="2")
    job.communicate(timeout=20)
    assert job.returncode == int(status) and not calls(tmp_path)


def test_the_options_give_time_to_save_and_queue_again():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "TERM@120" and "requeue" in options
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert options["open-mode"] == "append"
