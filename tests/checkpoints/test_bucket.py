"""Runs in a bucket of Google Cloud Storage, of a server on this machine."""

import csv
import importlib.util
import io
import os
import subprocess
import sys
import threading

import buckets
import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.common import files
from vit_jax.config.defaults import default
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.metric_writer import MetricWriter, _Copy
from vit_jax.jobs.sweep import sweep
from vit_jax.jobs.train import train
from vit_jax.weights.api import load


@pytest.fixture(scope="module")
def server():
    """A server that everything here takes for Google's: all read its address once."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip('needs pip install -e ".[gcs]"')
    server = buckets.Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)  # gcsfs, google-cloud-storage
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")  # TensorStore
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings(image_folder):
    settings = default()
    settings.model.update(variant="Ti/16", width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=8)
    settings.data.update(name=str(image_folder), image_size=16)
    settings.update(batch_size=16, eval_batch_size=16, total_steps=3, log_every=1)
    settings.optim.update(name="sgd", lr=0.1, warmup_steps=0, decay="constant", polyak=0.5)
    settings.checkpoint.update(every=1, keep=2)
    return settings


def rows(server, name):
    return list(csv.DictReader(io.StringIO(server.objects[name][1].decode())))


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_and_is_read(server, settings, tmp_path):
    here, there = tmp_path / "run", "gs://bucket/runs/first"
    settings.total_steps = 3
    train(settings, there)
    settings.total_steps = 5
    summary = train(settings, there)
    train(settings, here)
    assert summary["checkpoint"] == f"{there}/checkpoints/5"
    assert [row["step"] for row in rows(server, "bucket/runs/first/metrics.csv")] == list("12345")
    events = [name for name in server.objects if name.startswith("bucket/runs/first/tensorboard/")]
    assert len(events) == 2
    assert all(b"train_loss" in server.objects[name][1] for name in events)
    commits = {name for name in server.objects if name.endswith("/commit_success.txt")}
    steps = {name.split("/")[4] for name in commits}
    assert steps == {"4", "5"}, "the others go as newer ones come"

    found, wanted = read_checkpoint(there), read_checkpoint(here)
    assert (found.step, found.class_names) == (5, wanted.class_names)
    for one, other in ((found.params, wanted.params), (found.average, wanted.average)):
        jax.tree.map(np.testing.assert_array_equal, one, other)

    evaluated = evaluate(settings, there)
    assert evaluated["confusion_matrix"] == f"{there}/confusion_matrix.csv"
    table = rows(server, "bucket/runs/first/confusion_matrix.csv")
    assert [row["true \\ predicted"] for row in table] == list(found.class_names)
    settings.init_from, settings.total_steps = there, 1
    assert train(settings, tmp_path / "next")["step"] == 1
    earlier = load(f"{there}/checkpoints/4")
    assert (earlier.step, earlier.path) == (4, f"{there}/checkpoints/4")


@pytest.mark.slow
def test_a_sweep_in_a_bucket_does_nothing_twice(server, settings):
    settings.update(job="sweep", total_steps=1)
    settings.sweep.update(lr=(0.01, 0.1), held_out=0.2)
    first = sweep(settings, "gs://bucket/sweep")
    assert [row["lr"] for row in rows(server, "bucket/sweep/sweep.csv")] == ["0.01", "0.1"]
    assert b"| learning rate |" in server.objects["bucket/sweep/sweep.md"][1]
    before = dict(server.objects)
    assert sweep(settings, "gs://bucket/sweep") == first
    changed = {name for name in server.objects if server.objects[name] != before.get(name)}
    assert changed == {"bucket/sweep/sweep.csv", "bucket/sweep/sweep.md"}


def test_rows_are_copied_in_the_middle_of_a_run(server, monkeypatch):
    monkeypatch.setattr(_Copy, "_PAUSE", 0)
    workdir = files.absolute("gs://bucket/rows")
    columns = ["step", "train_loss", "images_per_second"]
    writer = MetricWriter(workdir, columns, steps_done=0, active=True, config=default())
    writer.write({"step": 1, "train_loss": 1.0, "images_per_second": 10.0})
    assert [row["step"] for row in rows(server, "bucket/rows/metrics.csv")] == ["1"]
    writer.close()


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("gs://bucket/nothing", FileNotFoundError, "There is no checkpoint in gs://bucket/nothing"),
        ("gs://other/run", FileNotFoundError, "There is no bucket gs://other"),
        ("gs://locked/run", ValueError, "gs://locked can't be read: No, anonymous caller"),
    ],
)
def test_what_is_not_there_is_told(server, settings, where, error, message):
    settings.init_from = where
    with pytest.raises(error, match=message):
        evaluate(settings, "gs://bucket/run")
    assert not any(name.startswith("bucket/run/") for name in server.objects)


def test_a_missing_extra_is_named(settings, monkeypatch):
    for name in ("gcsfs", "gcsfs.retry"):
        monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: train(settings, "gs://bucket/run"), lambda: load("gs://bucket/run")):
        with pytest.raises(
            ValueError, match=r"gs://bucket/run is in a bucket.*install -e \"\.\[gcs\]"
        ):
            use()


def test_tensorflow_changes_nothing(server, tmp_path):
    """etils would take it for buckets. This one is broken, as builds without Google Cloud are."""
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no Google Cloud here')")
    code = (
        "from vit_jax.common.files import absolute, write_csv\n"
        "path = absolute('gs://bucket/tf.csv'); write_csv(path, [['written']])\n"
        "print(path.read_text(), path.exists(), path.parent.is_dir())"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["written", "True", "True"]
    assert server.objects["bucket/tf.csv"][1].split() == [b"written"]
