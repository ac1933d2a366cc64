"""Patch embeddings of another size: NumPy's least squares, and timm where it is installed."""

import jax
import numpy as np
import pytest
from tiny_weights import VIT, random_params

from vit_jax.weights.api import adapt, load, save_params
from vit_jax.weights.patch_resize import resize_kernel

rng = np.random.default_rng(0)
SIZES = [((8, 8), (16, 16)), ((32, 32), (16, 16)), ((7, 5), (9, 11)), ((16, 16), (14, 12))]


def resized(patch, shape):
    """A patch (h, w), resized bilinearly: each pixel from the nearest two in each direction."""
    for axis, new in enumerate(shape):
        old = patch.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(np.floor(at).astype(int), old - 2)
        part = (at - low).reshape([-1 if a == axis else 1 for a in (0, 1)])
        patch = np.take(patch, low, axis) * (1 - part) + np.take(patch, low + 1, axis) * part
    return patch


def matrix(old, new):
    """The matrix (new pixels, old pixels) of `resized`."""
    basis = np.eye(old[0] * old[1]).reshape(-1, *old)
    return np.stack([resized(patch, new).reshape(-1) for patch in basis], axis=1)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_the_new_kernel_is_the_least_squares_solution(old, new):
    kernel = rng.normal(size=(*old, 3, 5)).astype(np.float32)
    found = resize_kernel(kernel, (*new, 3, 5))
    assert found.dtype == np.float32
    by_pixel = kernel.reshape(old[0] * old[1], -1)
    expected = np.linalg.lstsq(matrix(old, new).T, by_pixel, rcond=None)[0]
    np.testing.assert_allclose(found.reshape(-1, 15), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("old", "new"), [SIZES[0], SIZES[2]])
def test_larger_patches_have_the_same_embeddings(old, new):
    kernel = rng.normal(size=(*old, 1, 5))
    patch = rng.normal(size=old)
    embedding = np.einsum("hw,hwcd->d", patch, kernel)
    found = np.einsum("hw,hwcd->d", resized(patch, new), resize_kernel(kernel, (*new, 1, 5)))
    np.testing.assert_allclose(found, embedding, atol=1e-5 * np.abs(embedding).max())


@pytest.mark.peers
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_timm_resizes_so_for_big_visions_files(old, new):
    pytest.importorskip("timm")
    from peers import torch
    from timm.layers.patch_embed import resample_patch_embed

    kernel = rng.normal(size=(*old, 3, 5)).astype(np.float32)
    theirs = resample_patch_embed(
        torch.tensor(kernel.transpose(3, 2, 0, 1)), new, interpolation="bilinear", antialias=False
    )
    found = resize_kernel(kernel, (*new, 3, 5)).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(found, theirs, atol=1e-5 * np.abs(found).max())


def test_a_loaded_model_takes_larger_patches(tmp_path):
    """Images of twice the size give the same representation, if each pixel is there four times."""
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / "x.npz", variant="B/16", **VIT)
    small = load(tmp_path / "x.npz")
    large = load(tmp_path / "x.npz", patch_size=16, image_size=64)
    assert large.model().patch_size == 16 and large.grid == small.grid == (4, 4)
    images = rng.uniform(-1, 1, (2, 4, 8, 4, 8, 3))  # rows, pixels, columns, pixels
    patches = images.transpose(0, 1, 3, 5, 2, 4)
    doubled = np.array([resized(p, (16, 16)) for p in patches.reshape(-1, 8, 8)])
    doubled = doubled.reshape(2, 4, 4, 3, 16, 16).transpose(0, 1, 4, 2, 5, 3)
    outputs = [
        checkpoint.model().apply({"params": jax.tree.map(np.asarray, checkpoint.params)}, x)
        for checkpoint, x in (
            (small, images.reshape(2, 32, 32, 3)),
            (large, doubled.reshape(2, 64, 64, 3)),
            (adapt(small, patch_size=16, image_size=64), doubled.reshape(2, 64, 64, 3)),
        )
    ]
    for found in outputs[1:]:
        np.testing.assert_allclose(found, outputs[0], atol=1e-4 * np.abs(outputs[0]).max())
