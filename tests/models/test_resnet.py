"""BiT ResNets against their equations in NumPy."""

import jax
import numpy as np
import pytest
from equations import numpy_resnet, random_params

from vit_jax import models
from vit_jax.models.resnet import bit_norm


@pytest.mark.parametrize("axial", [False, True])
def test_resnets_equal_their_equations(rng, axial):
    options = dict(layers=(2, 1), axial=axial)
    model = models.build("R50x1", num_classes=5, **options)
    images = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    params = jax.tree.map(lambda x: x / 4, random_params(model, images))
    found = jax.jit(model.apply)({"params": params}, images)
    expected = numpy_resnet(params, images, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mean", [0, 10, 100])
def test_group_norm_keeps_its_digits_where_the_mean_is_large(rng, mean):
    """Against float64; E[x^2] - E[x]^2 in float32 would err by 0.01 at a mean of 100 deviations."""
    x = (mean + rng.normal(size=(2, 5, 4, 64))).astype(np.float32)
    norm = bit_norm()
    found = norm.apply(norm.init(jax.random.key(0), x), x)
    groups = x.astype(np.float64).reshape(2, 20, 32, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=2e-4)
