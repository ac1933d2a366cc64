"""Runs that are stopped and go on, against runs that are not."""

import itertools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import REPOSITORY, environment, rows

from vit_jax.checkpoints.checkpoint import find_checkpoint, read_checkpoint
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.train import train


class StoppedError(Exception):
    """Stands for whatever ends a run in the middle."""


def fail():
    raise StoppedError


def terminate():
    """Sends SIGTERM to this process, and waits until the thread that reads signals has it."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)


def state_of(workdir):
    """All arrays of the newest checkpoint, as they are on the disk."""
    folder = find_checkpoint(workdir)
    items = [folder / name for name in ("params", "optimizer", "average")]
    return [ocp.PyTreeCheckpointHandler().restore(item) for item in items if item.is_dir()]


def table(workdir):
    """metrics.csv, but for what a clock says."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(workdir)]


def train_until(stop_at, action, patch, *args):
    """Trains, and does something when the step is done, but before its row and its checkpoint."""
    steps = itertools.count(1)
    with patch.context() as patched:
        patched.setattr(Progress, "advance", lambda *_: next(steps) == stop_at and action())
        train(*args)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate_steps": 2},
        {"objective": "masked_patches", "optim.polyak": 0.9},
        {"optim.name": "muon"},
        {
            "data.mixup": 0.2,
            "data.randaugment": 2,
            "model.stochastic_depth": 0.3,
            "model.positions": "sincos",
            "fewshot.every": 3,
            "fewshot.shots": (1, 2),
        },
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_stopped_run_continues_bit_for_bit(settings, tmp_path, monkeypatch, changes):
    """Stopped by SIGTERM between two rows, then two steps after a checkpoint between two rows."""
    settings.optim.name, settings.optim.lr = "adam", 1e-3
    settings.update_from_flattened_dict(changes)
    settings.update(total_steps=8, log_every=4, eval_every=0)
    settings.checkpoint.every = 5
    train(settings, tmp_path / "whole")

    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_until(3, terminate, monkeypatch, settings, stopped)
    assert read_checkpoint(stopped).step == 3
    with pytest.raises(StoppedError):
        train_until(4, fail, monkeypatch, settings, stopped)
    assert read_checkpoint(stopped).step == 5
    train(settings, stopped)

    jax.tree.map(np.testing.assert_array_equal, state_of(stopped), state_of(tmp_path / "whole"))
    assert table(stopped) == table(tmp_path / "whole")
    steps = ["4", "8"] if "fewshot.every" not in changes else ["3", "4", "6", "8"]
    assert [row["step"] for row in table(stopped)] == steps


def test_another_number_of_devices_goes_on_with_the_same_data(settings, tmp_path):
    """Eight devices, then one, against eight: losses and gradients are alike to 1e-5."""
    settings.model.dropout = 0.0
    settings.update(log_every=1, eval_every=3, total_steps=3)
    settings.optim.decay = "constant"
    whole = settings.copy_and_resolve_references()
    whole.total_steps = 6
    train(whole, tmp_path / "whole")
    train(settings, tmp_path / "both")
    program = f"""
import jax
from ml_collections import ConfigDict
from vit_jax import default_config, train
settings = default_config()
settings.update(ConfigDict({whole.to_dict()!r}))
assert jax.device_count() == 1
train(settings, {str(tmp_path / "both")!r})
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment(), check=True)
    for name in ("train_loss", "train_accuracy", "grad_norm", "test_loss"):
        found, expected = (
            [float(row[name] or 0) for row in rows(tmp_path / run)] for run in ("both", "whole")
        )
        assert len(found) == 6
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_a_row_that_was_being_written_is_written_again(settings, tmp_path):
    """A kill in the middle of a write leaves half a line."""
    settings.total_steps = 4
    train(settings, tmp_path)
    expected = table(tmp_path)
    path = tmp_path / "metrics.csv"
    settings.total_steps = 6
    path.write_bytes(path.read_bytes() + b"5,0.9")
    train(settings, tmp_path)
    assert table(tmp_path)[: len(expected)] == expected
    assert [row["step"] for row in table(tmp_path)] == ["2", "3", "4", "6"]


def test_a_table_that_is_none_is_refused(settings, tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is not a table .*: put it aside"):
        train(settings, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"
