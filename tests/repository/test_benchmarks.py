"""Benchmarks run at the smallest size, and report the rows that they should."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ONE_DEVICE, REPOSITORY

from benchmarks import numerics
from vit_jax.models.variants import build

pytestmark = pytest.mark.slow

SMALL = ["--image_size=32", "--batch=2", "--rounds=1", "--seconds=0.1"]
TURNS = {"images/s", "slowest", "fastest"}


def rows(tmp_path, name, *arguments):
    """Runs a benchmark on a machine with one device and returns the rows of its JSON."""
    path = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", f"--json={path}", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["title"] in done.stdout
    assert "x cpu" in result["about"]["devices"]
    return result["rows"]


def test_throughput(tmp_path):
    found = rows(
        tmp_path,
        "throughput",
        "Ti/16",
        "--mode=inference",
        "--contenders",
        "vit_jax",
        "plain",
        *SMALL,
    )
    keys = {"model", "mode", "contender", "vit_jax is"} | TURNS
    assert [row.keys() for row in found] == [keys] * 2
    assert [(row["mode"], row["contender"]) for row in found] == [
        ("inference", "vit_jax"),
        ("inference", "plain"),
    ]
    assert all(row["images/s"] > 0 for row in found)


def test_serving(tmp_path):
    contenders = ["--contenders", "vit_jax", "onnxruntime"]
    found = rows(tmp_path, "serving", "Ti/16", *contenders, "--batch", "2", *SMALL[:1], *SMALL[2:])
    keys = {"model", "images", "contender", "ms", "fastest", "slowest", "images/s", "vit_jax is"}
    assert [row.keys() for row in found] == [keys] * 2
    assert [(row["contender"], row["images"]) for row in found] == [
        ("vit_jax", 2),
        ("onnxruntime", 2),
    ]
    assert all(row["images/s"] == pytest.approx(2e3 / row["ms"]) for row in found)


def test_matmuls(tmp_path):
    found = rows(tmp_path, "matmuls", "Nano/8", "--seconds=0.01", *SMALL[:-1])
    keys = {"model", "product", "GFLOPs", "GFLOP/s", "of peak", "share"}
    assert all(row.keys() == keys for row in found)
    assert [row["product"] for row in found[-2:]] == ["2048 x 2048 x 2048", "forward pass"]
    gflops = {row["product"]: row["GFLOPs"] for row in found}
    model, tokens, images = build("Nano/8", num_classes=1), 16 + 1, 2
    dense = 4 * model.width**2 + 2 * model.width * model.mlp_dim
    scores = 2 * model.width * tokens
    expected = 2 * images * tokens * model.depth * (dense + scores) / 1e9
    assert gflops["forward pass"] == pytest.approx(expected)


def test_input_pipeline(tmp_path):
    names = ["vit_jax", "vit_jax float32", "vit_jax packed"]
    if importlib.util.find_spec("tensorflow"):
        names += ["tf.data", "tf.data float32"]
    found = rows(tmp_path, "input_pipeline", "--count=4", "--contenders", *names, *SMALL)
    keys = {"contender", "vit_jax is", "processor ms/image"} | TURNS
    assert [row.keys() for row in found] == [keys] * len(names)
    assert [row["contender"] for row in found] == names
    assert all(row["images/s"] > 0 and row["processor ms/image"] > 0 for row in found)


def test_a_contender_of_another_interpreter_needs_none_of_our_packages():
    command = [sys.executable, "-S", "-m", "benchmarks.input_pipeline", "--contender=tf.data"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert "No module named 'numpy'" in done.stderr  # which TensorFlow has


def test_startup(tmp_path, image_folder):
    options = [
        "--config.batch_size=8",
        "--config.model.depth=1",
        "--config.data.image_size=16",
        f"--config.data.name={image_folder}",
    ]
    found = rows(tmp_path, "startup", "--rounds=1", "--options", *options)
    keys = {"compilation cache", "seconds", "fastest", "slowest", "saved"}
    assert [row.keys() for row in found] == [keys] * 2
    cold, warm = found
    assert (cold["compilation cache"], warm["compilation cache"]) == ("cold", "warm")
    assert warm["saved"] == cold["seconds"] - warm["seconds"]


def test_scaling(tmp_path):
    (row,) = rows(tmp_path, "scaling", "Nano/8", "--devices=2", "--strategies=sharded", *SMALL)
    keys = {"model", "parallel", "devices", "batch", "per device", "same batch"} | TURNS
    assert row.keys() == keys
    assert (row["parallel"], row["devices"], row["batch"]) == ("sharded", 2, 4)
    assert row["per device"] == "1.00x"
    assert row["same batch"].endswith("x")


def test_memory(tmp_path):
    found = rows(
        tmp_path,
        "memory",
        "Nano/8",
        "--image_size=16",
        "--batch=64",
        "--memory_gib=0.06",
        "--policies",
        "none",
    )
    (row,) = found
    assert (row["model"], row["remat"], row["relative"]) == ("Nano/8", "none", 1)
    assert row["largest batch"] == row["a device"] > 64
    assert row["state GiB"] < row["total GiB"] <= 0.06
    assert row["MiB an image"] > 0 < row["GFLOPs an image"]


def test_bfloat16_adds_no_more_error_than_the_public_formulation(tmp_path):
    found = rows(tmp_path, "numerics", "--smoke", "--seeds=6")
    names = ["plain", "custom_vjp", "tpu", numerics.ROUNDED]
    names += ["public formulation", "timm, autocast"]
    assert [row["formulation"] for row in found] == names

    def mean_of(name, what):
        errors = found[names.index(name)][f"{what}, %"]
        return np.mean([float(error) for error in errors.split(" / ")])

    for what, largest in (("logits", 3), ("gradients", 6)):
        public = mean_of("public formulation", what)
        assert all(0.1 < mean_of(name, what) < largest for name in names)
        assert mean_of("plain", what) < public and mean_of("custom_vjp", what) < public
    assert mean_of(numerics.ROUNDED, "logits") > mean_of("public formulation", "logits")


def test_the_public_formulation_of_the_numerics_is_ours_in_float32(rng):
    model = build("Nano/8", num_classes=5, dtype=np.float32)
    images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = numerics.trained_like(shapes, seed=0)
    public = numerics.public_logits(params, images, depth=model.depth, patch=8, dtype=np.float32)
    found = model.apply({"params": params}, images)
    assert numerics.relative_error(public, found) < 3e-6
