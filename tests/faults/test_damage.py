"""Checkpoints that a disk has lost parts of."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import rows

from vit_jax.checkpoints.checkpoint import read_checkpoint, read_run, write_checkpoint
from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.jobs.train import train
from vit_jax.weights.api import load


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory):
    """A run's configuration and workdir, with checkpoints at steps 2 and 4."""
    from conftest import settings as make

    settings = make.__wrapped__(image_folder)
    settings.update(total_steps=4, eval_every=0)
    settings.optim.polyak = 0.9
    workdir = tmp_path_factory.mktemp("run")
    train(settings, workdir)
    return settings, workdir


@pytest.fixture
def run(finished, tmp_path):
    settings, workdir = finished
    shutil.copytree(workdir, tmp_path / "copy")
    return settings, tmp_path / "copy"


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])
    return "bytes, not"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "has other contents than were written"


def remove(path):
    path.unlink()
    return "is missing"


def empty(path):
    path.write_bytes(b"")
    return "has 0 bytes, not"


@pytest.mark.parametrize("item", ["params", "optimizer", "average", "metadata"])
@pytest.mark.parametrize("damage", [truncate, flip, remove, empty])
def test_every_kind_of_damage_is_reported_by_file(run, item, damage):
    _, workdir = run
    folder = workdir / "checkpoints" / "4"
    path = largest(folder / item)
    expected = damage(path)
    with pytest.raises(ValueError) as error:
        CheckpointManager(workdir, keep=2)
    message = str(error.value)
    assert message.startswith(f"The checkpoint {folder} is damaged: {path.relative_to(folder)} ")
    assert expected in message
    assert "--config.checkpoint.fallback=true goes on from 2, the one before." in message
    assert (workdir / "checkpoints" / "4").is_dir()
    if item != "optimizer":  # which nobody else reads
        with pytest.raises(ValueError, match=f"4 is damaged: {item}/"):
            load(str(workdir))
    else:
        assert load(str(workdir)).step == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_too_little_memory_is_no_damage(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with pytest.raises(type(error)) as raised:
        read_checkpoint(run[1])
    assert raised.value is error


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("data", {"train": {}}, "data.train lacks ids, images, split"),
        ("data", {}, "data.train lacks ids, images, split"),
        ("data", [1], "metadata can't be read"),
        ("class_names", [1, 2, 3], "class_names are no texts"),
    ],
)
def test_metadata_that_are_well_formed_but_wrong_are_damage(run, key, value, told):
    _, workdir = run
    folder = workdir / "checkpoints" / "4"
    path = folder / "metadata" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=rf"4 is damaged: .*{told}"):
        read_run(workdir)


def test_a_damaged_state_without_a_manifest_is_named(run):
    settings, workdir = run
    folder = workdir / "checkpoints" / "4"
    for path in (folder / "optimizer").rglob("*"):
        if path.is_file():
            empty(path)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError) as error:
        train(settings, workdir)
    told = f"The checkpoint {folder} is damaged: optimizer can't be read ("
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("variant", "Q/7", "The model of {} can't be built: There is no model variant 'Q/7'"),
        ("width", "wide", "The model of {} can't be built: width='wide' must be"),
        ("image_size", -16, "The checkpoint {} is damaged: .*config.data.image_size is -16"),
    ],
)
def test_odd_values_of_metadata_are_told_with_the_checkpoint(run, key, value, told):
    folder = run[1] / "checkpoints" / "4"
    path = folder / "metadata" / "metadata"
    metadata = json.loads(path.read_text())
    metadata["config"]["data" if key == "image_size" else "model"][key] = value
    path.write_text(json.dumps(metadata))
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=told.format(folder)):
        load(str(folder)).model()


def test_a_damaged_manifest_is_damage(run):
    _, workdir = run
    (workdir / "checkpoints" / "4" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json can't be read"):
        CheckpointManager(workdir, keep=2)


def test_fallback_goes_on_from_the_one_before_and_keeps_the_damaged(run, caplog):
    caplog.set_level("INFO")
    settings, workdir = run
    settings = settings.copy_and_resolve_references()
    whole = read_checkpoint(workdir)
    table = [row["train_loss"] for row in rows(workdir)]
    truncate(largest(workdir / "checkpoints" / "4" / "params"))
    with pytest.raises(ValueError, match="is damaged"):
        train(settings, workdir)
    settings.checkpoint.fallback = True
    train(settings, workdir)
    again = read_checkpoint(workdir)
    assert again.step == 4
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert [row["train_loss"] for row in rows(workdir)] == table
    assert "It is kept as 4.damaged." in caplog.text and "continuing from" in caplog.text
    assert (workdir / "checkpoints" / "4.damaged" / "params").is_dir()


def test_where_all_are_damaged_none_is_taken(run):
    _, workdir = run
    for step in (2, 4):
        flip(largest(workdir / "checkpoints" / str(step) / "optimizer"))
    with pytest.raises(ValueError, match=r"2 is damaged.*There is none before it"):
        CheckpointManager(workdir, keep=2, fallback=True)
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == ["2", "4.damaged"]


def test_a_converted_checkpoint_is_sealed_too(run, tmp_path):
    _, workdir = run
    write_checkpoint(read_checkpoint(workdir), tmp_path / "copy of it")
    noted = json.loads((tmp_path / "copy of it" / "manifest.json").read_text())
    assert {name.split("/")[0] for name in noted} == {"params", "metadata"}
    flip(largest(tmp_path / "copy of it" / "params"))
    with pytest.raises(ValueError, match="has other contents than were written"):
        read_checkpoint(tmp_path / "copy of it", lazy=True)


def test_a_checkpoint_of_before_there_were_manifests_is_read(run):
    settings, workdir = run
    (workdir / "checkpoints" / "4" / "manifest.json").unlink()
    assert train(settings, workdir)["step"] == 4
