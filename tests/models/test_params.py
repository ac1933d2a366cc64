"""Shapes of parameters, their number, and messages on trees that differ."""

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.models.params import check_same, count_parameters, parameter_shapes


def test_shapes_are_those_of_real_parameters():
    model = models.build("Nano/8", num_classes=3)
    params = model.init(jax.random.key(0), np.zeros((1, 16, 24, 3)))["params"]
    found = parameter_shapes(model, (16, 24))
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, params)
    assert count_parameters(found) == sum(np.size(x) for x in jax.tree.leaves(params))


def test_every_difference_is_named_at_once():
    wanted = {"head": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}, "cls": np.zeros((1, 1, 3))}
    check_same(wanted, wanted, "FILE")
    found = {"head": {"kernel": np.zeros((2, 3)), "bias": np.zeros(4)}, "clss": np.zeros((1, 1, 3))}
    with pytest.raises(ValueError) as error:
        check_same(found, wanted, "FILE")
    assert str(error.value) == (
        "FILE doesn't fit the model: cls is missing; clss is not in the model (did you mean "
        "'cls'?); head/kernel has the shape (2, 3), the model's is (3, 2) (transposed?); head/bias "
        "has the shape (4,), the model's is (2,)."
    )


def test_shapes_are_remembered_and_each_caller_has_its_own():
    model = models.build("Nano/8", num_classes=3)
    found = parameter_shapes(model, 16)
    del found["head"]
    assert "head" in parameter_shapes(model, 16)
    of_list, of_tuple = (model.clone(patch_size=sides) for sides in ([4, 8], (4, 8)))
    assert parameter_shapes(of_list, 16) == parameter_shapes(of_tuple, 16)
    assert parameter_shapes(of_tuple, 16) != parameter_shapes(model, 16)
