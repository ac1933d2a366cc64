"""Position embeddings: what the model knows of a patch's place, and how tables are resized."""

import numpy as np
import pytest
from equations import random_params, tiny

from vit_jax.models.positions import RESIZES, resize


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


def test_only_the_positions_tell_where_a_patch_is(images):
    """Without them the class token can't see a permutation of the patches; with them it can."""
    model = tiny()
    params = random_params(model, images)
    turned = images[:, ::-1, ::-1].reshape(2, 3, 4, 2, 4, 3)[:, :, ::-1, :, ::-1]
    turned = turned.reshape(images.shape)  # the patches in reverse order, each as it was

    def difference():
        logits = (model.apply({"params": params}, x) for x in (images, turned))
        return np.abs(np.subtract(*logits)).max()

    assert difference() > 1e-2
    params["Transformer"]["posembed_input"]["pos_embedding"] *= 0
    assert difference() < 1e-5


def test_resizing_by_a_method_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="called 'nearest': linear or cubic"):
        resize(np.zeros((2, 2), np.float32), (3, 3), "nearest")


@pytest.mark.parametrize("method", RESIZES)
def test_a_ramp_is_resized_to_a_ramp(method):
    """By hand: linear with aligned corners; cubic with samples at the centres of their cells."""
    ramp = np.arange(8, dtype=np.float32)
    found = resize(ramp, (15,), method)
    assert found.shape == (15,) and found.dtype == np.float32
    expected = {"linear": np.arange(15) / 2, "cubic": (np.arange(15) + 0.5) * 8 / 15 - 0.5}[method]
    inner = slice(None) if method == "linear" else slice(4, -4)  # edges bend the cubic one
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-5)
