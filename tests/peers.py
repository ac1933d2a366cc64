"""The libraries that logits are compared with; tests that import this are skipped without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.machine import import_torchvision
from vit_jax.models.params import parameter_shapes

torch = pytest.importorskip("torch")

import_torchvision()


def random_images(size=(224, 224), seed=0):
    """Two images (2, h, w, 3) in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def random_params(model, size=(224, 224), seed=0):
    """Parameters of which none is zero and all are of a size that activations stay moderate.

    Kernels are of variance 1 / fan-in, scales near 1, everything else near 0."""
    rng = np.random.default_rng(seed)

    def one(path, x):
        name = path[-1].key
        deviation = 0.1
        if name == "kernel":
            fan_in = np.prod(x.shape[:-1])
            if path[-2].key in ("query", "key", "value"):
                fan_in = x.shape[0]
            deviation = fan_in**-0.5
        return (rng.normal(0, deviation, x.shape) + (name == "scale")).astype(np.float32)

    return jax.tree.map_with_path(one, parameter_shapes(model, size))


def randomise(module, seed=0):
    """Adds noise to a PyTorch module's parameters, so that none is still at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def torch_logits(module, images):
    with torch.no_grad():
        found = module(torch.tensor(images).permute(0, 3, 1, 2))
    for name in ("logits", "pooler_output"):
        found = getattr(found, name, found)
    return found.numpy()


def our_logits(model, params, images):
    return np.asarray(jax.jit(model.apply)({"params": params}, jnp.asarray(images)))


def assert_close(found, expected):
    """Within 1e-4 of the largest logit, and not by being all alike."""
    assert expected.std() > 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
