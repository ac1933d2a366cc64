"""Checkpoints of a run: saved, restored, kept, and read without their configuration."""

import json

import jax
import numpy as np
import optax
import pytest

from vit_jax import models
from vit_jax.checkpoints.best import Best
from vit_jax.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.config.defaults import default
from vit_jax.config.keys import model_attributes
from vit_jax.training.step import TrainState, initial_state

CLASSES = ("a", "b", "c")


@pytest.fixture
def settings():
    settings = default()
    settings.model.update(variant="Ti/16", width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    settings.data.image_size = 16
    return settings


def state_of(settings, seed):
    model = models.build(
        settings.model.variant, num_classes=len(CLASSES), **model_attributes(settings)
    )
    optimizer = optax.adam(1e-3)
    state = initial_state(model, optimizer, (16, 16), jax.random.key(seed))
    noisy = jax.tree.map(lambda x: x + seed * 0.1, (state.params, state.opt_state))
    return TrainState(state.step + seed, *noisy)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_restores_state_bit_for_bit(tmp_path, settings):
    saved = state_of(settings, 3)
    manager = CheckpointManager(tmp_path, keep=2)
    manager.save(saved, settings, CLASSES)
    manager.close()

    again = CheckpointManager(tmp_path, keep=2)
    assert again.latest_step() == 3
    restored, pending = again.restore(state_of(settings, 0))
    assert pending == []
    assert_equal(restored, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)


def averaged(settings, seed):
    state = state_of(settings, seed)
    return state.replace(average=jax.tree.map(lambda x: x - 1, state.params))


def test_a_polyak_average_is_kept_beside_the_parameters(tmp_path, settings):
    saved = averaged(settings, 2)
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(saved, settings, CLASSES)
    manager.close()
    manager = CheckpointManager(tmp_path, keep=1)
    assert_equal(manager.restore(averaged(settings, 0))[0], saved)
    for lazy in (False, True):
        found = read_checkpoint(tmp_path, lazy=lazy)
        assert_equal(jax.tree.map(np.asarray, found.params), saved.params)
        assert_equal(jax.tree.map(np.asarray, found.average), saved.average)
    with pytest.raises(ValueError, match=r"has a Polyak average: optim\.polyak can't be turned"):
        manager.restore(state_of(settings, 0))


def test_an_average_that_was_not_kept_is_missed(tmp_path, settings):
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(state_of(settings, 2), settings, CLASSES)
    manager.close()
    assert read_checkpoint(tmp_path).average is None
    with pytest.raises(ValueError, match=r"has no Polyak average: optim\.polyak can't be turned"):
        CheckpointManager(tmp_path, keep=1).restore(averaged(settings, 0))


def test_keeps_the_newest(tmp_path, settings):
    manager = CheckpointManager(tmp_path, keep=2)
    for number in (1, 2, 3, 4):
        manager.save(state_of(settings, number), settings, CLASSES)
    manager.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_at_no_moment_is_the_best_or_the_newest_missing(tmp_path, settings, monkeypatch):
    """Each moment is that before Orbax gives a new checkpoint its name, and that after it."""
    seen = []

    def look(folder):
        steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
        if steps:
            seen.append((steps[-1], read_checkpoint(f"{folder}@best").step))

    monkeypatch.setattr("vit_jax.checkpoints.manager.write_manifest", lambda x: look(x.parent))
    manager = CheckpointManager(tmp_path, keep=1)
    for number, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        best = Best("test_loss", best, 0.5, number - best)
        manager.save(state_of(settings, number), settings, CLASSES, best=best)
    manager.close()
    look(tmp_path / "checkpoints")
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4)]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]
    again = CheckpointManager(tmp_path, keep=1)
    assert again.best == Best("test_loss", 4, 0.5, 1)
    again.close()


def test_opens_without_its_configuration(tmp_path, settings, rng):
    saved = state_of(settings, 5)
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(saved, settings, CLASSES)
    manager.close()
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "5"):
        opened = read_checkpoint(path)
        assert opened.class_names == CLASSES and opened.step == 5
        assert opened.config.to_json(sort_keys=True) == settings.to_json(sort_keys=True)
        assert_equal(opened.params, saved.params)
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(opened.params))
        logits = opened.model().apply({"params": opened.params}, rng.normal(size=(2, 16, 16, 3)))
        assert logits.shape == (2, 3)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
        read_checkpoint(tmp_path)


def test_restoring_another_model_names_every_difference(tmp_path, settings):
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(state_of(settings, 1), settings, CLASSES)
    settings.model.update(depth=2, mlp_dim=40, pool="gap")
    with pytest.raises(ValueError) as error:
        manager.restore(state_of(settings, 0))
    manager.close()
    for part in (
        "cls is not in the model",
        "Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel is missing",
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel has the shape (24, 32), the model's "
        "is (24, 40)",
        "Transformer/posembed_input/pos_embedding has the shape (1, 5, 24), the model's is (1, 4,",
    ):
        assert part in str(error.value)


def test_pending_metrics_come_back_as_they_were(tmp_path, settings):
    pending = [
        {"loss": np.float32(0.1 * step), "nonfinite": np.int32(step), "skipped": np.int32(0)}
        for step in (1, 2)
    ]
    manager = CheckpointManager(tmp_path, keep=1)
    manager.save(state_of(settings, 2), settings, CLASSES, pending)
    manager.close()
    _, restored = CheckpointManager(tmp_path, keep=1).restore(state_of(settings, 0))
    assert restored == pending
    for metrics in restored:
        assert (metrics["loss"].dtype, metrics["nonfinite"].dtype) == (np.float32, np.int32)
    metadata = json.loads((tmp_path / "checkpoints" / "2" / "metadata" / "metadata").read_text())
    assert [x["nonfinite"] for x in metadata["window"]] == [1, 2]


def test_the_grid_is_that_of_the_image_size(tmp_path, settings):
    params = state_of(settings, 0).params
    for size, grid in ((16, (2, 2)), ((24, 40), (3, 5)), (None, None)):
        with settings.ignore_type():
            settings.data.image_size = size
        assert Checkpoint("x", params, settings, CLASSES, 0).grid == grid
