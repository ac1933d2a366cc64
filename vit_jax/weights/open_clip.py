"""Image towers in files of open_clip and OpenAI's CLIP, with open_clip's configuration beside."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.common.names import printable
from vit_jax.weights import architectures
from vit_jax.weights.checked_json import get_typed, parse_json, three_numbers, two_sides
from vit_jax.weights.parameter_names.open_clip import (
    OPEN_CLIP,
    OPEN_CLIP_NORM_AFTER,
    OPEN_CLIP_TIMM,
    TRUNK,
)
from vit_jax.weights.record import read_record
from vit_jax.weights.safetensors import Tensors, open_tensors
from vit_jax.weights.tensor_file import PROJECTION, TensorFile

logger = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

_MEAN_AND_STD = architectures.CLIP  # open_clip's own default
_IN_OPENAIS_FILES = "input_resolution"  # a number that is among the arrays there, and nowhere else
# The settings of open_clip as our `pool`, `eval_crop` and `eval_resize`.
_POOLS = {"tok": "token", "avg": "gap"}
_PARTS = {"positions": "1d", "final_norm": "before_pool"}  # of all its own towers
_CROPS = {"shortest": "central", "squash": "squash"}
_RESIZES = {"bicubic": "bicubic_antialias", "bilinear": "bilinear_antialias"}


def has_names(names: Iterable[str]) -> bool:
    """Returns True if arrays have the names of open_clip."""
    return any(name.removeprefix("module.").startswith("visual.") for name in names)


def read_open_clip(
    path: pathlib.Path, tensors: Tensors | None = None, architecture: str = ""
) -> TensorFile:
    """Opens a file of open_clip or of OpenAI's CLIP; its arrays are read when they are used.

    Only the image tower is taken. What no array shows is said by open_clip_config.json beside the
    file, or else by the name of the architecture. Without either, images are taken to be scaled and
    cut as CLIP's, and OpenAI's files to have the quick GELU. For all others a warning says that the
    exact one is taken.

    Args:
      path: a file of safetensors, or one that PyTorch pickled.
      tensors: the same file, if it is open already.
      architecture: timm's name of the model, "" if it is not known.

    Raises:
      ValueError: the file or the configuration can't be read, or the tower is no ViT of ours.
    """
    tensors = tensors or open_tensors(path)
    shapes = {name.removeprefix("module."): shape for name, shape in tensors.shapes.items()}
    if any(name.startswith("visual.layer1.") for name in shapes):
        raise ValueError(f"{printable(path)} can't be opened: its image tower is CLIP's ResNet.")
    prefix = "" if shapes.keys() == tensors.shapes.keys() else "module."
    file = TensorFile(
        str(path),
        shapes,
        lambda name: tensors.read(prefix + name),
        (OPEN_CLIP, OPEN_CLIP_TIMM),
        problem_type=PROJECTION,
        architecture=architecture,
        changes=tensors.changes,
    )
    if (beside := path.with_name(CONFIG)).is_file():
        config = parse_json(beside, beside.read_bytes())
        try:
            file = _configured(file, config)
        except ValueError as error:
            raise ValueError(f"{beside}: {error}") from None
    else:
        file = _assumed(file)
    refusal = architectures.refusal_of(file.architecture) or architectures.refusal_of_arrays(
        name.removeprefix(TRUNK) for name in shapes
    )
    if refusal:
        raise ValueError(f"{printable(path)} can't be opened: {refusal}")
    return read_record(path, tensors.record).added_to(file)


def _assumed(file: TensorFile) -> TensorFile:
    """Returns an opened file with what is taken if no configuration is beside it."""
    named = architectures.attributes_of(file.architecture)
    if any(name.startswith(TRUNK) for name in file.shapes):
        return file._replace(model=named or {"gelu": "exact"})
    mean, std = _MEAN_AND_STD
    model = {"gelu": "exact", "norm_epsilon": 1e-5, "pool": "token", **_PARTS}
    if _IN_OPENAIS_FILES in file.shapes:
        width = (file.shapes.get("visual.class_embedding") or (0,))[0]
        model |= {"gelu": "quick", "num_heads": width // 64, "pre_norm": True}
    elif named is None:
        logger.warning(
            "%s: no %s is beside it, so nothing says which GELU it was trained with, nor what is "
            "pooled. Taken: gelu='exact', pool='token'. Models whose names have quickgelu, and "
            "those of OpenAI, need gelu='quick'.",
            printable(file.path),
            CONFIG,
        )
    said = "No configuration says how images are scaled and cut: that of CLIP is taken."
    return file._replace(
        model=model | (named or {}), mean=mean, std=std, view=_view(), changes=(*file.changes, said)
    )


def _configured(file: TensorFile, config: Mapping[str, Any]) -> TensorFile:
    """Returns an opened file with what open_clip_config.json says.

    Raises:
      ValueError: a value is of the wrong kind, or our models don't compute what it asks for.
    """
    model = _section(config, "model_cfg")
    vision = _section(model, "vision_cfg")
    images = _section(config, "preprocess_cfg")
    mean, std = (
        three_numbers(key, images.get(key, default))
        for key, default in zip(("mean", "std"), _MEAN_AND_STD, strict=True)
    )
    image_size = two_sides("image_size", vision.get("image_size", 224))
    size = two_sides("size", images.get("size", list(image_size)))
    if size != image_size:
        raise ValueError(f"images get the size {size}, but the model is one of {image_size}.")
    view = _view(images.get("resize_mode", "shortest"), images.get("interpolation", "bicubic"))
    if view["eval_crop"] == "central" and image_size[0] != image_size[1]:
        view["eval_resize"] = _RESIZES["bicubic"]  # open_clip doesn't read the interpolation then
    file = file._replace(mean=mean, std=std, view=view, image_size=image_size)
    if vision.get("timm_model_name"):
        return _configured_trunk(file, vision)
    if get_typed(vision, "attentional_pool", False):
        raise ValueError("attentional_pool has queries of its own, which our models don't compute.")
    pool = vision.get("pool_type", "tok")
    if pool not in list(_POOLS):
        raise ValueError(f"pool_type is {pool!r}; known are {', '.join(_POOLS)}.")
    head_width, width = get_typed(vision, "head_width", 64), get_typed(vision, "width", 768)
    tanh = _section(vision, "act_kwargs").get("approximate") == "tanh"
    gelu = "quick" if get_typed(model, "quick_gelu", False) else "tanh" if tanh else "exact"
    layouts = file.layouts
    if get_typed(vision, "final_ln_after_pool", False) and pool == "avg":
        layouts = (OPEN_CLIP_NORM_AFTER,)
    return file._replace(
        layouts=layouts,
        model={
            "depth": get_typed(vision, "layers", 12),
            "width": width,
            "num_heads": width // head_width if head_width > 0 else 0,
            "gelu": gelu,
            "norm_epsilon": _section(vision, "norm_kwargs").get("eps", 1e-5),
            "pool": _POOLS[pool],
            "pre_norm": not get_typed(vision, "no_ln_pre", False),
            "projection": get_typed(model, "embed_dim", 512),
            **_PARTS,
            **({"final_norm": "after_pool"} if layouts != file.layouts else {}),
        },
    )


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns the object under a key of a configuration, without what is null in it."""
    return {k: x for k, x in get_typed(values, key, {}).items() if x is not None}


def _view(crop: Any = "shortest", resize: Any = "bicubic") -> dict[str, Any]:
    """Returns the keys of `config.data` for open_clip's resize_mode and interpolation."""
    for key, value, known in (("resize_mode", crop, _CROPS), ("interpolation", resize, _RESIZES)):
        if value not in list(known):
            raise ValueError(f"{key} is {value!r}; known are {', '.join(known)}.")
    return {"eval_crop": _CROPS[crop], "crop_fraction": 1.0, "eval_resize": _RESIZES[resize]}


def _configured_trunk(file: TensorFile, vision: Mapping[str, Any]) -> TensorFile:
    """Returns an opened file with what is said of a tower that is one of timm's models."""
    architecture = get_typed(vision, "timm_model_name", "")
    named = architectures.attributes_of(architecture)
    if named is None:
        raise ValueError(
            f"timm_model_name is {architecture!r}, which is no plain ViT that is known here."
        )
    pool = vision.get("timm_pool", "avg")
    if pool and pool not in list(architectures.POOLS):
        raise ValueError(f"timm_pool is {pool!r}; known are {', '.join(architectures.POOLS)}.")
    model = named | ({"pool": architectures.POOLS[pool]} if pool else {})
    return file._replace(architecture=architecture, model=model)
