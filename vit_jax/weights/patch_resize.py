"""Patch embeddings for patches of another size (FlexiViT: Beyer et al., arXiv 2212.08013)."""

from __future__ import annotations

import jax
import numpy as np


def resize_kernel(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel of a patch embedding, resized for patches of another size; float32.

    With B the matrix that resizes a patch, the new kernel is the pseudo-inverse of B's transpose,
    applied to the old one (equation 3 of the paper). If patches get larger, the embedding of a
    resized patch equals that of the patch itself. If they get smaller, it is as near to that as a
    kernel of the new size can be, on average over patches of white noise.

    B is bilinear, and its filter isn't widened where patches get smaller (no antialiasing), as in
    big_vision: the published FlexiViTs were trained so, and timm reads them so. PyTorch's
    antialiased and bicubic resizes give other kernels.

    Args:
      kernel: (height, width, 3, d), float.
      shape: the new shape, of which height and width may differ from those of `kernel`.

    Example:
      >>> resize_kernel(np.ones((8, 8, 3, 192), np.float32), (16, 16, 3, 192)).shape
      (16, 16, 3, 192)
    """
    kernel = np.asarray(kernel)
    # B is the Kronecker product of a matrix for rows and one for columns; so is its pseudo-inverse.
    rows, columns = (_inverse(kernel.shape[axis], shape[axis]) for axis in (0, 1))
    return np.einsum("ah,bw,hwcd->abcd", rows, columns, kernel, optimize=True).astype(np.float32)


def _inverse(old: int, new: int) -> np.ndarray:
    """Returns the matrix (new, old) that changes a kernel along one axis, float64."""
    resize = jax.image.resize(np.eye(old), (new, old), "linear", antialias=False)
    return np.linalg.pinv(np.asarray(resize, np.float64).T)
