"""Two processes with four devices each, as two hosts, against one process with eight."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import IMAGE, ONE_DEVICE, REPOSITORY

from vit_jax.checkpoints.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

CONFIG = """
from vit_jax import config as config_lib

def get_config():
    config = config_lib.default()
    config.model.update(variant="Ti/16", width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    config.data.update(name={folder!r}, image_size={size})
    config.update(batch_size=16, eval_batch_size=16, log_every=1, eval_every=3)
    config.fewshot.update(every=3, shots=(1, 2))
    config.optim.update(name="sgd", lr=0.1, warmup_steps=0, decay="constant")
    return config
"""
STEPS = 6


@pytest.fixture(scope="module")
def config_file(image_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG.format(folder=str(image_folder), size=IMAGE))
    return path


def start(config_file, workdir, *options, processes=1):
    """Starts the command in one process with eight devices, or in more that share them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{ONE_DEVICE} --xla_force_host_platform_device_count={8 // processes}"
    running = []
    for number in range(processes):
        joined = (
            [
                f"--coordinator_address={address}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            ]
            if processes > 1
            else []
        )
        command = [
            sys.executable,
            "-m",
            "vit_jax.main",
            f"--config={config_file}",
            f"--workdir={workdir}",
            *joined,
            *options,
        ]
        running.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def launch(*args, **kwargs):
    """Runs what `start` starts, and returns what each process said."""
    return finish(start(*args, **kwargs))


def finish(running):
    ended = [process.communicate(timeout=120) for process in running]
    assert not any(process.returncode for process in running), "\n".join(e for _, e in ended)
    return ended


def columns(workdir):
    with open(workdir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(i + 1) for i in range(STEPS)]
    names = ("train_loss", "train_accuracy", "grad_norm", "test_loss", "test_accuracy", "fewshot_2")
    return {name: [float(row[name] or 0) for row in rows] for name in names}


@pytest.fixture(scope="module")
def single(config_file, tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("single")
    launch(config_file, workdir, f"--config.total_steps={STEPS}")
    return workdir


@pytest.mark.parametrize("body", ["pmap", "sharded"])
def test_two_processes_are_one_and_go_on_where_either_stopped(config_file, single, tmp_path, body):
    """Three steps by two processes; then three more, once by two and once by one."""
    body = f"--config.parallel={body}"
    best = ("--config.checkpoint.best=test_loss", "--config.checkpoint.keep=1")
    (first, said), (second, _) = launch(
        config_file, tmp_path, "--config.total_steps=3", body, *best, processes=2
    )
    assert json.loads(first.splitlines()[-1])["step"] == 3
    assert '"step"' not in second and "on 8 x cpu" in said
    (tmp_path / "alone").mkdir()
    for name in ("checkpoints", "metrics.csv"):
        subprocess.run(["cp", "-r", tmp_path / name, tmp_path / "alone"], check=True)
    more = f"--config.total_steps={STEPS}"
    launch(config_file, tmp_path, more, body, *best, processes=2)
    launch(config_file, tmp_path / "alone", more, body, *best)
    expected, wanted = columns(single), read_checkpoint(single)
    assert len(set(expected["train_loss"])) == STEPS
    for workdir in (tmp_path, tmp_path / "alone"):
        for name, values in columns(workdir).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
        found = read_checkpoint(workdir)
        assert found.step == STEPS
        losses = [columns(workdir)["test_loss"][step - 1] for step in (3, STEPS)]
        assert read_checkpoint(f"{workdir}@best").step == (3, STEPS)[int(np.argmin(losses))]
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
            found.params,
            wanted.params,
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_stop_after_the_same_step_when_one_is_told(config_file, tmp_path, number):
    running = start(config_file, tmp_path, "--config.total_steps=100000", processes=2)
    table = tmp_path / "metrics.csv"
    deadline = time.monotonic() + 100
    while not table.exists() or table.read_text().count("\n") < 3:
        assert time.monotonic() < deadline and all(p.poll() is None for p in running)
        time.sleep(0.1)
    running[1].send_signal(number)  # not the one that has the coordinator
    said = [process.communicate(timeout=120)[1] for process in running]
    assert all("the same command goes on" in errors for errors in said)
    assert [process.returncode for process in running] == [128 + number] * 2, "\n".join(said)
    step = read_checkpoint(tmp_path).step
    assert 2 <= step < 100000
    with open(table, newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)][-1] == str(step)


def test_sigterm_ends_processes_that_do_not_train_yet(config_file, tmp_path):
    """They download weights from a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights.npz"
        options = [f"--config.init_from={url}", "--config.total_steps=2"]
        running = start(config_file, tmp_path, *options, processes=2)
        connection, _ = server.accept()
        with connection:
            for process in running:
                process.send_signal(signal.SIGTERM)
            said = [process.communicate(timeout=20)[1] for process in running]
    assert [process.returncode for process in running] == [143] * 2, "\n".join(said)
    assert all("the same command goes on" in errors for errors in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_processes=2", "--process_id=0"], "go together"),
        (["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"], "from 0"),
        (["--distributed"], "The processes can't be connected"),
    ],
)
def test_mistakes_are_told_in_one_paragraph(config_file, tmp_path, options, message):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vit_jax.main",
            f"--config={config_file}",
            f"--workdir={tmp_path}",
            *options,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr
