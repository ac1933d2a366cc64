"""timm's state dicts, and the config.json of its hub, read and written."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import printable
from vit_jax.weights import architectures, folding, parameter_names
from vit_jax.weights.checked_json import get_typed, three_numbers, two_sides
from vit_jax.weights.layout import Layout, Shape
from vit_jax.weights.record import KEY, read_record, write_comment, write_record
from vit_jax.weights.safetensors import (
    PICKLED,
    Tensors,
    open_tensors,
    write_pickled,
    write_tensors,
)
from vit_jax.weights.tensor_file import TensorFile, file_arrays

logger = logging.getLogger(__name__)

# timm's interpolations, which are Pillow's, as `config.data.eval_resize` has them.
_RESIZES = {name: f"{name}_antialias" for name in ("bilinear", "bicubic", "lanczos", "box")}
_CROPS = {"center": "central", "squash": "squash"}  # crop_mode as `config.data.eval_crop`
_HEADS = ("head.weight", "head.fc.weight")  # of ViTs and of ResNets


def read_timm(
    path: str | os.PathLike, tensors: Tensors | None = None, architecture: str = ""
) -> TensorFile:
    """Opens a state dict of timm; its arrays are read when they are used.

    What no array shows is said by our own record in the file, or by the name of the architecture.
    Without either, weights are taken to be for the exact GELU, and for 1e-8 added to the variance
    of standardised kernels.

    Args:
      path: a `.safetensors` file, or one that PyTorch pickled, which needs PyTorch.
      tensors: the same file, if it is open already.
      architecture: timm's name of the model. "" if it is not known; the file's own name may be it.

    Raises:
      ValueError: the file can't be read, or the architecture has what our models don't compute.
        Or the bias of the patch embedding is missing, which only models with `pre_norm` lack.
    """
    path = pathlib.Path(path)
    tensors = tensors or open_tensors(path)
    shapes, text = tensors.shapes, tensors.record
    record = read_record(path, text)
    architecture = "" if record.model else architecture or path.name.removesuffix(path.suffix)
    refusal = architectures.refusal_of(architecture) or architectures.refusal_of_arrays(shapes)
    if refusal:
        raise ValueError(f"{printable(path)} can't be opened: {refusal}")
    model = architectures.attributes_of(architecture)
    if model is None:
        architecture, model = "", {}
    pooled = "attn_pool.latent" in shapes or "fc_norm.weight" in shapes
    if pooled or model.get("pool") == "map":  # the arrays show the pooling, whatever the name says
        model.pop("pool", None)
    if any("conv" in name for name in shapes):
        model = {"kernel_epsilon": 1e-8, **model}
    if "patch_embed.proj.weight" in shapes:
        # A table or a LayerNorm is missing if there is none, unless config.json says so.
        has_norm = "norm.weight" in shapes or "fc_norm.weight" in shapes
        norm = {} if has_norm else {"final_norm": "before_pool"}
        model = {"gelu": "exact", "positions": "1d", **norm, **model}
        if "patch_embed.proj.bias" not in shapes and "norm_pre.weight" not in shapes:
            raise ValueError(f"{printable(path)} isn't whole: patch_embed.proj.bias is missing.")
    file = TensorFile(str(path), shapes, tensors.read, _layouts(shapes), model)
    file = file._replace(changes=tensors.changes)
    return record.added_to(file._replace(architecture=architecture))


def _layouts(shapes: Mapping[str, Shape]) -> tuple[Layout, ...]:
    """Returns the layouts that a state dict may have, of which one is packed if its MLPs are."""
    first, last = (shapes.get(f"blocks.0.mlp.fc{n}.weight", ()) for n in (1, 2))
    if len(first) == len(last) == 2 and first[0] == 2 * last[1]:
        return (parameter_names.TIMM_PACKED,)
    return parameter_names.TIMM


def read_timm_folder(
    path: pathlib.Path, config: Mapping[str, Any], architecture: str = ""
) -> TensorFile:
    """Opens a state dict of timm that has config.json beside it, as on Hugging Face's hub.

    Args:
      path: the state dict.
      config: what config.json has.
      architecture: timm's name of the model. "" if it is the one in config.json.

    Raises:
      ValueError: config.json has something that our models don't compute, or as `read_timm`.
    """
    beside = path.with_name("config.json")
    try:
        architecture, known = _architecture(get_typed(config, "architecture", ""), architecture)
        arguments = get_typed(config, "model_args", {})
        # Early files have what belongs to images beside the architecture.
        images = get_typed(config, "pretrained_cfg", {}) or config
        names = _label_names(config)
        model = architectures.from_model_args(arguments)
        model |= _pool(arguments.get("global_pool", config.get("global_pool")))
        if known and "pool" not in known and model.pop("pool", "gap") != "gap":
            raise ValueError("global_pool must be 'avg' for a ResNet.")
        scale, changes = _scale(images)
        view = _view(images)
        size = arguments.get("img_size") or get_typed(images, "input_size", [None])[1:]
        image_size = two_sides("img_size", size) if size else None
    except ValueError as error:
        raise ValueError(f"{beside}: {error}") from None
    file = read_timm(path, architecture=architecture)
    num_classes = config.get("num_classes", arguments.get("num_classes"))
    logits = next((file.shapes[name][0] for name in _HEADS if file.shapes.get(name)), num_classes)
    if num_classes is not None and num_classes != logits:
        raise ValueError(
            f"{beside} says num_classes={num_classes!r}, but {printable(path.name)} has {logits} "
            f"logits."
        )
    return file._replace(
        model={**file.model, **model},
        mean=scale[0] or file.mean,
        std=scale[1] or file.std,
        view=view or file.view,
        image_size=file.image_size or image_size,
        class_names=names or file.class_names,
        changes=(*file.changes, *changes),
    )


def _architecture(stated: str, given: str) -> tuple[str, dict[str, Any] | None]:
    """Returns the name of an architecture, and what it says that no array shows.

    Args:
      stated: by config.json, "" if it says none.
      given: by the caller, "" if there is none.

    Raises:
      ValueError: the two are of different models, or the name is unknown.
    """
    if given and _is_known(stated) and _base_name(given) != _base_name(stated):
        raise ValueError(f"it is a {stated}, not a {given}.")
    name = given or stated
    if name and not _is_known(name):
        raise ValueError(
            f"the architecture {name!r} is unknown. It may compute something else with arrays that "
            f"have the names of a plain ViT's. If it is one, give the name of an architecture of "
            f"timm that it equals, as the variant."
        )
    return name, architectures.attributes_of(name)


def _is_known(name: str) -> bool:
    """Returns True if something is known of an architecture, even that it can't be computed."""
    return bool(architectures.refusal_of(name) or architectures.attributes_of(name))


def _pool(pool: Any) -> dict[str, str]:
    """Returns our `pool` for timm's global_pool, {} for None."""
    if pool is None:
        return {}
    if not isinstance(pool, str) or pool not in architectures.POOLS:
        known = ", ".join(architectures.POOLS)
        raise ValueError(f"global_pool is {pool!r}; known are {known}.")
    return {"pool": architectures.POOLS[pool]}


def _scale(images: Mapping[str, Any]) -> tuple[tuple[Any, Any], list[str]]:
    """Returns mean and standard deviation of a config.json, and what was taken in their place.

    Of one without the other, timm takes ImageNet's.
    """
    keys = ("mean", "std")
    found = {key: three_numbers(key, images[key]) for key in keys if images.get(key) is not None}
    missing = [key for key in keys if found and key not in found]
    usual = dict(zip(keys, architectures.IMAGENET, strict=True))
    scale = found.get("mean", usual["mean"]), found.get("std", usual["std"])
    changes = [
        f"config.json doesn't say the {key}: ImageNet's is taken, as by timm." for key in missing
    ]
    return (scale if found else (None, None)), changes


def _base_name(architecture: str) -> str:
    """Returns timm's name of the model, of which early files of quick GELUs are named otherwise."""
    return architecture.removeprefix("timm/").partition(".")[0].replace("_quickgelu", "")


def _label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the class names of a config.json, which has them in a list or by number."""
    labels = config.get("label_names") or config.get("labels") or []
    if isinstance(labels, dict):
        if labels.keys() != {str(i) for i in range(len(labels))}:
            raise ValueError("label_names must have a name for each logit, numbered from 0.")
        labels = [labels[str(i)] for i in range(len(labels))]
    return tuple(map(str, get_typed({"label_names": labels}, "label_names", [])))


def _view(images: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of `config.data` for timm's crop_pct, crop_mode and interpolation."""
    usual = {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bicubic"}  # timm's own
    stated = {key: images[key] for key in usual if images.get(key) is not None}
    if not stated:
        return {}
    mode, share, interpolation = (stated.get(key, value) for key, value in usual.items())
    known = str(mode) in _CROPS and str(interpolation) in _RESIZES
    if not known or type(share) not in (int, float):
        logger.warning(
            "pretrained_cfg has crop_mode=%r, crop_pct=%r and interpolation=%r, which evaluation "
            "doesn't have: %s with %s are known. Images are cut in the usual way.",
            *(mode, share, interpolation, ", ".join(_CROPS), ", ".join(_RESIZES)),
        )
        return {}
    return {
        "eval_crop": _CROPS[mode],
        "crop_fraction": float(share),
        "eval_resize": _RESIZES[interpolation],
    }


def write_timm(checkpoint: Checkpoint, path: str | os.PathLike) -> None:
    """Writes a state dict of timm: by PyTorch for the suffixes of its files, else as safetensors.

    The file also gets a record of what timm's names and shapes don't show, see `record`. If the
    positions of the class token are all zeros, they are left out: timm's `no_embed_class=True`.

    Raises:
      ValueError: timm has no place for some parameters, or PyTorch is needed and not installed.
    """
    path = pathlib.Path(path)
    layouts: tuple[Layout, ...] = parameter_names.TIMM
    model = checkpoint.model()
    if getattr(model, "mlp", "plain") == "swiglu" and model.norm == "layer":  # DINOv2, not AIMv2
        layouts = (parameter_names.TIMM_PACKED,)
    tensors = dict(file_arrays(folding.unfold(checkpoint), layouts))
    if path.suffix.lower() in PICKLED:
        write_pickled(tensors, path, write_comment(checkpoint))
    else:
        write_tensors(tensors, path, {"format": "pt", KEY: write_record(checkpoint)})
