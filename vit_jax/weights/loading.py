"""Lines of Python that load a written file: by timm, transformers or this package.

They print the logits, or the representation, of a photo that is cut as evaluation cuts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.data.transforms import View, view_of
from vit_jax.models.resnet import ResNet
from vit_jax.weights.hugging_face_writing import class_for
from vit_jax.weights.safetensors import SUFFIXES
from vit_jax.weights.timm_model import KERNEL_EPSILON, SIZE, TimmModel, timm_model, timm_view

_NOTE = (
    "# Photos are smoothed as they shrink, which vit_jax doesn't do: probabilities differ a little."
)


def loading_lines(checkpoint: Checkpoint, path: str | os.PathLike, format: str) -> str:
    """Returns lines of Python that load what `save` has written, and run it on PHOTO.jpg.

    Args:
      checkpoint: what was written.
      path: where.
      format: a key of `FORMATS`.

    Returns:
      The lines. Where no other program can load the file, a comment says why.
    """
    return _LINES[format](checkpoint, os.fspath(path))


def _note(view: View) -> list[str]:
    """Returns the lines on how the photo's pixels differ from those that this package computes."""
    return [_NOTE] if view.eval_resize == "bilinear" else []


def _result(checkpoint: Checkpoint) -> str:
    return "logits" if checkpoint.num_classes else "representation"


def _call(name: str, *arguments: str, **keywords: Any) -> str:
    """Returns a call as Python writes it; values are texts of Python."""
    texts = [*arguments, *(f"{key}={value}" for key, value in keywords.items())]
    line = f"{name}({', '.join(texts)})"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + ")"


# ------------------------------------------------------------------------------------------ timm


def _timm(checkpoint: Checkpoint, path: str) -> str:
    try:
        found = timm_model(checkpoint)
    except ValueError as error:
        return f"# {error}"
    view = view_of(checkpoint.config.data)
    is_folder = not path.lower().endswith(SUFFIXES)
    if is_folder:  # its config.json has all arguments
        source = path if path.startswith("hf-hub:") else f"local-dir:{path}"
        create = [f"model = timm.create_model({source!r}, pretrained=True)"]
        options = ["**timm.data.resolve_model_data_config(model)"]
    else:
        width = getattr(checkpoint.model(), "width", 0)
        bias = f"model.patch_embed.proj.bias = torch.nn.Parameter(torch.zeros({width}))"
        create = [
            f"model = {_create(found, checkpoint)}",
            *([bias] if found.arguments.get("pre_norm") else []),  # timm leaves it out
            f"model.load_state_dict(timm.models.load_state_dict({path!r}))",
        ]
        height, width = checkpoint.image_shape or (SIZE, SIZE)
        options = [f"(3, {height}, {width})"]
        options += [f"{key}={value!r}" for key, value in timm_view(view).items()]
    is_odd = "functools" in create[0]
    return "\n".join(
        [
            *(["import functools", ""] if is_odd else []),
            "import timm",
            "import torch",
            "from PIL import Image",
            "from timm.data import create_transform",
            "",
            *create,
            *_note(view),
            f"transform = {_call('create_transform', *options)}",
            'image = transform(Image.open("PHOTO.jpg").convert("RGB"))',
            "with torch.inference_mode():",
            f"    {_result(checkpoint)} = model.eval()(image[None])",
            f"print({_result(checkpoint)})",
        ]
    )


def _create(found: TimmModel, checkpoint: Checkpoint) -> str:
    """Returns the call that makes a model of timm."""
    model, num_classes = checkpoint.model(), checkpoint.num_classes
    arguments = {key: repr(value) for key, value in found.arguments.items()}
    if found.norm_epsilon is not None:
        arguments["norm_layer"] = f"functools.partial(torch.nn.LayerNorm, eps={found.norm_epsilon})"
    if not isinstance(model, ResNet):
        return _call("timm.create_model", repr(found.name), num_classes=num_classes, **arguments)
    epsilon = found.kernel_epsilon or KERNEL_EPSILON
    return _call(
        "timm.models.ResNetV2",
        layers=model.layers,
        width_factor=model.width_factor,
        num_classes=num_classes,
        stem_type="'fixed'",
        conv_layer=f"functools.partial(timm.layers.StdConv2d, eps={epsilon})",
    )


# ---------------------------------------------------------------------------------- Hugging Face


# What a class without a head gives in place of its `pooler_output`.
_REPRESENTATIONS = {
    "CLIPVisionModelWithProjection": "image_embeds",
    "Dinov2Model": "last_hidden_state[:, 0]",
    "Dinov2WithRegistersModel": "last_hidden_state[:, 0]",
    "IJepaModel": "last_hidden_state.mean(1)",
    "ViTModel": "last_hidden_state[:, 0]",
}


def _hugging_face(checkpoint: Checkpoint, path: str) -> str:
    name = class_for(checkpoint)
    attribute = "logits" if checkpoint.num_classes else _REPRESENTATIONS.get(name, "pooler_output")
    if checkpoint.model().pre_logits:
        attribute = "pooler_output"
    return "\n".join(
        [
            "import torch",
            "from PIL import Image",
            f"from transformers import AutoImageProcessor, {name}",
            "",
            f"model = {name}.from_pretrained({path!r})",
            *_note(view_of(checkpoint.config.data)),
            f"processor = AutoImageProcessor.from_pretrained({path!r})",
            'image = Image.open("PHOTO.jpg").convert("RGB")',
            "with torch.inference_mode():",
            '    outputs = model.eval()(**processor(image, return_tensors="pt"))',
            f"{_result(checkpoint)} = outputs.{attribute}",
            f"print({_result(checkpoint)})",
        ]
    )


# ---------------------------------------------------------------------------------- this package


def _vit_jax(checkpoint: Checkpoint, path: str) -> str:
    size = {} if checkpoint.image_shape else {"image_size": SIZE}
    run, result = ("predict", "predictions") if checkpoint.num_classes else ("features", "features")
    return "\n".join(
        [
            "import vit_jax",
            "",
            f"checkpoint = {_call('vit_jax.load', repr(path))}",
            f"classifier = {_call('vit_jax.Classifier', 'checkpoint', **size)}",
            f"{result} = classifier.{run}(['PHOTO.jpg'])",
            f"print({result})",
        ]
    )


_LINES: Mapping[str, Callable[[Checkpoint, str], str]] = MappingProxyType(
    {"hf": _hugging_face, "timm": _timm, "npz": _vit_jax, "orbax": _vit_jax}
)
