"""page"""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.inference.classifier import Classifier, prepare, read_image, view_image
from vit_jax.interpret import figures
from vit_jax.interpret.attention import look
from vit_jax.interpret.class_maps import class_maps
from vit_jax.interpret.report import about_class_maps, about_heads, about_rollout, describe_model
from vit_jax.models.resnet import ResNet

_SIDE = 384  # pixels of a photo's shorter side on the page
_TOP = 5  # classes with their probabilities
_WIDTH, _HEIGHT = 300, 320  # of a column at least, of a picture; pixels
_MEGABYTE = 2**20
_KEPT = 3600  # seconds between deletions of uploaded images and drawn pictures of that age
_SESSIONS = 100  # whose last image is remembered for the sliders: about 1 MB each


class Seen(NamedTuple):
    """What a model makes of one image.

    Attributes:
      classes: the likeliest, {name: probability}; None of a model without a head.
      photo: the part of the image that the model sees, larger: uint8 (h, w, 3).
      places: float32 (rows, columns): the rollout, or the likeliest class's map of a ResNet.
      heads: float32 (layers, k, rows, columns): the output's attention to the patches, of every
        layer and head; None of a ResNet.
    """

    classes: dict[str, float] | None
    photo: np.ndarray
    places: np.ndarray
    heads: np.ndarray | None


def looker(checkpoint: Checkpoint) -> Callable[[np.ndarray], Seen]:
    """Returns a function that looks at an image, uint8 (h, w, 3) of any size.

    Args:
      checkpoint: what `predict.ready` returns.

    Raises:
      ValueError: it is a ResNet without a head.
    """
    model, shape = checkpoint.model(), checkpoint.image_shape
    attends = not isinstance(model, ResNet)
    if not attends and not checkpoint.num_classes:
        raise ValueError(f"{checkpoint.path} is a ResNet without a head: there is nothing to show.")
    larger = tuple(round(_SIDE * side / min(shape)) for side in shape)
    classifier = Classifier(checkpoint) if checkpoint.num_classes else None
    params = jax.device_put(checkpoint.params)

    def see(image: np.ndarray) -> Seen:
        classes = None
        if classifier is not None:
            (found,) = classifier.predict([image], _TOP)
            classes = {p.label: p.probability for p in reversed(found)}  # of one name, the likelier
        view, heads = view_image(image, checkpoint), None
        if attends:
            places, heads = jax.device_get(look(model, params, view))
        else:
            places = jax.device_get(class_maps(model, params, view[None]))[0]
        return Seen(classes, view_image(image, checkpoint, larger), places, heads)

    return see


def attended(seen: Seen, layer: int, head: int) -> np.ndarray:
    """Returns the photo with what a head attends to laid over it: uint8 (h, w, 3).

    Args:
      seen: of a model with attention.
      layer: counted from 1.
      head: counted from 1; 0 for the mean of the layer's heads.

    What is out of range is taken for the nearest that there is.
    """
    layers, heads = seen.heads.shape[:2]
    of_layer = seen.heads[min(max(layer, 1), layers) - 1]
    values = of_layer[min(head, heads) - 1] if head > 0 else of_layer.mean(0)
    return figures.overlay(seen.photo, values)


def build_page(
    checkpoint: Checkpoint,
    *,
    image_size: int | Sequence[int] | None = None,
    max_megabytes: float = 20,
) -> gradio.Blocks:
    """Returns the page, its model compiled; `serve` makes it reachable.

    Args:
      checkpoint: what `interop.restore` returns, of any model.
      image_size: pixels, a side or (h, w); None for the checkpoint's.
      max_megabytes: of files, in 2^20 bytes; larger ones are refused.

    Raises:
      ValueError: a ResNet without a head, or as `predict.ready`.
      ModuleNotFoundError: Gradio is not installed.
    """
    gr = import_gradio()
    checkpoint = prepare(checkpoint, image_size)
    look = looker(checkpoint)
    blank = look(np.zeros((*checkpoint.image_shape, 3), np.uint8))  # compiles before anyone waits
    figures.overlay(blank.photo, blank.places)  # imports what draws
    name, about = checkpoint.config.model.variant, describe_model(checkpoint)
    model = checkpoint.model()
    if blank.heads is None:
        title = "Where it sees the class"
        caption = about_class_maps(model, checkpoint.image_shape)
    else:
        title, caption = "Where it looks", about_rollout(model)
    picture = dict(interactive=False, height=_HEIGHT, buttons=["download", "fullscreen"])
    private = dict(preprocess=False, api_visibility="private")

    with gr.Blocks(
        title=f"What {name} sees", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
    ) as blocks:
        gr.HTML(f"<h1>What {html.escape(name)} sees</h1><p>{html.escape(about)}</p>")
        seen, sliders = gr.State(), []
        with gr.Row():
            with gr.Column(min_width=_WIDTH):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    height=_HEIGHT,
                    buttons=[],
                    elem_id="image",
                )
                classes = gr.Label(
                    label="Classes", elem_id="classes", visible=checkpoint.num_classes > 0
                )
            with gr.Column(min_width=_WIDTH):
                places = gr.Image(label=title, alt_text=title, elem_id="places", **picture)
                gr.Markdown(caption)
            with gr.Column(min_width=_WIDTH, visible=blank.heads is not None):
                title = "What a head attends to"
                heads = gr.Image(label=title, alt_text=title, elem_id="heads", **picture)
                if blank.heads is not None:
                    sliders = _sliders(gr, *blank.heads.shape[:2])
                    gr.Markdown(about_heads(model))

        def see(upload: Mapping[str, Any] | None, *position: float | None) -> dict[Any, Any]:
            """Fills the page; empties it where the image was removed, or is none."""
            empty = dict.fromkeys([seen, classes, places, heads])
            if upload is None:
                return empty
            try:
                found = look(_opened(upload, image.GRADIO_CACHE, max_megabytes))
            except ValueError as error:
                gr.Warning(html.escape(str(error)))
                return empty | {image: None}
            return {
                seen: found,
                classes: found.classes,
                places: figures.overlay(found.photo, found.places),
                heads: move(found, *position),
            }

        def move(found: Seen | None, *position: float | None) -> np.ndarray | None:
            """Draws the chosen head, if there is an image, and heads in the model."""
            if found is None or found.heads is None:
                return None
            layer, head = (int(x or 0) for x in position)  # None while the box is being edited
            return attended(found, layer, head)

        image.change(see, [image, *sliders], [image, seen, classes, places, heads], **private)
        for slider in sliders:
            slider.change(
                move,
                [seen, *sliders],
                heads,
                show_progress="hidden",
                trigger_mode="always_last",
                **private,
            )
    return blocks


def import_gradio() -> ModuleType:
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(
            "The page is made by Gradio, which is not installed: pip install 'vit_jax[demo]', or "
            'in a clone of the repository pip install -e ".[demo]".'
        ) from error
    return gradio


def _sliders(gr: ModuleType, layers: int, heads: int) -> list[Any]:
    layer = gr.State(1)  # a slider would need two positions
    if layers > 1:
        layer = gr.Slider(1, layers, layers, step=1, label="Layer", elem_id="layer")
    label = "Head (0: the mean of all)"
    return [layer, gr.Slider(0, heads, 0, step=1, label=label, elem_id="head")]


def _opened(upload: Mapping[str, Any], folder: str, max_megabytes: float) -> np.ndarray:
    """Returns an uploaded image: uint8 (h, w, 3); raises ValueError for what is none.

    Args:
      upload: what the browser sends, with the `path` on this machine and the `orig_name`.
      folder: where uploads are; a request that was made up could name any file.
    """
    name = upload["orig_name"] or "The file"
    path = pathlib.Path(upload["path"] or "").resolve()
    if not path.is_relative_to(pathlib.Path(folder).resolve()) or not path.is_file():
        raise ValueError(f"{name} was not uploaded.")
    megabytes = path.stat().st_size / _MEGABYTE
    if megabytes > max_megabytes:
        raise ValueError(
            f"{name} has {megabytes:.1f} MB: files of more than {max_megabytes:g} MB are refused."
        )
    try:
        return read_image(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{name} is {error}. Try a photo as JPEG, PNG or WebP.") from error


def serve(
    blocks: gradio.Blocks, *, host: str = "127.0.0.1", port: int = 7860, max_megabytes: float = 20
) -> None:
    """Serves a page until Ctrl-C, and prints its address as soon as it answers.

    Args:
      blocks: what `build_page` returns.
      host: the address to listen on.
      port: likewise.
      max_megabytes: of 2^20 bytes; an upload is broken off there.

    Raises:
      OSError: nothing can listen there.
    """
    outside = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = f"{outside},127.0.0.1,localhost,{host}"  # Gradio calls its own page
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(max_megabytes * _MEGABYTE),
            state_session_capacity=_SESSIONS,
            share=False,
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(
            f"Can't listen on {host}, port {port}: give another --host or --port."
        ) from error
    print(f"{address} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


if TYPE_CHECKING:
    import gradio
