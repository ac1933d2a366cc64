"""A report on a model and on what it sees in some images: pictures, and one page with them all."""

from __future__ import annotations

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.inference.classifier import (
    Classifier,
    Prediction,
    prepare,
    read_image,
    require_image_shape,
    view_image,
)
from vit_jax.interpret import captions, figures
from vit_jax.interpret.attention import attention_distances, attention_maps, rollout_and_heads
from vit_jax.interpret.class_maps import grad_cam
from vit_jax.interpret.filters import first_layer_filters, position_similarity
from vit_jax.models.resnet import ResNet

_SIDE = 288  # pixels of a photo's shorter side
_TOP = 3  # classes that are named under a photo


class Picture(NamedTuple):
    """One picture of the report.

    Attributes:
      file: its name in the report's folder.
      title: what it shows.
      caption: what a reader sees in it.
    """

    file: str
    title: str
    caption: str = ""


class Section(NamedTuple):
    """Pictures of one kind, below a title and a text about them all."""

    title: str
    text: str
    pictures: list[Picture]


class _Photo(NamedTuple):
    """An image of the report.

    Attributes:
      name: the name of its file.
      stem: how the names of its pictures begin.
      view: the part that the model sees, in the model's size: uint8 (h, w, 3).
      large: the same part, larger.
      classes: the likeliest, as text; "" of a model without a head.
    """

    name: str
    stem: str
    view: np.ndarray
    large: np.ndarray
    classes: str


def write_report(
    checkpoint: Checkpoint,
    images: Sequence[str],
    out: str | pathlib.Path,
    *,
    shown: int = 24,
    sample: int = 128,
    layers: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
) -> pathlib.Path:
    """Writes a report on a model and on what it sees in some images.

    Args:
      checkpoint: what `weights.api.load` returns, of any model.
      images: paths.
      out: the report's folder. It is made if it does not exist.
      shown: most images that get pictures. Of more, this number is taken at equal intervals.
      sample: most images that the attention distances are averaged over, taken likewise.
      layers: numbers of the layers whose heads are shown, counted from 1. None for the first,
        middle and last. A block of axial attention is two layers.
      image_size: pixels, a side or (h, w). None for the checkpoint's own.

    Returns:
      The path of index.html.

    Raises:
      ValueError: an image can't be read, there is no such layer, or see `classifier.prepare`.
      OSError: `out` can't be written.
    """
    checkpoint = prepare(checkpoint, image_size)
    model, out = checkpoint.model(), pathlib.Path(out)
    chosen = [] if isinstance(model, ResNet) else _check_layers(model, layers)
    photos = _read_photos(checkpoint, _at_equal_intervals(images, shown))
    out.mkdir(parents=True, exist_ok=True)
    learned, sections = [_draw_filters(checkpoint, out)], []
    if not isinstance(model, ResNet):
        sections += _draw_attention(checkpoint, photos, chosen, out)
        learned += _draw_positions(checkpoint, out)
        learned.append(_draw_distances(checkpoint, _at_equal_intervals(images, sample), out))
    elif checkpoint.num_classes:
        sections.append(_draw_class_maps(checkpoint, photos, out))
    sections.append(Section("What it has learned", "", learned))
    page = out / "index.html"
    page.write_text(_page(checkpoint, sections, out), encoding="utf-8")
    return page


def _check_layers(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    depth = model.depth * (2 if model.axial else 1)
    if layers is None:
        return sorted({1, (depth + 1) // 2, depth})
    if missing := [layer for layer in layers if not 1 <= layer <= depth]:
        raise ValueError(f"There is no layer {missing[0]}: the model has layers 1 to {depth}.")
    return sorted(set(layers))


def _at_equal_intervals(items: Sequence[Any], most: int) -> list[Any]:
    """Returns all items, or `most` of them at equal intervals."""
    return [items[i * len(items) // most] for i in range(most)] if most < len(items) else [*items]


def _read_photos(checkpoint: Checkpoint, paths: Sequence[str]) -> list[_Photo]:
    large_shape = figures.photo_shape(require_image_shape(checkpoint), _SIDE)
    images = [read_image(path) for path in paths]
    answers: list[list[Prediction]] = [[] for _ in images]
    if checkpoint.num_classes:
        answers = Classifier(checkpoint).predict(images, _TOP)
    photos = []
    for number, (path, image, answer) in enumerate(zip(paths, images, answers, strict=True), 1):
        photos.append(
            _Photo(
                name=pathlib.Path(path).name,
                stem=f"{number:03d}-{pathlib.Path(path).stem}",
                view=view_image(image, checkpoint),
                large=view_image(image, checkpoint, large_shape),
                classes=", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in answer),
            )
        )
    return photos


_LEFT_AND_RIGHT = (
    "The left picture is what the model sees of an image, and brightness is scaled anew for each."
)


def _draw_attention(
    checkpoint: Checkpoint, photos: Sequence[_Photo], layers: Sequence[int], out: pathlib.Path
) -> list[Section]:
    """Draws the rollout and the heads of some layers, for each photo."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    rollouts, heads = [], []
    for photo in photos:
        rollout, maps = jax.device_get(rollout_and_heads(model, params, photo.view))
        rollouts.append(Picture(f"{photo.stem}-rollout.png", photo.name, photo.classes))
        figures.side_by_side(photo.large, rollout, out / rollouts[-1].file)
        heads.append(Picture(f"{photo.stem}-heads.png", photo.name))
        figures.heads({layer: maps[layer - 1] for layer in layers}, out / heads[-1].file)
    about_rollout = f"{captions.about_rollout(model)} {_LEFT_AND_RIGHT}"
    return [
        Section("Where it looks", about_rollout, rollouts),
        Section("What every head looks at", captions.about_heads(model), heads),
    ]


def _draw_class_maps(
    checkpoint: Checkpoint, photos: Sequence[_Photo], out: pathlib.Path
) -> Section:
    """Draws a ResNet's map of the likeliest class over each photo."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    pictures = []
    for photo in photos:
        values = jax.device_get(grad_cam(model, params, photo.view[None]))[0]
        pictures.append(Picture(f"{photo.stem}-class.png", photo.name, photo.classes))
        figures.side_by_side(photo.large, values, out / pictures[-1].file)
    about = captions.about_class_maps(model.grid(require_image_shape(checkpoint)))
    text = f"{about} {_LEFT_AND_RIGHT}"
    return Section("Where it sees the class", text, pictures)


def _draw_filters(checkpoint: Checkpoint, out: pathlib.Path) -> Picture:
    filters = first_layer_filters(checkpoint.params)
    figures.filters(filters.images, out / "filters.png")
    return Picture("filters.png", "Filters of the first layer", captions.about_filters(filters))


def _draw_positions(checkpoint: Checkpoint, out: pathlib.Path) -> list[Picture]:
    """Draws the similarity of position embeddings; returns [] if each patch hasn't one."""
    model = checkpoint.model()
    grid = model.grid(checkpoint.image_shape)
    similarity = position_similarity(model, checkpoint.params, grid)
    if similarity is None:
        return []
    figures.position_similarity(similarity, out / "positions.png")
    title, caption = "Similarity of position embeddings", captions.about_positions(grid)
    return [Picture("positions.png", title, caption)]


def _draw_distances(checkpoint: Checkpoint, paths: Sequence[str], out: pathlib.Path) -> Picture:
    """Draws the attention distance of each head, averaged over images."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    image_shape = require_image_shape(checkpoint)
    grid = model.grid(image_shape)

    @jax.jit
    def measure(params, view):
        maps = attention_maps(model, params, view[None])
        return attention_distances(maps, grid, model.stride)[:, 0]

    views = (view_image(read_image(path), checkpoint) for path in paths)
    distances = np.stack([measure(params, view) for view in views]).mean(0, dtype=np.float64)
    patches = grid[0] * grid[1]
    to_all_alike = jnp.full((1, 1, 1, patches, patches), 1 / patches)
    uniform = float(attention_distances(to_all_alike, grid, model.stride).squeeze())
    figures.attention_distances(distances, uniform, out / "distances.png")
    caption = captions.about_distances(distances, uniform, len(paths), image_shape)
    return Picture("distances.png", "Mean attention distance", caption)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
p { max-width: 48rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: start; }
figure { margin: 0; max-width: min(100%, 37rem); }
img { max-width: 100%; border-radius: 4px; background: white; }
figcaption { font-size: 0.9rem; }
"""


def _page(checkpoint: Checkpoint, sections: Sequence[Section], out: pathlib.Path) -> str:
    """Returns the page as HTML, which holds the pictures in `out`."""
    variant = html.escape(checkpoint.config.model.variant)
    text = f"{captions.describe_model(checkpoint)} Read from {checkpoint.path}."
    body = [f"<h1>What {variant} sees</h1>", f"<p>{html.escape(text)}</p>"]
    for section in sections:
        body += [f"<h2>{section.title}</h2>", f"<p>{section.text}</p>", '<div class="pictures">']
        for picture in section.pictures:
            title, caption = html.escape(picture.title), html.escape(picture.caption)
            encoded = base64.b64encode((out / picture.file).read_bytes()).decode()
            body.append(
                f'<figure><img alt="{section.title}: {title}" '
                f'src="data:image/png;base64,{encoded}">'
                f"<figcaption><b>{title}</b><br>{caption}</figcaption></figure>"
            )
        body.append("</div>")
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>What {variant} sees</title><style>{_STYLE}</style></head><body>",
        *body,
        "</body></html>\n",
    ]
    return "\n".join(lines)
