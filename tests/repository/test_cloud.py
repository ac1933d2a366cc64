"""scripts/tpu.sh with a program in the place of gcloud: its arguments, and what hosts would run."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "tpu.sh"
# Stands in for gcloud: logs its arguments. `ssh` runs the command as a host does, in a home
# directory of its own; `scp` copies.
GCLOUD = """#!{python}
import json, os, shutil, subprocess, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
words, home = sys.argv[1:], {home!r}
if words[3:4] == ["scp"] and words[5] == "slice:":
    shutil.copy(words[4], home)
if words[3:4] == ["ssh"]:
    command = next(w for w in words if w.startswith("--command=")).removeprefix("--command=")
    path = {commands!r} + ":" + os.environ["PATH"]
    sys.exit(subprocess.run(["bash", "-c", command], env={{"HOME": home, "PATH": path}}).returncode)
"""
# Stands in for a command of the hosts: logs its arguments.
LOGGING = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""
WHERE = ["--zone=us-central1-a"]


@pytest.fixture
def cloud(tmp_path):
    """Returns a function that runs the script; it returns the calls of gcloud and the process."""
    home, commands = tmp_path / "home", tmp_path / "commands"
    log, asked = tmp_path / "log", tmp_path / "asked"
    for folder in (home, commands, tmp_path / "bin"):
        folder.mkdir()

    def program(path, text, **values):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(python=sys.executable, **values))
        path.chmod(0o755)

    for name in ("python3", "gcsfuse", "mountpoint"):
        program(commands / name, LOGGING, name=name, log=str(log))
    for name in ("python", "pip"):
        program(home / "vit_jax/.venv/bin" / name, LOGGING, name=name, log=str(log))
    program(tmp_path / "bin/gcloud", GCLOUD, log=str(asked), home=str(home), commands=str(commands))

    def lines(path):
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(*arguments, **settings):
        asked.unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        done = subprocess.run(
            [SCRIPT, *arguments],
            env=environment | settings,
            cwd=tmp_path,
            text=True,
            capture_output=True,
        )
        return lines(asked), done

    run.home, run.log = home, lambda: lines(log)
    return run


def test_slices_come_and_go(cloud):
    queued = ["compute", "tpus", "queued-resources"]
    ((*asked,),), done = cloud("create", "slice")
    assert done.returncode == 0
    assert asked == [
        *queued,
        "create",
        "slice",
        *WHERE,
        "--node-id=slice",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
    ]
    (asked,), _ = cloud("create", "slice", TYPE="v4-32", SPOT="1", ZONE="z", PROJECT="p")
    assert asked[5:] == [
        "--zone=z",
        "--project=p",
        "--node-id=slice",
        "--accelerator-type=v4-32",
        "--runtime-version=tpu-ubuntu2204-base",
        "--spot",
    ]
    (asked,), _ = cloud("status", "slice")
    assert asked == [*queued, "describe", "slice", *WHERE, "--format=value(state.state)"]
    (asked,), _ = cloud("delete", "slice")
    assert asked == [*queued, "delete", "slice", *WHERE, "--force", "--quiet"]


def test_hosts_get_the_last_commit(cloud):
    asked, done = cloud("install", "slice", BUCKET="it's")
    assert done.returncode == 0, done.stderr
    assert [words[3] for words in asked] == ["scp", "ssh", "ssh"]
    assert all(words[-1] == "--worker=all" or words[-2] == "--worker=all" for words in asked)
    committed = subprocess.run(
        ["git", "show", "HEAD:setup.py"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    assert (cloud.home / "vit_jax/setup.py").read_bytes() == committed
    assert ["pip", "install", "-q", "-e", ".[tpu,gcs]"] in cloud.log()
    assert (cloud.home / "bucket").is_dir()
    assert cloud.log()[-1] == ["mountpoint", "-q", str(cloud.home / "bucket")]
    assert "bucket=it\\'s\n" in asked[-1][-1]


def test_flags_arrive_as_they_were_given(cloud):
    flags = [
        "--config=configs/pretrain.py:B/16,imagenet2012",
        "--workdir=gs://bucket/a run",
        '--config.data.name=it\'s "$HOME" * `no` \\ ; & é',
        "",
    ]
    (asked,), done = cloud("launch", "slice", *flags)
    assert done.returncode == 0, done.stderr
    assert asked[:-1] == ["compute", "tpus", "tpu-vm", "ssh", "slice", *WHERE, "--worker=all"]
    until(lambda: cloud.log())
    assert cloud.log() == [["python", "-m", "vit_jax.main", "--distributed", *flags]]
    assert (cloud.home / "run.log").exists()


def test_a_run_outlives_its_launch_and_can_be_watched_and_stopped(cloud):
    python = cloud.home / "vit_jax/.venv/bin/python"
    python.write_text("#!/bin/bash\nprintf '1\\r2\\r3\\n'; echo oh >&2; exec sleep 60\n")
    start = time.monotonic()
    cloud("launch", "slice", "--config=c")
    assert time.monotonic() - start < 10
    number = int((cloud.home / "run.pid").read_text())
    os.kill(number, 0)
    until(lambda: "oh" in (cloud.home / "run.log").read_text())
    _, done = cloud("logs", "slice", "2")
    assert done.stdout.splitlines()[-2:] == ["3", "oh"]
    _, done = cloud("launch", "slice", "--config=c")
    assert done.returncode == 1 and "A run is going on here" in done.stderr
    _, done = cloud("stop", "slice")
    assert done.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_results_come_from_buckets_and_hosts(cloud, tmp_path):
    (asked,), _ = cloud("fetch", "slice", "gs://bucket/a run", "runs/there")
    assert asked == ["storage", "rsync", "--recursive", "gs://bucket/a run", "runs/there"]
    assert (tmp_path / "runs/there").is_dir()
    (asked,), _ = cloud("fetch", "slice", "runs/a", "there")
    assert asked == [
        "compute",
        "tpus",
        "tpu-vm",
        "scp",
        "--recurse",
        "slice:runs/a",
        "there",
        *WHERE,
        "--worker=0",
    ]


def test_a_dry_run_shows_the_same_commands_without_gcloud(cloud, tmp_path):
    for name in ("bash", "cat", "dirname", "git"):
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / name).symlink_to(shutil.which(name))
    alone = {"PATH": str(tmp_path / "few"), "BUCKET": "bucket"}
    for step in (
        ["create", "slice"],
        ["install", "slice"],
        ["launch", "slice", "--config=a b"],
        ["logs", "slice"],
        ["stop", "slice"],
        ["status", "slice"],
        ["delete", "slice"],
        ["fetch", "slice", "gs://bucket/a", "b"],
    ):
        nothing, done = cloud("--dry-run", *step, **alone)
        assert (nothing, done.returncode) == ([], 0), done.stderr
        shown = subprocess.run(
            [
                "bash",
                "-c",
                "gcloud() { printf '%s\\0' \"$@\"; printf '\\0'; }; "
                'mkdir() { :; }; git() { :; }; eval "$1"',
                "bash",
                done.stdout,
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if step[0] != "install":  # its archive has another name each time
            asked, _ = cloud(*step, BUCKET="bucket")
            assert [part.split("\0") for part in shown.split("\0\0")[:-1]] == asked
    _, done = cloud("create", "slice", **alone)
    assert done.returncode == 1 and "There is no gcloud" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "scripts/tpu.sh [--dry-run] STEP NAME"),
        (["destroy", "slice"], 2, "scripts/tpu.sh [--dry-run] STEP NAME"),
        (["create"], 1, "create needs the slice's NAME"),
        (["create", "--spot"], 1, "create needs the slice's NAME"),
        (["launch", "slice"], 1, "launch NAME --config=FILE"),
        (["fetch", "slice", "gs://bucket/a"], 1, "fetch NAME FROM TO"),
    ],
)
def test_mistakes_are_explained(cloud, arguments, code, message):
    asked, done = cloud(*arguments)
    assert (asked, done.returncode) == ([], code)
    assert message in done.stderr


def test_an_unknown_type_needs_an_image(cloud):
    asked, done = cloud("create", "slice", TYPE="v9-8")
    assert asked == [] and "set VERSION" in done.stderr
    (asked,), _ = cloud("create", "slice", TYPE="v9-8", VERSION="image")
    assert asked[-1] == "--runtime-version=image"


def until(condition):
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not come true")
