"""What a model has learned: the filters of its first layer, and its position embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.models.positions import absolute_positions


class Filters(NamedTuple):
    """Filters of pixels.

    Attributes:
      images: (m, height, width, 3) float32, of any sign.
      shares: (m,), the share of the filters' variance that each principal component explains. None
        if `images` are the filters themselves.
    """

    images: np.ndarray
    shares: np.ndarray | None


def first_layer_filters(params: Any, components: int = 28) -> Filters:
    """Returns the filters of the first layer (paper figure 7 left).

    For a ViT, they are the principal components of the d embedding filters, each as large as a
    patch, or of the filters that a `ConvStem` begins with. Those that explain most of the variance
    come first. The sign of a component means nothing: it is set so that the value of largest
    magnitude is positive. For a hybrid or a ResNet, they are the standardised filters of its root
    convolution.

    Args:
      params: the parameters of any model.
      components: largest number of principal components, m.
    """
    if "conv_root" in params:
        kernel = np.asarray(params["conv_root"]["kernel"], np.float32)  # (7, 7, 3, m)
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
        return Filters(np.moveaxis(kernel, -1, 0), None)
    first = params["conv_stem"]["conv_0"] if "conv_stem" in params else params["embedding"]
    kernel = np.asarray(first["kernel"], np.float32)  # (height, width, 3, d)
    flat = kernel.reshape(-1, kernel.shape[-1]).T  # (d, pixels)
    _, deviations, axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    variances = np.square(deviations)
    peaks = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1)
    images = (axes * np.sign(peaks))[:components].reshape(-1, *kernel.shape[:3])
    return Filters(images, (variances / variances.sum())[:components])


def position_similarity(model: nn.Module, params: Any, grid: tuple[int, int]) -> np.ndarray | None:
    """Returns the cosine similarities of the patches' position embeddings (paper figure 7 centre).

    Args:
      model: any model.
      params: its parameters.
      grid: (rows, columns) of the patches.

    Returns:
      float32 (rows, columns, rows, columns): entry [r, c] is a map of the similarity of that
      patch's embedding to those of all patches. If every layer has its own embeddings, they are
      the first layer's. None if the model has no embedding for each patch: with relative positions
      or none, and for a ResNet.
    """
    table = absolute_positions(getattr(model, "positions", "none"), grid)
    if table is None:
        return None
    stored = params["Transformer"]
    place = "posembed_0" if model.positions_at == "layers" else "posembed_input"
    tokens = grid[0] * grid[1] + model.num_class_tokens
    zeros = jnp.zeros((1, tokens, model.width))
    table_of_tokens: Any = table().apply({"params": stored.get(place, {})}, zeros)
    added = table_of_tokens[0, -grid[0] * grid[1] :]
    unit = added / jnp.linalg.norm(added, axis=-1, keepdims=True)
    return np.asarray(unit @ unit.T).reshape(*grid, *grid)
