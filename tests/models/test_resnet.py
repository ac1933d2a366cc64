"""BiT ResNets against their equations in NumPy."""

import jax
import numpy as np
import pytest
from equations import numpy_resnet, random_params

from vit_jax import models


@pytest.mark.parametrize("axial", [False, True])
def test_resnets_equal_their_equations(rng, axial):
    options = dict(layers=(2, 1), axial=axial)
    model = models.build("R50x1", num_classes=5, **options)
    images = rng.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    params = jax.tree.map(lambda x: x / 4, random_params(model, images))
    found = jax.jit(model.apply)({"params": params}, images)
    expected = numpy_resnet(params, images, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
