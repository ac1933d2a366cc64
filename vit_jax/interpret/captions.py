"""What a reader sees in each kind of picture, in words: for the report and for the page."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.messages import first_few
from vit_jax.inference.classifier import Prediction, require_image_shape
from vit_jax.interpret.filters import Filters
from vit_jax.models.resnet import ResNet
from vit_jax.weights.summary import describe

_NAMED = 10  # classes that are named


def describe_model(checkpoint: Checkpoint) -> str:
    """Returns two sentences: a model's size and classes, and how it cuts an image."""
    model, names = checkpoint.model(), checkpoint.class_names
    rows, columns = model.grid(require_image_shape(checkpoint))
    if isinstance(model, ResNet):
        parts = f"Its last feature map has {rows} x {columns} places."
    else:
        parts = (
            f"It sees {rows} x {columns} patches of {model.stride[0]} x {model.stride[1]} pixels "
            f"with {model.num_heads} heads in each of {model.depth} blocks."
        )
    named = f", for {first_few(names, _NAMED)}" if names else ""
    return f"{describe(checkpoint)}{named}. {parts}"


def about_answer(answer: Sequence[Prediction], folder: str | None, right: bool | None) -> str:
    """Returns the likeliest classes of an image, and whether the first is the true one.

    Args:
      answer: the likeliest classes; none of a model without a head.
      folder: the name of the image's folder. None if folders don't say the true class.
      right: whether the likeliest class is the true one. None if this is not known.
    """
    text = ", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in answer)
    if folder is None:
        return text
    if right is None:
        return f"{text}. Its folder, {folder}, is no class of the model."
    return f"{text}. {'Right' if right else 'Wrong'}: the true class is {folder}."


def about_rollout(model: nn.Module) -> str:
    """Returns a caption for attention rollouts of a model."""
    return (
        f"Attention rollout, as in figures 6 and 14 of the paper: the attention of all layers, "
        f"multiplied from the {_output(model)} back to the pixels (appendix D.8). The brighter a "
        f"place, the more it contributes."
    )


def about_heads(model: nn.Module) -> str:
    """Returns a caption for the attention of a model's single heads."""
    axial = " A block of axial attention is two layers, along rows and along columns."
    return (
        f"The attention of the {_output(model)} to each patch, head by head: rollout averages and "
        f"multiplies these. Some heads read a few patches, others all of an object, or what "
        f"surrounds it. Brightness is scaled anew for each map.{axial if model.axial else ''}"
    )


def _output(model: nn.Module) -> str:
    token = "class token" if model.num_class_tokens == 1 else "class tokens"
    return {
        "token": token,
        "gap": "mean of the patches",
        "token+gap": f"{token} and the mean of the patches",
        "map": "query of the attention pooling",
    }[model.pool]


def about_class_maps(grid: tuple[int, int]) -> str:
    """Returns a caption for class maps of a ResNet; its last feature map has (rows, columns)."""
    rows, columns = grid
    return (
        f"A ResNet has no attention to show. These are class maps, based on gradients (Grad-CAM): "
        f"the channels of the last feature map, of {rows} x {columns} places, weighted by how much "
        f"each raises the likeliest class's logit. The brighter a place, the more it speaks for "
        f"the class."
    )


def about_filters(filters: Filters) -> str:
    """Returns a caption for the filters of the first layer."""
    count, height, width = filters.images.shape[:3]
    if filters.shares is None:
        return (
            f"The {count} filters of the root convolution, {height} x {width} pixels each, "
            f"standardised as they are used. Grey is zero. A hybrid or a ResNet has them in the "
            f"place of the paper's figure 7 (left)."
        )
    return (
        f"The first {count} principal components of the filters that embed a patch of "
        f"{height} x {width} pixels (figure 7 left of the paper). They explain "
        f"{100 * filters.shares.sum():.0f} % of the filters' variance, the first alone "
        f"{100 * filters.shares[0]:.0f} %. Grey is zero. After long pre-training they resemble a "
        f"basis for the structure within a patch; noise is left where training was too short."
    )


def about_positions(grid: tuple[int, int]) -> str:
    """Returns a caption for the similarity of position embeddings, of (rows, columns) patches."""
    return (
        f"Each small map is one patch of the {grid[0]} x {grid[1]} grid: the cosine similarity "
        f"of its position embedding to those of all patches (figure 7 centre of the paper). "
        f"Where brightness falls off with the distance from the patch's own place, the model has "
        f"learned which patches are close. After long pre-training, rows and columns show, too."
    )


def about_distances(
    distances: np.ndarray, uniform: float, images: int, image_shape: Sequence[int]
) -> str:
    """Returns a caption for mean attention distances.

    Args:
      distances: the distances of all heads, in pixels.
      uniform: the distance of attention to all patches alike, in pixels.
      images: number of images that they are averaged over.
      image_shape: (h, w) in pixels.
    """
    height, width = image_shape
    return (
        f"How far each head looks, in each layer, over {images} images of {height} x {width} "
        f"pixels (figures 7 right and 11 of the paper): from {distances.min():.1f} to "
        f"{distances.max():.1f} pixels. The dotted line, {uniform:.1f} pixels, is attention to all "
        f"patches alike. Heads far below it attend locally, as convolutions do."
    )
