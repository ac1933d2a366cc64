"""Hugging Face's image processors: how an image becomes what a model is given.

Only their settings are read and written, `preprocessor_config.json`. Newer versions of transformers
have them in `processor_config.json` for models of images and text.

Where a crop can't be exactly in the centre, transformers begins it half a pixel before it, and we
may begin it half a pixel behind it, as timm does.
"""

from __future__ import annotations

import logging
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.names import printable
from vit_jax.data.transforms import view_of
from vit_jax.weights.architectures import CLIP
from vit_jax.weights.checked_json import get_typed, parse_json, three_numbers, two_sides
from vit_jax.weights.tensor_file import UNCHANGED

logger = logging.getLogger(__name__)

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

# What a class of image processors takes for keys that are not in the file.
_SQUARE = {"size": 224, "resample": 3, "image_mean": 0.5, "image_std": 0.5}
_CLIP = {
    "size": {"shortest_edge": 224},
    "resample": 3,
    "image_mean": list(CLIP[0]),
    "image_std": list(CLIP[1]),
    "do_center_crop": True,
    "crop_size": 224,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**_SQUARE, "resample": 2},
    "DeiT": {**_SQUARE, "size": 256, "do_center_crop": True, "crop_size": 224},
    "Siglip": _SQUARE,
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
# A single number as `size` is the shorter side, not both.
_SHORTER_SIDE = ("CLIP", "Bit")
_OTHER_STEPS = ("ConvNext", "Levit", "EfficientNet")  # shares of the size, other scales
# The image processor of models whose config.json has this model_type, and which name none.
_OF_MODELS = {
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "Siglip",
}
# All published weights of these have the numbers of their class, those of the others don't.
_USUAL = ("clip_vision_model", "siglip_vision_model")

# Pillow's numbers of its filters. Those that we lack have one that is close.
_RESAMPLES = {
    1: "lanczos_antialias",
    2: "bilinear_antialias",
    3: "bicubic_antialias",
    4: "box_antialias",
}
_CLOSE_RESAMPLES = {0: ("nearest", "bilinear"), 5: ("hamming", "bilinear_antialias")}
_OTHER_SETTINGS = ("crop_pct", "keep_aspect_ratio", "size_divisor", "offset", "rescale_offset")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


class Images(NamedTuple):
    """How images become what a model is given.

    Attributes:
      mean, std, view: as in `TensorFile`.
      size: (height, width) in pixels that all images get. None if it is not known.
    """

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    view: Mapping[str, Any] = {}
    size: tuple[int, int] | None = None


def read_images(folder: pathlib.Path, model_type: str) -> Images:
    """Returns what the image processor in a folder does.

    If there is none, and published weights of the model's type all have the same mean and standard
    deviation, these are taken, and a warning is logged.

    Args:
      folder: of the weights.
      model_type: as in config.json, of the image tower.

    Raises:
      ValueError: it does what we can't do, or a file is damaged.
    """
    for name in (PREPROCESSOR, PROCESSOR):
        path = folder / name
        if not path.is_file():
            continue
        given = parse_json(path, path.read_bytes())
        try:
            if name == PROCESSOR:
                if "image_processor" not in given:  # it has processors of other things alone
                    continue
                given = get_typed(given, "image_processor", {})
            return _read(given, model_type, printable(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if model_type not in _USUAL:
        return Images()
    images = _read({}, model_type, "")
    logger.warning(
        "%s has no %s. Taken for granted: the mean %s and the standard deviation %s, which "
        "published models of this kind have.",
        printable(folder),
        PREPROCESSOR,
        images.mean,
        images.std,
    )
    return images._replace(size=None)


def _read(given: Mapping[str, Any], model_type: str, where: str) -> Images:
    """Returns what an image processor with these settings does."""
    given = {key: value for key, value in given.items() if value is not None}
    named = given.get("image_processor_type", given.get("feature_extractor_type"))
    kind = _OF_MODELS.get(model_type, "ViT")
    if named is not None:
        kind = re.sub(r"(FeatureExtractor|ImageProcessor(Fast|Pil)?)$", "", str(named))
    if kind in _OTHER_STEPS:
        raise ValueError(f"image_processor_type is {named!r}, which has steps of its own.")
    values = {**_DEFAULTS.get(kind, {}), **given}
    others = [key for key, x in values.items() if key.startswith("do_") and key not in _STEPS and x]
    others += [key for key in _OTHER_SETTINGS if values.get(key)]
    if not values.get("do_resize", True) and values.get("do_center_crop", False):
        others.append("do_resize")  # a centre of images as they are, of whatever size
    if others:
        key = others[0]
        raise ValueError(
            f"{key} is {values[key]!r}, and images can't be prepared in this way here: they are "
            f"resized, cut, scaled and normalised, in this order."
        )
    steps = {key: get_typed(values, key, key != "do_center_crop") for key in _STEPS}
    mean, std = _mean_and_std(values, steps)
    view, size = _view(values, steps, kind in _SHORTER_SIDE, where)
    return Images(mean, std, view, size)


def _mean_and_std(values: Mapping[str, Any], steps: Mapping[str, bool]) -> tuple[Any, Any]:
    """Returns mean and standard deviation of pixels in [0, 1]; None if they are not known."""
    factor = values.get("rescale_factor", 1 / 255) if steps["do_rescale"] else 1
    if type(factor) not in (int, float) or not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"rescale_factor must be a number above 0, not {factor!r}.")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if steps["do_normalize"]:
        if not {"image_mean", "image_std"} <= values.keys():
            return None, None
        mean, std = (
            three_numbers(key, x if isinstance(x := values[key], list) else [x] * 3)
            for key in ("image_mean", "image_std")
        )
    if min(std) <= 0:
        raise ValueError(f"image_std must be above 0, not {std}.")
    scale = 255 * factor
    return tuple(x / scale for x in mean), tuple(x / scale for x in std)


def _view(
    values: Mapping[str, Any], steps: Mapping[str, bool], shorter_side: bool, where: str
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Returns the keys of `config.data` that say what is seen of images; and their final size.

    Args:
      values: the settings.
      steps: whether a step is done, by its key.
      shorter_side: True if a single number as `size` is the shorter side.
      where: the file's name, for the warning.
    """
    if not {"size", "resample"} <= values.keys():
        return {}, None
    resample = values["resample"]
    if type(resample) is not int or resample not in {**_RESAMPLES, **_CLOSE_RESAMPLES}:
        raise ValueError(f"resample must be the number of one of Pillow's filters, not {resample}.")
    if resample in _CLOSE_RESAMPLES:
        name, resize = _CLOSE_RESAMPLES[resample]
        logger.warning(
            "%s: images are resized by %s, not by Pillow's %s filter (resample=%d), so that "
            "answers may differ.",
            where,
            resize,
            name,
            resample,
        )
    else:
        resize = _RESAMPLES[resample]
    if not steps["do_resize"]:  # whoever gives images gives them in the model's size
        return {"eval_crop": "whole", "eval_resize": resize}, None
    size = values["size"]
    if shorter_side and not isinstance(size, dict):
        size = {"shortest_edge": size}
    one_side = isinstance(size, dict) and size.keys() == {"shortest_edge"}
    resized = two_sides("size", size["shortest_edge"]) if one_side else _two_sides("size", size)
    if not steps["do_center_crop"] and not one_side:
        return {"eval_crop": "whole", "eval_resize": resize}, resized
    cut = resized
    if steps["do_center_crop"]:
        cut = _two_sides("crop_size", values.get("crop_size", list(resized)))
    fraction = cut[0] / resized[0]
    if fraction > 1 or abs(cut[1] / fraction - resized[1]) > 1:  # sizes are rounded
        raise ValueError(
            f"images are resized to {resized[0]}x{resized[1]} and cut to {cut[0]}x{cut[1]} (height "
            f"x width): a part of the same shape that is not larger can be cut out."
        )
    crop = "central_down" if one_side else "squash"
    return {"eval_crop": crop, "crop_fraction": fraction, "eval_resize": resize}, cut


def _two_sides(key: str, value: Any) -> tuple[int, int]:
    """Returns (height, width), which a file has in a dictionary, or as one number or two."""
    if isinstance(value, dict):
        if value.keys() != {"height", "width"}:
            raise ValueError(f"{key} must have a height and a width, not {value!r}.")
        value = [value["height"], value["width"]]
    return two_sides(key, value)


def image_processor_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the settings of an image processor that shows images as a checkpoint's evaluation.

    Pillow's filters antialias; a view without antialiasing gets the filter of the same name. A
    centre that is not square can't be written; the whole image is resized then.

    Args:
      checkpoint: its image size must be known.
    """
    height, width = checkpoint.image_shape or (0, 0)
    view = view_of(checkpoint.config.data)
    name = view.eval_resize.removesuffix("_antialias")
    config: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": next(n for n, x in _RESAMPLES.items() if x == f"{name}_antialias"),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(UNCHANGED),
        "image_std": list(UNCHANGED),
    }
    resized = [math.floor(side / view.crop_fraction + 1e-9) for side in (height, width)]
    if view.eval_crop == "squash":
        config["image_processor_type"] = "DeiTImageProcessor"
        config["size"] = {"height": resized[0], "width": resized[1]}
    elif view.eval_crop.startswith("central") and height == width:
        config["image_processor_type"] = "CLIPImageProcessor"
        config["size"] = {"shortest_edge": resized[0]}
    else:
        return config
    return config | {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
