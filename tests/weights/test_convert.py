"""The command that converts weights."""

import itertools
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.convert import main
from vit_jax.models.params import parameter_shapes
from vit_jax.weights import npz
from vit_jax.weights.api import load, save_params

VARIANT = "Ti/16"


@pytest.fixture
def published(tmp_path):
    """An .npz as the published ones: ImageNet-21k's head would make it large, so a smaller one."""
    shapes = parameter_shapes(models.build(VARIANT, num_classes=10, pre_logits=True), 224)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    save_params(params, tmp_path / "published.npz", variant=VARIANT, format="npz")
    return tmp_path / "published.npz"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vit_jax.convert", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_the_command_converts_and_says_what_it_wrote(published, tmp_path):
    done = run(published, tmp_path / "run", "--num_classes=0", "--image_size=384x320")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ti/16, 384 x 320 pixels, no head: 5,")
    found = load(tmp_path / "run")
    assert found.image_shape == (384, 320) and not found.num_classes
    table = found.params["Transformer"]["posembed_input"]["pos_embedding"]
    assert table.shape == (1, 1 + 24 * 20, 192)


@pytest.mark.slow
def test_a_dry_run_lists_the_parameters_and_writes_nothing(published, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = run(published, tmp_path / "x.safetensors", "--dry_run", "--variant=ti16")
    lines = done.stdout.splitlines()
    assert len(lines) == 8 + 12 * 16 + 2 + 1  # embedding to head, blocks, pre_logits, and the sum
    assert "embedding/kernel" in done.stdout and "(16, 16, 3, 192)" in done.stdout
    assert lines[-1].startswith("Ti/16, 224 x 224 pixels, 10 classes: 5,")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}", "{}"], "FileExistsError: There is something at"),
        (["nowhere.npz", "x"], "FileNotFoundError: There is no nowhere.npz"),
        (["{}", "x", "--variant=S/16"], "isn't a S/16, it looks most like Ti/16"),
        (["{}", "x", "--variant=B/17"], "There is no model variant 'B/17'"),
        (["{}", "x", "--image_size=100"], "100x100 pixels can't be cut into patches"),
        (["{}", "x", "--image_size=1x2x3"], "invalid image_size value"),
        (["{}"], "a destination is needed, or --dry_run"),
    ],
)
def test_mistakes_get_one_clear_message(published, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(published.parent)
    with pytest.raises(SystemExit) as stop:
        main([argument.format(published) for argument in arguments])
    assert message in f"{stop.value.code} {capsys.readouterr().err}"
    assert [p.name for p in published.parent.iterdir()] == ["published.npz"]


@pytest.mark.slow
def test_every_format_round_trips_through_the_command(published, tmp_path):
    """npz -> Orbax -> timm -> Hugging Face -> npz: the same file, byte for byte but for the zip."""
    chain = [
        published,
        tmp_path / "orbax",
        tmp_path / "x.safetensors",
        tmp_path / "hf",
        tmp_path / "again.npz",
    ]
    main([str(chain[0]), str(tmp_path / "headless.npz"), "--num_classes=0"])
    chain[0] = tmp_path / "headless.npz"
    for source, destination in itertools.pairwise(chain):
        format = ["--format=hf"] if destination.name == "hf" else []
        main([str(source), str(destination), *format])
    with np.load(chain[0]) as first, np.load(chain[-1]) as last:
        assert set(first) == set(last)
        for name in first:
            np.testing.assert_array_equal(first[name], last[name], strict=True)


@pytest.mark.slow
def test_l16_converts_fast_and_in_little_memory(tmp_path):
    """1.2 GB: under a minute and under twice the file's size, from and to each kind of format."""
    tree = parameter_shapes(models.build("L/16", num_classes=1000), 224)
    shapes = flatten_dict(tree, sep="/")
    rng = np.random.default_rng(0)
    values = rng.normal(size=4 * 1024 * 1024).astype(np.float32)  # of the largest array
    arrays = {
        n: np.resize(values, x.shape) if x.size > values.size else values[: x.size].reshape(x.shape)
        for n, x in shapes.items()
    }
    npz.write_arrays(arrays.items(), tmp_path / "l16.npz")
    size = (tmp_path / "l16.npz").stat().st_size
    assert size == pytest.approx(4 * 304_326_632, rel=1e-3)
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system doesn't report a process's largest size")
    program = (
        "import sys; from vit_jax import convert; convert.main(sys.argv[1:]); "
        f"print(open('{status}').read().split('VmHWM:')[1].split()[0])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    for source, destination in (("l16.npz", "orbax"), ("orbax", "x.safetensors")):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / source, tmp_path / destination],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 60
        assert "304,326,632 parameters" in done.stdout
        assert 1024 * int(done.stdout.split()[-1]) < 2 * size
        if source == "l16.npz":
            (tmp_path / source).unlink()  # three copies would take 3.6 GB
