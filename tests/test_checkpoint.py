import jax
import numpy as np
import optax
import pytest
from scipy import ndimage

from vit_jax import checkpoint, config, data, models, step
from vit_jax.interop import surgery

CLASSES = ("a", "b", "c")


@pytest.fixture
def settings():
    settings = config.default()
    settings.model.update(variant="Ti/16", width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    settings.data.image_size = 16
    return settings


def state_of(settings, seed):
    model = models.build(
        settings.model.variant, num_classes=len(CLASSES), **config.model_overrides(settings)
    )
    optimizer = optax.adam(1e-3)
    state = step.initial_state(model, optimizer, (16, 16), jax.random.key(seed))
    noisy = jax.tree.map(lambda x: x + seed * 0.1, (state.params, state.opt_state))
    return step.TrainState(state.step + seed, *noisy)


@pytest.fixture
def batches(image_folder, settings):
    source = data.open_dataset(str(image_folder)).source("train")
    return lambda: data.train_batches(
        source, settings.data, num_classes=len(CLASSES), batch_size=8, seed=3
    )


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_restores_state_and_data_position_bit_for_bit(tmp_path, settings, batches):
    saved, stream = state_of(settings, 3), batches()
    for _ in range(3):
        next(stream)
    store = checkpoint.Checkpoints(tmp_path, keep=2)
    store.save(saved, stream, settings, CLASSES)
    following = [next(stream) for _ in range(3)]  # while it is being written
    store.close()

    again, stream = checkpoint.Checkpoints(tmp_path, keep=2), batches()
    assert again.latest_step() == 3
    restored = again.restore(state_of(settings, 0), stream)
    assert_equal(restored, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert_equal([next(stream) for _ in range(3)], following)


def test_keeps_the_newest(tmp_path, settings, batches):
    store = checkpoint.Checkpoints(tmp_path, keep=2)
    for number in (1, 2, 3, 4):
        store.save(state_of(settings, number), batches(), settings, CLASSES)
    store.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_opens_without_its_configuration(tmp_path, settings, batches, rng):
    saved = state_of(settings, 5)
    store = checkpoint.Checkpoints(tmp_path, keep=1)
    store.save(saved, batches(), settings, CLASSES)
    store.close()
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "5"):
        opened = checkpoint.load(path)
        assert opened.class_names == CLASSES and opened.step == 5
        assert opened.config.to_dict() == settings.to_dict()
        assert_equal(opened.params, saved.params)
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(opened.params))
        logits = opened.model().apply({"params": opened.params}, rng.normal(size=(2, 16, 16, 3)))
        assert logits.shape == (2, 3)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
        checkpoint.load(tmp_path)


def test_restoring_another_model_names_every_difference(tmp_path, settings, batches):
    store = checkpoint.Checkpoints(tmp_path, keep=1)
    store.save(state_of(settings, 1), batches(), settings, CLASSES)
    settings.model.update(depth=2, mlp_dim=40, pool="gap")
    with pytest.raises(ValueError) as error:
        store.restore(state_of(settings, 0), batches())
    store.close()
    for part in (
        "cls is not in the model",
        "Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel is missing",
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel has the shape (24, 32), the model's "
        "is (24, 40)",
        "Transformer/posembed_input/pos_embedding has the shape (1, 5, 24), the model's is (1, 4,",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (12, 12)), ((6, 4), (3, 9)), ((2, 2), (5, 3))])
@pytest.mark.parametrize("tokens", [0, 1])
def test_positions_resize_like_corner_aligned_interpolation(rng, old, new, tokens):
    """Against interpolation by hand, and the public loader's call."""
    table = rng.normal(size=(1, tokens + old[0] * old[1], 5)).astype(np.float32)
    resized = surgery.resize_positions(table, old, new)
    np.testing.assert_array_equal(resized[:, :tokens], table[:, :tokens])
    grid, result = table[0, tokens:].reshape(*old, 5), resized[0, tokens:].reshape(*new, 5)
    for r in range(new[0]):
        for c in range(new[1]):
            y, x = r * (old[0] - 1) / (new[0] - 1), c * (old[1] - 1) / (new[1] - 1)
            top, left = min(int(y), old[0] - 2), min(int(x), old[1] - 2)
            fy, fx = y - top, x - left
            square = grid[top : top + 2, left : left + 2]
            expected = np.einsum("y,x,yxd->d", [1 - fy, fy], [1 - fx, fx], square)
            np.testing.assert_allclose(result[r, c], expected, atol=1e-5)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    np.testing.assert_array_equal(result, ndimage.zoom(grid, zoom, order=1))


def test_a_linear_ramp_stays_a_ramp():
    """Corners keep their values: position embeddings at the border stay border embeddings."""
    ramp = np.linspace(0, 1, 4)[None, :, None] * np.ones((3, 1, 1))
    resized = surgery.resize_positions(ramp.reshape(1, 12, 1), (3, 4), (3, 8))
    np.testing.assert_allclose(resized.reshape(3, 8), np.tile(np.linspace(0, 1, 8), (3, 1)))


def test_adapting_takes_everything_but_the_head(settings):
    settings.model.pre_logits = True
    old = jax.tree.map(np.asarray, state_of(settings, 2).params)
    settings.model.pre_logits = False
    model = models.build("Ti/16", num_classes=9, **config.model_overrides(settings))
    fresh = model.init(jax.random.key(1), np.zeros((1, 32, 24, 3)))["params"]
    adapted = surgery.adapt(old, fresh, old_grid=(2, 2), new_grid=(4, 3), where="the old run")
    assert jax.tree.map(np.shape, adapted) == jax.tree.map(np.shape, dict(fresh))
    assert not adapted["head"]["kernel"].any()
    assert_equal(adapted["embedding"], old["embedding"])
    assert_equal(
        adapted["Transformer"]["encoderblock_0"], old["Transformer"]["encoderblock_0"]
    )


def test_adapting_names_what_does_not_fit(settings):
    old = jax.tree.map(np.asarray, state_of(settings, 2).params)
    settings.model.width = 48
    fresh = state_of(settings, 0).params
    with pytest.raises(ValueError, match=r"the old run doesn't.*cls has the shape \(1, 1, 24\)"):
        surgery.adapt(old, fresh, old_grid=(2, 2), new_grid=(2, 2), where="the old run")
