"""A page in the browser: drop an image, see its classes and where the model looks.

Gradio draws the page. It is imported in the functions that need it: its import takes seconds.
"""

from __future__ import annotations

import html
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import printable
from vit_jax.common.repository import install_command
from vit_jax.data.builders import rendered_flowers
from vit_jax.data.dataset import ExampleError
from vit_jax.data.reading import read_file
from vit_jax.inference.classifier import (
    Classifier,
    prepare,
    read_image,
    require_image_shape,
    view_image,
)
from vit_jax.interpret import figures
from vit_jax.interpret.attention import rollout_and_heads
from vit_jax.interpret.captions import (
    about_class_maps,
    about_heads,
    about_rollout,
    describe_model,
)
from vit_jax.interpret.class_maps import grad_cam
from vit_jax.interpret.serving import MEGABYTE, without_network_settings
from vit_jax.models.resnet import ResNet

_SIDE = 384  # pixels of a photo's shorter side
_TOP = 5  # classes that are shown with their probabilities
_COLUMN_WIDTH, _PICTURE_HEIGHT = 300, 320  # pixels; a column may be wider
_KEPT = 3600  # seconds; older uploads and drawn pictures are deleted, as often as that


class Seen(NamedTuple):
    """What a model sees in one image.

    Attributes:
      classes: the likeliest, {name: probability}. None if the model has no head.
      photo: the part of the image that the model sees, larger: uint8 (h, w, 3).
      places: float32 (rows, columns): the rollout, or a ResNet's map of the likeliest class.
      heads: float32 (layers, k, rows, columns): the output's attention to the patches, in every
        layer and head. None if the model is a ResNet.
    """

    classes: dict[str, float] | None
    photo: np.ndarray
    places: np.ndarray
    heads: np.ndarray | None


def make_look(checkpoint: Checkpoint) -> Callable[[np.ndarray], Seen]:
    """Returns the function image -> `Seen`; the image is uint8 (h, w, 3) of any size.

    Args:
      checkpoint: what `classifier.prepare` returns.

    Raises:
      ValueError: it is a ResNet without a head.
    """
    model, shape = checkpoint.model(), require_image_shape(checkpoint)
    has_attention = not isinstance(model, ResNet)
    if not has_attention and not checkpoint.num_classes:
        raise ValueError(f"{checkpoint.path} is a ResNet without a head: there is nothing to show.")
    larger = figures.photo_shape(shape, _SIDE)
    classifier = Classifier(checkpoint) if checkpoint.num_classes else None
    params = jax.device_put(checkpoint.params)

    def look(image: np.ndarray) -> Seen:
        classes = None
        if classifier is not None:
            (found,) = classifier.predict([image], _TOP)
            # Of two classes with the same name, the likelier stays.
            classes = {printable(p.label): p.probability for p in reversed(found)}
        view, heads = view_image(image, checkpoint), None
        if has_attention:
            places, heads = jax.device_get(rollout_and_heads(model, params, view))
        else:
            places = jax.device_get(grad_cam(model, params, view[None]))[0]
        return Seen(classes, view_image(image, checkpoint, larger), places, heads)

    return look


def overlay_head(photo: np.ndarray, heads: np.ndarray, layer: int, head: int) -> np.ndarray:
    """Returns the photo with the attention of one head laid over it: uint8 (h, w, 3).

    A number that is too small or too large stands for the nearest layer or head.

    Args:
      photo: uint8 (h, w, 3).
      heads: (layers, k, rows, columns), see `Seen`.
      layer: counted from 1.
      head: counted from 1; 0 for the mean of the layer's heads.
    """
    maps = heads[min(max(layer, 1), len(heads)) - 1]
    values = maps[min(head, len(maps)) - 1] if head > 0 else maps.mean(0)
    return figures.overlay(photo, values)


def build_page(
    checkpoint: Checkpoint,
    *,
    image_size: int | Sequence[int] | None = None,
    max_megabytes: float = 20,
) -> gradio.Blocks:
    """Returns the page; `serving.serve` makes it reachable. The model is compiled already.

    Args:
      checkpoint: what `weights.api.load` returns, of any model.
      image_size: pixels, a side or (h, w). None for the checkpoint's own.
      max_megabytes: largest size of a file, in 2^20 bytes; larger files are refused.

    Raises:
      ValueError: the model is a ResNet without a head, or see `classifier.prepare`.
      ModuleNotFoundError: Gradio is not installed.
    """
    gr = import_gradio()
    checkpoint = prepare(checkpoint, image_size)
    look = make_look(checkpoint)
    image_shape = require_image_shape(checkpoint)
    blank = look(np.zeros((*image_shape, 3), np.uint8))  # compiles before anyone waits
    figures.overlay(blank.photo, blank.places)  # imports Matplotlib, likewise
    name, about = checkpoint.config.model.variant, describe_model(checkpoint)
    model = checkpoint.model()
    if blank.heads is None:
        title = "Where it sees the class"
        caption = about_class_maps(model.grid(image_shape))
    else:
        title, caption = "Where it looks", about_rollout(model)
    picture = dict(interactive=False, height=_PICTURE_HEIGHT, buttons=["download", "fullscreen"])
    private = dict(preprocess=False, api_visibility="private")

    with gr.Blocks(
        title=f"What {name} sees", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
    ) as blocks:
        gr.HTML(f"<h1>What {html.escape(name)} sees</h1><p>{html.escape(about)}</p>")
        seen, sliders = gr.State(), []
        with gr.Row():
            with gr.Column(min_width=_COLUMN_WIDTH):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    height=_PICTURE_HEIGHT,
                    buttons=[],
                    elem_id="image",
                    format="png",  # of the examples: without losses
                )
                examples = gr.Dataset(
                    label="Examples: click one",
                    components=[image],
                    samples=[[flower] for flower in rendered_flowers.examples().values()],
                    type="index",
                    elem_id="examples",
                )
                classes = gr.Label(
                    label="Classes", elem_id="classes", visible=checkpoint.num_classes > 0
                )
            with gr.Column(min_width=_COLUMN_WIDTH):
                places = gr.Image(label=title, alt_text=title, elem_id="places", **picture)
                gr.Markdown(caption)
            with gr.Column(min_width=_COLUMN_WIDTH, visible=blank.heads is not None):
                title = "What a head attends to"
                heads = gr.Image(label=title, alt_text=title, elem_id="heads", **picture)
                if blank.heads is not None:
                    sliders = _sliders(gr, *blank.heads.shape[:2])
                    gr.Markdown(about_heads(model))

        def show(upload: Mapping[str, Any] | None, *position: float | None) -> dict[Any, Any]:
            """Fills the page; empties it if the image was removed or can't be read."""
            empty = dict.fromkeys([seen, classes, places, heads])
            if upload is None:
                return empty
            try:
                found = look(_read_upload(upload, image.GRADIO_CACHE, max_megabytes))
            except ValueError as error:
                gr.Warning(html.escape(str(error)))
                return empty | {image: None}
            return {
                seen: found,
                classes: found.classes,
                places: figures.overlay(found.photo, found.places),
                heads: draw_head(found, *position),
            }

        def draw_head(found: Seen | None, *position: float | None) -> np.ndarray | None:
            """Draws the head that the sliders choose; None if there is no image or no head."""
            if found is None or found.heads is None:
                return None
            layer, head = (int(x or 0) for x in position)  # None while the box is being edited
            return overlay_head(found.photo, found.heads, layer, head)

        image.change(show, [image, *sliders], [image, seen, classes, places, heads], **private)
        files = [sample["path"] for (sample,) in examples.samples]
        examples.click(lambda index: files[index], examples, image, api_visibility="private")
        for slider in sliders:
            slider.change(
                draw_head,
                [seen, *sliders],
                heads,
                show_progress="hidden",
                trigger_mode="always_last",
                **private,
            )
    return blocks


def import_gradio() -> ModuleType:
    """Returns the module `gradio`.

    Raises:
      ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        with without_network_settings():
            import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(
            f"The page is made by Gradio, which is not installed: {install_command('demo')}."
        ) from error
    return gradio


def _sliders(gr: ModuleType, layers: int, heads: int) -> list[Any]:
    layer = gr.State(1)  # for one layer, because a slider needs two positions
    if layers > 1:
        layer = gr.Slider(1, layers, layers, step=1, label="Layer", elem_id="layer")
    label = "Head (0: the mean of all)"
    return [layer, gr.Slider(0, heads, 0, step=1, label=label, elem_id="head")]


def _read_upload(upload: Mapping[str, Any], folder: str, max_megabytes: float) -> np.ndarray:
    """Returns an uploaded image: uint8 (h, w, 3).

    Args:
      upload: what the browser sends: `path`, on this machine, and `orig_name`.
      folder: where uploads are. A forged request could name any file of this machine, or an address
        that Gradio has downloaded to `folder`, whatever its size.
      max_megabytes: as for `build_page`.

    Raises:
      ValueError: it is not an upload, too large, or not an image.
    """
    name = upload["orig_name"] or "The file"
    path = pathlib.Path(upload["path"] or "").resolve()
    if not path.is_relative_to(pathlib.Path(folder).resolve()) or not path.is_file():
        raise ValueError(f"{name} was not uploaded.")
    megabytes = path.stat().st_size / MEGABYTE
    if megabytes > max_megabytes:
        raise ValueError(
            f"{name} has {megabytes:.1f} MB: files of more than {max_megabytes:g} MB are refused."
        )
    try:
        return read_image(read_file(path))
    except ExampleError as error:  # of `read_file`: its message has the path on this machine
        raise ValueError(f"{name} {error.reason}.") from error
    except ValueError as error:
        raise ValueError(f"{name} is {error}. Try a photo as JPEG, PNG or WebP.") from error


if TYPE_CHECKING:
    import gradio
