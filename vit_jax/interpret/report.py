"""report"""

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
from vit_jax.cli.arguments import describe
from vit_jax.inference.classifier import Classifier, prepare, read_image, view_image
from vit_jax.interpret import figures
from vit_jax.interpret.attention import attention, attention_distances, look
from vit_jax.interpret.class_maps import class_maps
from vit_jax.interpret.filters import filters, position_similarity
from vit_jax.models.resnet import ResNet

_SIDE = 288  # pixels of a photo's shorter side in the report
_TOP = 3  # classes named under a photo
_NAMED = 10  # classes named of a model


class Picture(NamedTuple):
    """One picture of the report.

    Attributes:
      file: its name in the report's folder.
      title: what it is of.
      caption: what is seen.
    """

    file: str
    title: str
    caption: str = ""


class Section(NamedTuple):
    """Pictures of one kind, and what there is to know of them all."""

    title: str
    text: str
    pictures: list[Picture]


class _Shown(NamedTuple):
    """An image of the report: what the model sees of it, the same larger, and its classes."""

    title: str
    file: str  # how the names of its pictures begin
    view_image: np.ndarray
    photo: np.ndarray
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
      checkpoint: what `interop.restore` returns, of any model.
      images: paths.
      out: the report's folder; is made where it isn't there.
      shown: images that get pictures; of more, as many are taken at equal intervals.
      sample: images that the attention distances are averaged over, taken likewise.
      layers: whose heads are shown, counted from 1; None for the first, middle and last. A block
        of axial attention is two layers.
      image_size: pixels, a side or (h, w); None for the checkpoint's.

    Returns:
      The path of index.html.

    Raises:
      ValueError: an image can't be read, there is no such layer, or as `predict.ready`.
      OSError: `out` can't be written.
    """
    checkpoint = prepare(checkpoint, image_size)
    model, out = checkpoint.model(), pathlib.Path(out)
    attends = not isinstance(model, ResNet)
    if attends:
        layers = _layers(model, layers)
    chosen = _opened(checkpoint, _spread(images, shown))
    out.mkdir(parents=True, exist_ok=True)
    learned = [_filters(checkpoint, out)]
    if attends:
        sections = _attention(checkpoint, chosen, layers, out)
        learned += _positions(checkpoint, out)
        learned.append(_distances(checkpoint, _spread(images, sample), out))
    else:
        sections = [_class_maps(checkpoint, chosen, out)] if checkpoint.num_classes else []
    sections.append(Section("What it has learned", "", learned))
    page = out / "index.html"
    page.write_text(_page(checkpoint, sections, out), encoding="utf-8")
    return page


def _layers(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    depth = model.depth * (2 if model.axial else 1)
    if layers is None:
        return sorted({1, (depth + 1) // 2, depth})
    if missing := [layer for layer in layers if not 1 <= layer <= depth]:
        raise ValueError(f"There is no layer {missing[0]}: the model has layers 1 to {depth}.")
    return sorted(set(layers))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Returns all items, or `most` of them at equal intervals."""
    return [items[i * len(items) // most] for i in range(most)] if most < len(items) else [*items]


def _opened(checkpoint: Checkpoint, paths: Sequence[str]) -> list[_Shown]:
    shape = checkpoint.image_shape
    larger = tuple(round(_SIDE * side / min(shape)) for side in shape)
    images = [read_image(path) for path in paths]
    answers = [[]] * len(images)
    if checkpoint.num_classes:
        answers = Classifier(checkpoint).predict(images, _TOP)
    return [
        _Shown(
            title=pathlib.Path(path).name,
            file=f"{i:03d}-{pathlib.Path(path).stem}",
            view=view_image(image, checkpoint),
            photo=view_image(image, checkpoint, larger),
            classes=", ".join(f"{p.label} {100 * p.probability:.1f} %" for p in predictions),
        )
        for i, (path, image, predictions) in enumerate(
            zip(paths, images, answers, strict=True), start=1
        )
    ]


def _attention(
    checkpoint: Checkpoint,
    images: Sequence[_Shown],
    layers: Sequence[int],
    out: pathlib.Path,
) -> list[Section]:
    """Draws the rollout, and the heads of some layers, of each image."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    seen, heads = [], []
    for image in images:
        rollout, maps = jax.device_get(look(model, params, image.view))
        seen.append(Picture(f"{image.file}-rollout.png", image.title, image.classes))
        figures.side_by_side(image.photo, rollout, out / seen[-1].file)
        heads.append(Picture(f"{image.file}-heads.png", image.title))
        figures.heads({layer: maps[layer - 1] for layer in layers}, out / heads[-1].file)
    return [
        Section("Where it looks", f"{about_rollout(model)} {_LEFT_AND_RIGHT}", seen),
        Section("What every head looks at", about_heads(model), heads),
    ]


def _class_maps(checkpoint: Checkpoint, images: Sequence[_Shown], out: pathlib.Path) -> Section:
    """Draws the likeliest class's map over each image, of a ResNet."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    seen = []
    for image in images:
        values = jax.device_get(class_maps(model, params, image.view[None]))[0]
        seen.append(Picture(f"{image.file}-class.png", image.title, image.classes))
        figures.side_by_side(image.photo, values, out / seen[-1].file)
    text = f"{about_class_maps(model, checkpoint.image_shape)} {_LEFT_AND_RIGHT}"
    return Section("Where it sees the class", text, seen)


_LEFT_AND_RIGHT = (
    "The left picture is what the model sees of an image, and brightness is scaled anew for each."
)


def about_rollout(model: nn.Module) -> str:
    """Returns what is seen in a rollout of a model with attention, in words."""
    return (
        f"Attention rollout, as in figures 6 and 14 of the paper: the attention of all layers, "
        f"multiplied from the {_output(model)} back to the pixels (appendix D.8). The brighter a "
        f"place, the more it contributes."
    )


def about_heads(model: nn.Module) -> str:
    """Returns what is seen in maps of a model's heads, in words."""
    lines = " A block of axial attention is two layers, along rows and along columns."
    return (
        f"The attention of the {_output(model)} to each patch, head by head: what rollout averages "
        f"and multiplies. Some heads read a few patches, others all of an object, or what "
        f"surrounds it. Brightness is scaled anew for each map.{lines if model.axial else ''}"
    )


def about_class_maps(model: ResNet, image_shape: tuple[int, int]) -> str:
    """Returns what is seen in class maps of a ResNet, in words."""
    rows, columns = model.grid(image_shape)
    return (
        f"A ResNet has no attention to show. These are class maps, based on gradients (Grad-CAM): "
        f"the channels of the last feature map, of {rows} x {columns} places, weighted by how much "
        f"each raises the likeliest class's logit. The brighter a place, the more it speaks for "
        f"the class."
    )


def _output(model: nn.Module) -> str:
    return "class token" if model.pool == "token" else "mean of the patches"


def _filters(checkpoint: Checkpoint, out: pathlib.Path) -> Picture:
    images, shares = filters(checkpoint.params)
    height, width = images.shape[1:3]
    picture = Picture(
        "filters.png",
        "Filters of the first layer",
        f"The {len(images)} filters of the root convolution, {height} x {width} pixels each, "
        f"standardised as they are used. Grey is zero. They are what a hybrid or a ResNet has in "
        f"the place of the paper's figure 7 (left)."
        if shares is None
        else f"The first {len(images)} principal components of the filters that embed a patch of "
        f"{height} x {width} pixels (figure 7 left of the paper). They explain "
        f"{100 * shares.sum():.0f} % of the filters' variance, the first alone "
        f"{100 * shares[0]:.0f} %. Grey is zero. After long pre-training they resemble a basis "
        f"for the structure within a patch; noise is what training has not reached.",
    )
    figures.filters(images, out / picture.file)
    return picture


def _positions(checkpoint: Checkpoint, out: pathlib.Path) -> list[Picture]:
    model = checkpoint.model()
    grid = model.grid(checkpoint.image_shape)
    similarity = position_similarity(model, checkpoint.params, grid)
    if similarity is None:
        return []
    picture = Picture(
        "positions.png",
        "Similarity of position embeddings",
        f"Each small map is one patch of the {grid[0]} x {grid[1]} grid: the cosine similarity "
        f"of its position embedding to those of all patches (figure 7 centre of the paper). "
        f"Where brightness falls off with the distance from the patch's own place, the model has "
        f"learned which patches are close; after long pre-training, rows and columns show, too.",
    )
    figures.position_similarity(similarity, out / picture.file)
    return [picture]


def _distances(checkpoint: Checkpoint, sample: Sequence[str], out: pathlib.Path) -> Picture:
    model = checkpoint.model()
    grid = model.grid(checkpoint.image_shape)

    @jax.jit
    def measure(params, view):
        weights = attention(model, params, view[None])
        return attention_distances(weights, grid, model.stride)[:, 0]

    params, total = jax.device_put(checkpoint.params), 0.0
    for path in sample:
        view = view_image(read_image(path), checkpoint)
        total += np.asarray(measure(params, view), np.float64)
    patches = grid[0] * grid[1]
    everywhere = jnp.full((1, 1, 1, patches, patches), 1 / patches)
    uniform = float(attention_distances(everywhere, grid, model.stride).squeeze())
    distances = total / len(sample)
    height, width = checkpoint.image_shape
    picture = Picture(
        "distances.png",
        "Mean attention distance",
        f"How far each head looks, in each layer, over {len(sample)} images of {height} x {width} "
        f"pixels (figures 7 right and 11 of the paper): from {distances.min():.1f} to "
        f"{distances.max():.1f} pixels. The dotted line, {uniform:.1f} pixels, is attention to all "
        f"patches alike. Heads far below it attend locally, as convolutions do.",
    )
    figures.attention_distances(distances, uniform, out / picture.file)
    return picture


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
    """Returns the page, with the pictures that lie in `out` inside."""
    variant = html.escape(checkpoint.config.model.variant)
    text = f"{describe_model(checkpoint)} Read from {checkpoint.path}."
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


def describe_model(checkpoint: Checkpoint) -> str:
    """Returns two sentences on a model: its size and classes, and how it cuts an image."""
    model, names = checkpoint.model(), checkpoint.class_names
    rows, columns = model.grid(checkpoint.image_shape)
    if isinstance(model, ResNet):
        parts = f"Its last feature map has {rows} x {columns} places."
    else:
        parts = (
            f"It sees {rows} x {columns} patches of {model.stride[0]} x {model.stride[1]} pixels "
            f"with {model.num_heads} heads in each of {model.depth} blocks."
        )
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    named = f", for {', '.join(names[:_NAMED])}{more}" if names else ""
    return f"{describe(checkpoint, parameters=False)}{named}. {parts}"
