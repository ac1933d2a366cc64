"""The soak test at its smallest, and that it notices what it is there for."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import REPOSITORY

from benchmarks import soak


def test_a_kill_is_survived(tmp_path):
    """A SIGKILL in a save: this seed's first."""
    path = tmp_path / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.soak",
            "--kills=1",
            "--seed=32",
            "--steps=40",
            f"--json={path}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    *kinds, everything = result["rows"]
    assert everything["kill"] == "all"
    assert everything["kills"] == everything["survived"] == 1
    for key in ("kills", "in training", "survived", "steps redone"):
        assert sum(row[key] for row in kinds) == everything[key]
    assert result["about"]["jobs compared"] >= 1


# ----------------------------------------------------------------------------------- comparison

TABLE = "step,train_loss,images_per_second\n3,0.5,100\n6,0.25,90\n"


@pytest.fixture
def workdirs(tmp_path):
    """Two runs that ended alike, but for their speed."""
    one, other = tmp_path / "one", tmp_path / "other"
    params = {"head": {"bias": np.array([1.0, 0.0, np.nan], np.float32)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(one / "checkpoints" / "6" / "params", params)
        checkpointer.save(one / "checkpoints" / "6" / "optimizer", {"step": np.int32(6)})
    (one / "checkpoints" / "6" / "metadata").mkdir()
    (one / "checkpoints" / "6" / "metadata" / "metadata").write_text('{"skipped": 0}')
    shutil.copytree(one, other)
    (one / "metrics.csv").write_text(TABLE)
    (other / "metrics.csv").write_text(TABLE.replace("100", "70"))
    return one, other


def test_runs_that_ended_alike_do_not_differ(workdirs):
    assert list(soak.differences(*workdirs)) == []
    assert soak.read_arrays(workdirs[0] / "checkpoints" / "6").keys() == {
        "optimizer['step']",
        "params['head']['bias']",
    }


@pytest.mark.parametrize(("value", "bit"), [(0, 0), (1, 31)], ids=["smallest", "sign of zero"])
def test_one_bit_is_noticed(workdirs, value, bit):
    folder = workdirs[1] / "checkpoints" / "6" / "params"
    bias = soak.read_arrays(folder.parent)["params['head']['bias']"].copy()
    bias.view(np.uint32)[value] ^= np.uint32(1 << bit)
    shutil.rmtree(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"head": {"bias": bias}})
    assert list(soak.differences(*workdirs)) == [
        "params['head']['bias'] has other bits in 1 of 3 values"
    ]


def test_other_metadata_is_noticed(workdirs):
    (workdirs[1] / "checkpoints" / "6" / "metadata" / "metadata").write_text('{"skipped": 1}')
    assert list(soak.differences(*workdirs)) == ["metadata: skipped is 1, not 0"]


def test_arrays_that_are_not_there_are_noticed(workdirs):
    checkpoints = workdirs[1] / "checkpoints"
    shutil.rmtree(checkpoints / "6" / "optimizer")
    (found,) = soak.differences(*workdirs)
    assert found.endswith("one/checkpoints/6 has optimizer['step']")
    (checkpoints / "6").rename(checkpoints / "5")
    assert list(soak.differences(*workdirs)) == ["the last checkpoint is of step 5, not 6"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("3,0.5,70\n3,0.5,70\n6,0.25,90\n", "row 2 of metrics.csv: step is 3, not 6, "),
        ("3,0.5,70\n", "row 2 of metrics.csv: step is None, not 6, "),
        ("3,0.5,70\n6,0.26,90\n", "row 2 of metrics.csv: train_loss is 0.26, not 0.25"),
    ],
    ids=["doubled", "missing", "other"],
)
def test_rows_that_differ_are_noticed(workdirs, rows, message):
    (workdirs[1] / "metrics.csv").write_text(TABLE.splitlines(keepends=True)[0] + rows)
    (found,) = soak.differences(*workdirs)
    assert found.startswith(message)


# ----------------------------------------------------------------------------- what a start does


def job(tmp_path, program):
    return soak.Job(tmp_path / "job", [sys.executable, "-c", program], dict(os.environ))


def test_a_start_that_ends_well_gives_its_summary(tmp_path):
    assert job(tmp_path, """print('{"step": 6}')""").finish() == {"step": 6}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit(3)", r"Exit status 3: see .*job/start_001\.log"),
        (
            "import threading; threading.Thread(target=lambda: 1 / 0).start(); print('{}')",
            "A traceback: see",
        ),
        ("pass", "No summary: see"),
        ("raise SystemExit(130)", "Exit status 130: see"),
        ("import time; time.sleep(60)", r"It still runs after 0\.5 s: see"),
    ],
)
def test_a_start_that_fails_is_noticed(tmp_path, monkeypatch, program, message):
    monkeypatch.setattr(soak, "_LIMIT", 0.5 if "sleep" in program else 30)
    with pytest.raises(soak.Failed, match=message):
        job(tmp_path, program).finish()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit(1)", "Exit status 1, no word of process 1"),
        ("import sys; sys.exit('Process 0 was lost: as it seems')", "no word of process 1"),
        ("import sys; print('Process 1 was lost: yes', file=sys.stderr); 1 / 0", "A traceback"),
        ("import time; time.sleep(60)", r"It still runs 0\.5 s after a kill"),
    ],
)
def test_a_process_that_does_not_end_well_without_another_is_noticed(
    tmp_path, monkeypatch, program, message
):
    monkeypatch.setattr(soak, "_LOST_AFTER", 0.25)
    monkeypatch.setattr(soak, "_GRACE", 0.25 if "sleep" in program else 2)
    alone = job(tmp_path, program)
    with pytest.raises(soak.Failed, match=message), alone.started() as process:
        alone.wait_after_loss(process, 1)


@pytest.mark.parametrize(
    ("program", "printed"),
    [("pass", False), ("import sys; sys.exit('Process 1 was lost: yes')", True)],
    ids=["at its end already", "says which was lost"],
)
def test_a_process_that_ends_well_without_another_is_not_complained_of(tmp_path, program, printed):
    alone = job(tmp_path, program)
    with alone.started() as process:
        alone.wait_after_loss(process, 1)
    assert ("was lost" in (alone.folder / "start_001.log").read_text()) == printed


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("time.sleep(60)", r"It still runs after 0\.5 s: see"),
        ("time.sleep(0.1); print('{}')", "SIGTERM didn't stop it 20 steps before the end: see"),
    ],
)
def test_a_process_that_ignores_a_signal_is_noticed_and_ended(tmp_path, monkeypatch, end, message):
    """It says its id in metrics.csv when it can't be disturbed any more."""
    monkeypatch.setattr(soak, "_GRACE", 0.5 if end == "time.sleep(60)" else 30)
    monkeypatch.setattr(soak, "STARTING", 0)
    program = f"""
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
folder.mkdir()
(folder / "partial").write_text(f"step,process\\n10,{{os.getpid()}}\\n")
(folder / "partial").rename(folder / "metrics.csv")
{end}
"""
    deaf = job(tmp_path, program)
    drawn = next(kill for kill in soak.KILLS if kill[0] == "SIGTERM")
    with pytest.raises(soak.Failed, match=message):
        soak.kill(deaf, 30, drawn, np.random.default_rng(0), startup=1, span=0.01)
    (row,) = soak.read_rows(deaf.workdir)
    with pytest.raises(ProcessLookupError):
        os.kill(int(row["process"]), 0)
