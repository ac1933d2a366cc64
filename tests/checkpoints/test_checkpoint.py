import jax
import numpy as np
import optax
import pytest

from vit_jax import models
from vit_jax.checkpoints.checkpoint import read_checkpoint
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
    store = CheckpointManager(tmp_path, keep=2)
    store.save(saved, settings, CLASSES)
    store.close()

    again = CheckpointManager(tmp_path, keep=2)
    assert again.latest_step() == 3
    restored, window = again.restore(state_of(settings, 0))
    assert window == []
    assert_equal(restored, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)


def averaged(settings, seed):
    state = state_of(settings, seed)
    return state.replace(average=jax.tree.map(lambda x: x - 1, state.params))


def test_a_polyak_average_is_kept_beside_the_parameters(tmp_path, settings):
    saved = averaged(settings, 2)
    store = CheckpointManager(tmp_path, keep=1)
    store.save(saved, settings, CLASSES)
    store.close()
    store = CheckpointManager(tmp_path, keep=1)
    assert_equal(store.restore(averaged(settings, 0))[0], saved)
    for lazy in (False, True):
        found = read_checkpoint(tmp_path, lazy=lazy)
        assert_equal(jax.tree.map(np.asarray, found.params), saved.params)
        assert_equal(jax.tree.map(np.asarray, found.average), saved.average)
    with pytest.raises(ValueError, match=r"has a Polyak average: optim\.polyak can't be turned"):
        store.restore(state_of(settings, 0))


def test_an_average_that_was_not_kept_is_missed(tmp_path, settings):
    store = CheckpointManager(tmp_path, keep=1)
    store.save(state_of(settings, 2), settings, CLASSES)
    store.close()
    assert read_checkpoint(tmp_path).average is None
    with pytest.raises(ValueError, match=r"has no Polyak average: optim\.polyak can't be turned"):
        CheckpointManager(tmp_path, keep=1).restore(averaged(settings, 0))


def test_keeps_the_newest(tmp_path, settings):
    store = CheckpointManager(tmp_path, keep=2)
    for number in (1, 2, 3, 4):
        store.save(state_of(settings, number), settings, CLASSES)
    store.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_opens_without_its_configuration(tmp_path, settings, rng):
    saved = state_of(settings, 5)
    store = CheckpointManager(tmp_path, keep=1)
    store.save(saved, settings, CLASSES)
    store.close()
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
    store = CheckpointManager(tmp_path, keep=1)
    store.save(state_of(settings, 1), settings, CLASSES)
    settings.model.update(depth=2, mlp_dim=40, pool="gap")
    with pytest.raises(ValueError) as error:
        store.restore(state_of(settings, 0))
    store.close()
    for part in (
        "cls is not in the model",
        "Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel is missing",
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel has the shape (24, 32), the model's "
        "is (24, 40)",
        "Transformer/posembed_input/pos_embedding has the shape (1, 5, 24), the model's is (1, 4,",
    ):
        assert part in str(error.value)
