"""Draws figures of what a model sees into files.

Matplotlib is imported in the functions that draw with it: its import takes a second.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import IO, Any

import cv2
import numpy as np

Target = str | os.PathLike | IO[bytes]  # a path, .png or .svg, or a file that is open for writing


def overlay(photo: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns a photo with a map laid over it, dark where it is lowest and bright where highest.

    Args:
      photo: uint8 (h, w, 3).
      values: (rows, columns) of any range. They are resized smoothly to the whole photo.

    Returns:
      uint8 (h, w, 3).
    """
    from matplotlib import colormaps

    scaled = (values - values.min()) / (np.ptp(values) or 1.0)
    smooth = cv2.resize(
        scaled.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_CUBIC
    )
    heat = 255 * colormaps["inferno"](smooth.clip(0, 1))[..., :3]
    return (0.45 * photo + 0.55 * heat).astype(np.uint8)


def photo_shape(image_shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns (h, w) in the proportions of `image_shape`, the shorter of them `side` pixels."""
    height, width = image_shape
    scale = side / min(height, width)
    return round(scale * height), round(scale * width)


def side_by_side(photo: np.ndarray, values: np.ndarray, target: Target) -> None:
    """Draws a photo, and beside it the photo with a map laid over it (paper figures 6 and 14).

    Args:
      photo: uint8 (h, w, 3).
      values: (rows, columns), such as `attention.rollout` returns for one image.
      target: where the figure is written.
    """
    gap = np.full((len(photo), 8, 3), 255, np.uint8)
    pixels = np.concatenate([photo, gap, overlay(photo, values)], axis=1)
    _, encoded = cv2.imencode(".png", pixels[..., ::-1])
    if hasattr(target, "write"):
        target.write(encoded.tobytes())
    else:
        pathlib.Path(target).write_bytes(encoded.tobytes())


def heads(photo: np.ndarray, maps: Mapping[int, np.ndarray], target: Target) -> None:
    """Draws a photo, and beside it the attention of every head of some layers, a row for each.

    Args:
      photo: uint8 (h, w, 3).
      maps: {number of the layer: (k, rows, columns)}, each head's attention to the patches. Each
        map has its own colour scale.
      target: where the figure is written.
    """
    rows, columns = len(maps), len(next(iter(maps.values())))
    wide = min(rows, 2)  # columns that the photo takes
    figure = new_figure(0.6 + 1.1 * (wide + columns), 0.3 + 1.1 * rows)
    grid = figure.add_gridspec(rows, wide + columns)
    left = figure.add_subplot(grid[:, :wide])
    left.imshow(photo)
    _remove_frame(left)
    for row, (layer, layer_maps) in enumerate(maps.items()):
        for head, values in enumerate(layer_maps):
            ax = figure.add_subplot(grid[row, wide + head])
            ax.imshow(values, cmap="inferno")
            _remove_frame(ax)
            if row == 0:
                ax.set_title(f"head {head + 1}", fontsize=8)
            if head == 0:
                ax.set_ylabel(f"layer {layer}", fontsize=8)
    figure.savefig(target, dpi=110)


def filters(images: np.ndarray, target: Target) -> None:
    """Draws filters in colour; mid-grey is zero (paper figure 7 left).

    Args:
      images: (m, height, width, 3) of any range. Each is scaled by its largest magnitude.
      target: where the figure is written.
    """
    columns = min(len(images), 14 if len(images) <= 28 else 16)
    rows = -(-len(images) // columns)
    figure = new_figure(0.55 * columns, 0.55 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, image in zip(axes, images, strict=False):
        ax.imshow(0.5 + 0.5 * image / (np.abs(image).max() or 1.0))
    figure.savefig(target, dpi=110)


def position_similarity(similarity: np.ndarray, target: Target, most: int = 8) -> None:
    """Draws the similarity of each patch's position embedding to all others (figure 7 centre).

    Args:
      similarity: (rows, columns, rows, columns), see `filters.position_similarity`.
      target: where the figure is written.
      most: largest number of rows and of columns of patches that are drawn. In a larger grid, every
        second or third patch is drawn.
    """
    step = -(-max(similarity.shape[:2]) // most)
    shown = similarity[::step, ::step]
    rows, columns = shown.shape[:2]
    figure = new_figure(0.7 * columns + 1.2, 0.7 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, j in np.ndindex(rows, columns):
        drawn = axes[i, j].imshow(shown[i, j], vmin=-1, vmax=1, cmap="viridis")
        _remove_frame(axes[i, j])
    for i in range(rows):
        axes[i, 0].set_ylabel(i * step + 1, fontsize=8)
    for j in range(columns):
        axes[-1, j].set_xlabel(j * step + 1, fontsize=8)
    figure.supylabel("row of the patch", fontsize=9)
    figure.supxlabel("column of the patch", fontsize=9)
    figure.colorbar(drawn, ax=axes, label="cosine similarity", shrink=0.9)
    figure.savefig(target, dpi=110)


def attention_distances(distances: np.ndarray, uniform: float, target: Target) -> None:
    """Draws the mean attention distance of each head over the depth (figures 7 right and 11).

    Args:
      distances: (layers, k) in pixels.
      uniform: the distance of attention to all patches alike, in pixels; it is a dotted line.
      target: where the figure is written.
    """
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    layers = np.arange(1, len(distances) + 1)
    for head, column in enumerate(distances.T):
        axes.scatter(layers, column, s=16, label=f"head {head + 1}")
    axes.axhline(uniform, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="layer", ylabel="mean attention distance, pixels", xticks=layers)
    axes.set_ylim(0, 1.1 * max(uniform, distances.max()))
    axes.grid(alpha=0.3)
    if distances.shape[1] <= 6:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(target, dpi=110)


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of Matplotlib; its size is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _remove_frame(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
