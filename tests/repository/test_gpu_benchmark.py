"""The benchmark for GPUs runs on a CPU, and reads traces and programs rightly."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ONE_DEVICE, REPOSITORY

from benchmarks.gpu import kernels, numerics, result
from vit_jax.analysis import hlo


@pytest.mark.slow
def test_parts_run_on_a_cpu(tmp_path):
    """All but `numerics`, whose functions the next test calls."""
    command = [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}", "--smoke"]
    command += ["--parts", "device", "speed", "loop", "memory"]
    done = subprocess.run(
        [*command, "--seconds=900"],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
    )
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {part: x["ended"] for part, x in found["parts"].items()} == dict.fromkeys(
        ("device", "speed", "loop", "memory"), "ok"
    ), done.stdout
    assert done.returncode == 0
    speed = found["speed"]["Speed"]
    assert {row["contender"] for row in speed} == {"vit_jax", "plain", "timm"}
    assert all(row["images/s"] > 0 for row in speed)
    assert 0 <= found["speed"]["Step"][0]["idle share"] < 1
    assert "### Longest kernels" in (tmp_path / "gpu.md").read_text()


def test_errors_of_bfloat16_are_those_of_its_digits():
    (case,) = numerics.SMOKE.values()
    exact, rounded = (
        numerics.logits_and_gradient(case, "custom_vjp", dtype, 2)
        for dtype in ("float32", "bfloat16")
    )
    for values, truth in zip(rounded, exact, strict=True):
        # bfloat16 has 8 bits: an error far from 2^-8 is no rounding
        assert 2**-11 < numerics.error(values, truth) < 2**-5


def test_a_part_that_fails_is_reported(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}", "--smoke"]
    done = subprocess.run(
        [*command, "--parts", "device", "--seconds=11"],
        cwd=REPOSITORY,
        env={"PATH": "", "JAX_PLATFORMS": "nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    ended = json.loads((tmp_path / "gpu.json").read_text())["parts"]["device"]["ended"]
    assert "exit status 1" in ended
    assert "nowhere" in ended


def test_rows_are_kept_when_a_part_is_stopped(tmp_path):
    found = result.Result(str(tmp_path), "part")
    found.add("Table", {"value": float("nan")})
    assert result.read_tables(str(tmp_path), "part") == {"Table": [{"value": None}]}
    assert result.read_tables(str(tmp_path), "other") == {}
    assert "| value |" in result.markdown(str(tmp_path), ["part", "other"])


def test_busy_time_counts_overlaps_once():
    assert kernels.busy([(0, 2), (1, 3), (1.5, 1.75), (5, 6)]) == 4
    assert kernels.busy([]) == 0


def test_kernels_are_summed_by_instruction():
    compiled = jax.jit(lambda x, y: x @ y).lower(jnp.ones((4, 8)), jnp.ones((8, 2))).compile()
    text = compiled.as_text()
    (name,) = [n for n, cost in hlo.instruction_costs(text).items() if cost.flops]
    steps = range(kernels.STEPS)
    events = [(name, "gemm", 10.0 * i, 10.0 * i + 2) for i in steps]
    events += [("copy", "memcpy", 10.0 * i + 2, 10.0 * i + 3) for i in steps]
    tables = kernels.tables(events, text, "no chip")
    first, second = tables["Longest kernels"]
    assert (first["instruction"], second["instruction"]) == (name, "copy")
    assert first["ms"] == 2000
    assert first["share"] == 2 / 3
    assert first["GFLOP"] == 2 * 4 * 8 * 2 / 1e9
    assert first["MB"] == 4 * (4 * 8 + 8 * 2 + 4 * 2) / 1e6
    (step,) = tables["Step"]
    busy, span = 3 * kernels.STEPS, 10 * (kernels.STEPS - 1) + 3
    assert step["idle share"] == pytest.approx(1 - busy / span)


def test_costs_of_instructions_add_up_to_the_programs():
    def function(x, y):
        return jnp.tanh(x @ y).sum() + (y.T @ y).max()

    text = jax.jit(jax.grad(function)).lower(jnp.ones((16, 32)), jnp.ones((32, 8))).compile()
    text = text.as_text()
    whole = hlo.count_costs(text, 1)
    costs = hlo.instruction_costs(text).values()
    assert sum(cost.flops for cost in costs) == whole.flops > 0
    assert sum(cost.bytes for cost in costs) == whole.bytes_accessed > 0
