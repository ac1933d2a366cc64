"""The table of attributes against the modules, the configuration and what the attributes do."""

import dataclasses

import jax
import numpy as np
import pytest
from equations import random_params, tiny

from vit_jax import models
from vit_jax.config.defaults import default
from vit_jax.models import attributes
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import VisionTransformer

# Another value than the default of each attribute of a ViT that isn't of kind "size".
OTHER_VALUES = {
    "positions": "2d",
    "positions_at": "layers",
    "class_tokens": 2,
    "registers": 2,
    "patch_norm": True,
    "pre_norm": True,
    "final_norm": "none",
    "norm": "rms",
    "mlp": "swiglu",
    "pool": "gap",
    "gelu": "exact",
    "norm_epsilon": 1e-3,
    "crop_to_patches": True,
    "dropout": 0.5,
    "stochastic_depth": 0.5,
    "projection": 7,
    "pre_logits": True,
    "head_bias": -10.0,
    "remat": "full",
    "scan": True,
    "implementation": "plain",
    "residual_dtype": "bfloat16",
    "lora_rank": 2,
    "lora_alpha": 4.0,
}


def test_the_table_has_every_attribute_of_the_modules_and_of_the_configuration():
    fields = {f.name for module in (VisionTransformer, ResNet) for f in dataclasses.fields(module)}
    assert fields - {"num_classes", "dtype", "parent", "name"} == set(attributes.ATTRIBUTES)
    assert set(default().model) - {"variant"} == set(attributes.ATTRIBUTES)


def test_every_attribute_is_of_one_kind():
    kinds = ("size", "weights", "mathematics", "run", "device")
    assert attributes.names(*kinds) == tuple(attributes.ATTRIBUTES)
    assert sum(len(attributes.names(kind)) for kind in kinds) == len(attributes.ATTRIBUTES)
    assert attributes.names("weights")[-2:] == ("positions", "positions_at")
    assert attributes.names("device", "mathematics")[:2] == ("pool", "gelu")
    rows = {name for row in models.VARIANTS.values() for name in row}
    assert rows - {"pool"} <= set(attributes.names("size"))  # what makes a variant


def test_selections_by_kind():
    chosen = {"variant": "B/16", "depth": 2, "pool": "gap", "scan": True}
    assert attributes.of_kind(chosen, "size", "device") == {"depth": 2, "scan": True}
    assert attributes.without(chosen, "size", "device") == {"variant": "B/16", "pool": "gap"}
    assert attributes.of_kind(chosen, "run") == {}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_an_attribute_does_what_its_kind_says(rng, name):
    """Parameters differ for "weights", results in evaluation for "mathematics", none for others."""
    images = rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)
    options, rounding = {}, 1e-5
    if name == "residual_dtype":  # is for bfloat16
        options, rounding = {"dtype": "bfloat16"}, 0.02
    model, other = tiny(**options), tiny(**{name: OTHER_VALUES[name], **options})
    if name == "crop_to_patches":  # images that only one of the models takes
        rest = rng.uniform(-1, 1, (2, 13, 11, 3)).astype(np.float32)
        params = random_params(model, images)
        assert attributes.ATTRIBUTES[name].kind == "mathematics"
        assert other.apply({"params": params}, rest).shape == (2, 5)
        with pytest.raises(ValueError, match="can't be cut"):
            model.apply({"params": params}, rest)
        return
    kind = attributes.ATTRIBUTES[name].kind
    params, others = random_params(model, images), random_params(other, images)
    same_tree = jax.tree.map(np.shape, params) == jax.tree.map(np.shape, others)
    if name in ("pool", "projection", "pre_logits", "lora_rank"):  # have parameters to themselves
        assert kind in ("mathematics", "run") and not same_tree
        return
    assert same_tree == (kind != "weights")
    if same_tree:
        found, expected = (m.apply({"params": params}, images) for m in (other, model))
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        assert (difference > rounding) == (kind == "mathematics")


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        ("depth", [1], [0, -1, 1.0, True, "1", None], "depth=0 must be a whole number above 0"),
        ("patch_size", [4, (4, 6)], [0, (4,), (4, 0)], "patch_size=0 must be one side or two"),
        ("stem", [None, (), (3, 4)], [3, (0,)], "stem=3 must be numbers of units, or None"),
        ("layers", [(1,)], [(), None], "layers=() must be numbers of units"),
        ("registers", [0, 4], [-1, 0.0, False, None], "registers=-1 must be a whole number of a"),
        ("class_tokens", [None, 0, 2], [-1, True], "must be a whole number of at least 0, or No"),
        ("final_norm", ["before_pool", "after_pool", "none"], [None], "unknown: 'before_pool' or"),
        ("axial", [True, False], [1, None], "axial=1 must be True or False"),
        (
            "head_bias",
            [0, -10.0],
            [None, True, float("inf"), 10**400],
            "=None must be a finite number",
        ),
        ("dropout", [0, 0.5], [1, -0.1, False], "dropout=1 must be a number in [0, 1)"),
        ("kernel_epsilon", [None, 1e-8], [2], "kernel_epsilon=2 must be a number in [0, 1), or No"),
        ("lora_rank", [0, 8], [-1, 8.0, True, None], "lora_rank=-1 must be a whole number of at l"),
        (
            "lora_alpha",
            [None, 0.5, 16],
            [0, -1.0, True],
            "lora_alpha=0 must be a number above 0, o",
        ),
        ("positions_at", ["stem", "layers", "shared"], ["top"], "positions_at='top' is unknown: "),
        ("remat", ["none", "dots", "full"], [None, "all"], "remat=None is unknown: 'none' or 'do"),
        ("implementation", [None, "plain"], ["fast"], "'fast' is unknown: None or 'plain' or"),
    ],
)
def test_values_are_checked(name, right, wrong, message):
    for value in right:
        attributes.check({name: value, "variant": "B/16"})
    errors = []
    for value in wrong:
        with pytest.raises(ValueError) as error:
            attributes.check({name: value})
        errors.append(str(error.value))
    assert message in errors[0]
    assert all(
        error.startswith(f"{name}={value!r} ") for error, value in zip(errors, wrong, strict=True)
    )
