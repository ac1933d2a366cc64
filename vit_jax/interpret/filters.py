"""filters"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.models.positions import absolute_positions


class Filters(NamedTuple):
    """Filters that read pixels.

    Attributes:
      images: (m, height, width, 3) float32, of any sign.
      shares: (m,) the share of the filters' variance each principal component explains; None
        where `images` are the filters themselves.
    """

    images: np.ndarray
    shares: np.ndarray | None


def filters(params: Any, components: int = 28) -> Filters:
    """Returns what the first layer responds to (paper figure 7 left).

    Of a ViT these are the principal components of the d embedding filters, each of patch size,
    with most of the variance first; a component's sign means nothing, and is set so that the
    value of largest magnitude is positive. Of a hybrid or ResNet: the standardised filters of
    its root.

    Args:
      components: m, at most.
    """
    if "conv_root" in params:
        kernel = np.asarray(params["conv_root"]["kernel"], np.float32)  # (7, 7, 3, m)
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        return Filters(np.moveaxis(kernel, -1, 0), None)
    kernel = np.asarray(params["embedding"]["kernel"], np.float32)  # (height, width, 3, d)
    flat = kernel.reshape(-1, kernel.shape[-1]).T  # (d, pixels)
    _, deviations, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    variances = np.square(deviations)
    peaks = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1)
    images = (axes * np.sign(peaks))[:components].reshape(-1, *kernel.shape[:3])
    return Filters(images, (variances / variances.sum())[:components])


def position_similarity(model: nn.Module, params: Any, grid: tuple[int, int]) -> np.ndarray | None:
    """Returns the cosine similarities of the patches' position embeddings (paper figure 7 centre).

    (rows, columns, rows, columns) float32: entry [r, c] is a map of the similarity of that
    patch's embedding to all others. Where every layer has its own, those of the first. None for
    models without one embedding for each patch: relative or no positions, and ResNets.

    Args:
      grid: (rows, columns) of the patches.
    """
    table = absolute_positions(getattr(model, "positions", "none"), grid)
    if table is None:
        return None
    stored = params["Transformer"]
    place = "posembed_0" if model.positions_at == "layers" else "posembed_input"
    tokens = grid[0] * grid[1] + (model.pool == "token")
    nothing = jnp.zeros((1, tokens, model.width))
    added = table().apply({"params": stored.get(place, {})}, nothing)[0, -grid[0] * grid[1] :]
    unit = added / jnp.linalg.norm(added, axis=-1, keepdims=True)
    return np.asarray(unit @ unit.T).reshape(*grid, *grid)
