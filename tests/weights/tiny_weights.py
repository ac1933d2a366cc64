"""Parameters of tiny models, files with them, and how trees are compared."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.models.params import parameter_shapes
from vit_jax.weights.api import save_params

SIZES = dict(width=24, depth=2, mlp_dim=32, num_heads=2)
VIT, STEM = dict(SIZES, patch_size=8), dict(SIZES, patch_size=1)
ENDINGS = {"npz": "x.npz", "timm": "x.safetensors", "hf": "x", "orbax": "x"}


def random_params(variant, image=(32, 32), num_classes=3, seed=0, **options):
    """Returns a tree of random parameters for images of 32 x 32 pixels."""
    model = models.build(variant, num_classes=num_classes, **options)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(model, image)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def assert_same(found, expected):
    """Asserts that two trees have the same names and, in float32, the same values."""
    found, expected = (flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


def published(tmp_path, variant="B/16", options=VIT, **more):
    """Writes `published.npz`; returns its arrays by name, and the parameters in it."""
    params = random_params(variant, **options, **more)
    said = {k: v for k, v in {**options, **more}.items() if k != "num_classes"}
    save_params(params, tmp_path / "published.npz", variant=variant, format="npz", **said)
    with np.load(tmp_path / "published.npz") as file:
        return dict(file), params
