"""A report on a model and on what it sees in some images: pictures, and one page with them all."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.files import filling, local_path
from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, class_of_folder, short_stem
from vit_jax.common.web_page import Picture, Section, build_page
from vit_jax.inference.classifier import (
    Classifier,
    prepare,
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


class Report(NamedTuple):
    """What `write_report` wrote, and what it could not read.

    Attributes:
      page: the path of index.html.
      images: the number of images that it chose, to show or to average over.
      unreadable: for each of these that can't be read, a sentence that names it and says why.
    """

    page: pathlib.Path
    images: int
    unreadable: tuple[str, ...]


class _Photo(NamedTuple):
    """An image of the report.

    Attributes:
      name: the name of its file.
      stem: how the names of its pictures begin.
      view: the part that the model sees, in the model's size: uint8 (h, w, 3).
      large: the same part, larger.
      caption: the likeliest classes, and whether the first is the true one, as far as it is known.
      right: whether the likeliest class is the true one. None if the true one is not known.
    """

    name: str
    stem: str
    view: np.ndarray
    large: np.ndarray
    caption: str
    right: bool | None


def write_report(
    checkpoint: Checkpoint,
    images: Sequence[str],
    out: str | pathlib.Path,
    *,
    shown: int = 24,
    sample: int = 128,
    layers: Sequence[int] | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Report:
    """Writes a report on a model and on what it sees in some images.

    Images that can't be read are left out. If the folder of some image has the name of a class,
    the folders are taken to be the true classes, and the report says which predictions are right.

    Args:
      checkpoint: what `weights.api.load` returns, of any model.
      images: paths.
      out: the report's folder. It is made if it does not exist.
      shown: most images that get pictures. Of more, this number is taken at equal intervals.
      sample: most images that the attention distances are averaged over, taken likewise.
      layers: numbers of the layers whose heads are shown, counted from 1. None for the first,
        middle and last. A block of axial attention is two layers.
      image_size: pixels, a side or (h, w). None for the checkpoint's own.

    Raises:
      ValueError: none of the images to show can be read, there is no such layer, or see
        `classifier.prepare`.
      OSError: `out` can't be written; then it stays as it was. Or an image can't be read at the
        moment, see `data.reading.retry`.
    """
    checkpoint = prepare(checkpoint, image_size)
    model, out = checkpoint.model(), local_path(out)
    chosen = [] if isinstance(model, ResNet) else _check_layers(model, layers)
    unreadable: dict[str, str] = {}
    paths = _at_equal_intervals(images, shown)
    photos = _read_photos(checkpoint, paths, _folders(checkpoint, images), unreadable)
    if not photos:
        reasons = first_few(unreadable.values(), separator="\n")
        raise ValueError(f"None of the images to show can be read:\n{reasons}")
    sections: list[Section] = []
    with filling(out) as folder:
        learned = [_draw_filters(checkpoint, folder)]
        if not isinstance(model, ResNet):
            sections.append(_draw_attention(checkpoint, photos, chosen, folder))
            learned += _draw_positions(checkpoint, folder)
            averaged = _at_equal_intervals(images, sample)
            learned += _draw_distances(checkpoint, averaged, unreadable, folder)
            paths += averaged
        elif checkpoint.num_classes:
            sections.append(_draw_class_maps(checkpoint, photos, folder))
        sections.append(Section("What it has learned", [], learned))
        page = _page(checkpoint, sections, folder)
        (folder / "index.html").write_text(page, encoding="utf-8")
    return Report(out / "index.html", len(set(paths)), tuple(unreadable.values()))


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


def _folders(checkpoint: Checkpoint, paths: Sequence[str]) -> dict[str, str]:
    """Returns {path: name of its folder}, or {} if no folder has the name of a class."""
    folders = {path: class_of_folder(pathlib.Path(path).absolute().parent) for path in paths}
    classes = set(map(class_name, checkpoint.class_names))
    return folders if set(folders.values()) & classes else {}


def _view(
    checkpoint: Checkpoint, paths: Sequence[str], unreadable: dict[str, str], *shapes: Any
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields each path with what a model sees of it, by shape; adds to `unreadable` why not."""
    for path in paths:
        try:
            yield path, [view_image(path, checkpoint, shape) for shape in shapes]
        except ValueError as error:
            unreadable[path] = str(error)


def _read_photos(
    checkpoint: Checkpoint,
    paths: Sequence[str],
    folders: Mapping[str, str],
    unreadable: dict[str, str],
) -> list[_Photo]:
    shape = require_image_shape(checkpoint)
    shapes = (shape, figures.photo_shape(shape, _SIDE))
    answers: dict[Any, Any] = {}  # by path; the images are read twice, and only one is held
    if checkpoint.num_classes:
        answers = dict(Classifier(checkpoint).stream(paths, _TOP))
    photos, classes = [], set(map(class_name, checkpoint.class_names))
    viewed = _view(checkpoint, paths, unreadable, *shapes)
    for number, (path, (view, large)) in enumerate(viewed, 1):
        folder, answer = folders.get(path), answers.get(path, [])
        right = class_name(answer[0].label) == folder if folder in classes else None
        photos.append(
            _Photo(
                name=pathlib.Path(path).name,
                stem=f"{number:03d}-{short_stem(path)}",
                view=view,
                large=large,
                caption=captions.about_answer(answer, folder, right),
                right=right,
            )
        )
    return photos


_LEFT_AND_RIGHT = (
    "The left picture is what the model sees of an image, and brightness is scaled anew for each."
)


def _draw_attention(
    checkpoint: Checkpoint, photos: Sequence[_Photo], layers: Sequence[int], out: pathlib.Path
) -> Section:
    """Draws the rollout and the heads of some layers, for each photo."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    pictures = []
    for photo in photos:
        rollout, maps = jax.device_get(rollout_and_heads(model, params, photo.view))
        files = {f"{photo.stem}-rollout.png": "rollout", f"{photo.stem}-heads.png": "heads"}
        pictures.append(Picture(files, photo.name, photo.caption))
        first, second = (out / file for file in files)
        figures.side_by_side(photo.large, rollout, first)
        figures.heads(photo.large, {layer: maps[layer - 1] for layer in layers}, second)
    about_rollout = f"{captions.about_rollout(model)} {_LEFT_AND_RIGHT}"
    paragraphs = [about_rollout, captions.about_heads(model), *_count_right(photos)]
    return Section("Where it looks", paragraphs, pictures)


def _draw_class_maps(
    checkpoint: Checkpoint, photos: Sequence[_Photo], out: pathlib.Path
) -> Section:
    """Draws a ResNet's map of the likeliest class over each photo."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    pictures = []
    for photo in photos:
        values = jax.device_get(grad_cam(model, params, photo.view[None]))[0]
        file = f"{photo.stem}-class.png"
        pictures.append(Picture({file: "class map"}, photo.name, photo.caption))
        figures.side_by_side(photo.large, values, out / file)
    about = captions.about_class_maps(model.grid(require_image_shape(checkpoint)))
    paragraphs = [f"{about} {_LEFT_AND_RIGHT}", *_count_right(photos)]
    return Section("Where it sees the class", paragraphs, pictures)


def _count_right(photos: Sequence[_Photo]) -> list[str]:
    """Returns a sentence on how many predictions are right; [] if no true class is known."""
    known = [photo.right for photo in photos if photo.right is not None]
    if not known:
        return []
    return [
        f"The true class of an image is the name of its folder. Right predictions: {sum(known)} of "
        f"the {len(known)} images whose folder is a class of the model."
    ]


def _draw_filters(checkpoint: Checkpoint, out: pathlib.Path) -> Picture:
    filters = first_layer_filters(checkpoint.params)
    figures.filters(filters.images, out / "filters.png")
    title, caption = "Filters of the first layer", captions.about_filters(filters)
    return Picture({"filters.png": "filters"}, title, caption)


def _draw_positions(checkpoint: Checkpoint, out: pathlib.Path) -> list[Picture]:
    """Draws the similarity of position embeddings; returns [] if each patch hasn't one."""
    model = checkpoint.model()
    grid = model.grid(checkpoint.image_shape)
    similarity = position_similarity(model, checkpoint.params, grid)
    if similarity is None:
        return []
    figures.position_similarity(similarity, out / "positions.png")
    title, caption = "Similarity of position embeddings", captions.about_positions(grid)
    return [Picture({"positions.png": "similarities"}, title, caption)]


def _draw_distances(
    checkpoint: Checkpoint, paths: Sequence[str], unreadable: dict[str, str], out: pathlib.Path
) -> list[Picture]:
    """Draws the attention distance of each head, averaged over images; [] if none can be read."""
    model, params = checkpoint.model(), jax.device_put(checkpoint.params)
    image_shape = require_image_shape(checkpoint)
    grid = model.grid(image_shape)

    @jax.jit
    def measure(params, view):
        maps = attention_maps(model, params, view[None])
        return attention_distances(maps, grid, model.stride)[:, 0]

    viewed = _view(checkpoint, paths, unreadable, image_shape)
    measured = [measure(params, view) for _, (view,) in viewed]
    if not measured:
        return []
    distances = np.stack(measured).mean(0, dtype=np.float64)
    patches = grid[0] * grid[1]
    to_all_alike = jnp.full((1, 1, 1, patches, patches), 1 / patches)
    uniform = float(attention_distances(to_all_alike, grid, model.stride).squeeze())
    figures.attention_distances(distances, uniform, out / "distances.png")
    caption = captions.about_distances(distances, uniform, len(measured), image_shape)
    return [Picture({"distances.png": "distances"}, "Mean attention distance", caption)]


def _page(checkpoint: Checkpoint, sections: Sequence[Section], out: pathlib.Path) -> str:
    """Returns the page as HTML, which holds the pictures in `out`."""
    return build_page(
        f"What {checkpoint.config.model.variant} sees",
        f"{captions.describe_model(checkpoint)} Read from {checkpoint.path}.",
        sections,
        lambda file: (out / file).read_bytes(),
    )
