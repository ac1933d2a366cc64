"""From a file's arrays to a checkpoint: which model they are of, and whether they are all there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.config.defaults import default
from vit_jax.models.attributes import of_kind
from vit_jax.models.params import differences, parameter_shapes
from vit_jax.weights import folding, shapes
from vit_jax.weights.layout import Shape
from vit_jax.weights.named_arrays import comparable_shapes, named_arrays
from vit_jax.weights.parameter_names.rules import TABLE
from vit_jax.weights.tensor_file import MULTI_LABEL, LazyArray, TensorFile

logger = logging.getLogger(__name__)

# The sizes that a variant's row states: with `variant`, the arrays must have them.
_ROW_KEYS = frozenset(key for row in models.VARIANTS.values() for key in of_kind(row, "size"))
_USUAL_DEPTH = 64  # features of an attention head in nearly all ViTs


def to_checkpoint(
    file: TensorFile,
    variant: str | None = None,
    *,
    assumed_pool: str | None = None,
    **attributes: Any,
) -> Checkpoint:
    """Returns the checkpoint of a file's arrays; its parameters are `LazyArray`s.

    The sizes of the model are those of the arrays. What no array shows is what the caller says, or
    else the file, or else the variant. If nothing says the number of attention heads, it is that of
    a variant of this width, or one for 64 features, of which a warning is logged.

    Args:
      file: the opened file.
      variant: the model that the arrays must be of. None takes the variant that the file states,
        or else the one that its shapes are closest to, with the sizes of the arrays.
      assumed_pool: see `shapes.attributes_of`. None for "token", with a warning.
      **attributes: attributes of the model; they override what the file states and what its shapes
        show. With a `patch_size`, that of the arrays may be any: the caller resizes it.

    Raises:
      ValueError: the arrays are not those of the model; every difference is named.
    """
    names = named_arrays(file)
    patches = _patches(file, names.arrays)
    given = {name: x for name, x in attributes.items() if name != "patch_size"}
    if "patch_size" in attributes:  # only the arrays show what they are to be resized from
        file = file._replace(model={k: v for k, v in file.model.items() if k != "patch_size"})
    try:
        if "dtype" in given:
            raise ValueError("dtype belongs to a computation, not to weights: leave it out.")
        folded, changes = folding.fold(
            names.arrays,
            mean=file.mean,
            std=file.std,
            patches=patches,
            class_rows=names.layout.class_rows,
            zeros=names.layout.zeros,
        )
        our_shapes = {name: x.shape for name, x in folded.items()}
        num_classes = shapes.num_classes_of(our_shapes)
        shown = shapes.attributes_of(
            our_shapes,
            pool=file.model.get("pool"),
            assumed_pool="gap" if names.layout.class_rows is False else assumed_pool or "token",
        )
        # A size of 0 is one whose array is missing: it is that of the variant, and is reported.
        shown = {k: v for k, v in shown.items() if v != 0 or k not in of_kind(shown, "size")}
        found = {**shown, **file.model}
        closest = shapes.closest_variant(found)
        stated_variant = found.pop("variant", closest)
        guessed = []
        if variant is not None:
            checked = _ROW_KEYS - attributes.keys()
            found = {k: v for k, v in found.items() if k not in checked}
        elif "variant" not in file.model and "width" in found:
            if "num_heads" not in found | given:
                guessed.append("num_heads")
                found["num_heads"] = _usual_heads(found["width"], models.VARIANTS[closest])
            is_known = assumed_pool is not None or "pool" in {**file.model, **given}
            if shown["pool"] == "token" and not is_known:
                guessed.append("pool")
        variant = models.canonical(variant or stated_variant)
        own = _changed_from(variant, found | given)
        model = models.build(variant, num_classes=num_classes, **own)
        if (blocks := _blocks(model)) > len(our_shapes):  # such a model would take long to compare
            raise ValueError(f"it records {blocks} blocks, but has {len(our_shapes)} parameters.")
        image_shape, known = shapes.image_shape_of(our_shapes, model)
        if file.image_size is not None:
            if "crop_to_patches" not in given and not _can_cut(model, file.image_size):
                own["crop_to_patches"] = True  # as the sources' convolutions do
                model = models.build(variant, num_classes=num_classes, **own)
            model.grid(file.image_size)  # raises if it isn't possible
            image_shape, known = file.image_size, True
        tree = parameter_shapes(model, image_shape)
        model_shapes = {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}
        stated = {k: v for k, v in of_kind(file.model, "size").items() if k not in given}
        problems = _problems(
            file, model, stated, *comparable_shapes(file, names, folded, model_shapes)
        )
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    if problems:
        like = "" if closest == variant else f", it looks most like {closest}"
        sizes = of_kind(shown, "size").items()
        if other := [f"{k}={v!r}" for k, v in sizes if getattr(model, k, v) != v]:
            problems.insert(0, f"its arrays are those of {', '.join(other)}")
        raise ValueError(f"{file.path} isn't a {variant}{like}: {'; '.join(problems)}.")
    overruled = [
        f"{name} is {value!r}, as asked for, not {file.model[name]!r}."
        for name, value in given.items()
        if file.model.get(name, value) != value
    ]
    for sentence in overruled:
        logger.warning("%s: %s", printable(file.path), sentence)
    if patches is None and folded.get(TABLE) is not names.arrays.get(TABLE):
        guessed.append("grid")
    unknown, taken = _unknown(file, model, guessed)
    if unknown:
        logger.warning(
            "%s: nothing in it says %s. Taken: %s.",
            *(printable(file.path), ", nor ".join(unknown), ", ".join(taken)),
        )
    left_out = [f"Left out: {first_few(names.ignored)}."] if names.ignored else []
    params = {name: folded[name].reshaped(shape) for name, shape in model_shapes.items()}
    return Checkpoint(
        path=file.path,
        params=unflatten_dict(params, sep="/"),
        config=config_for(
            variant,
            image_shape if known else None,
            view=file.view,
            loss="sigmoid" if file.problem_type == MULTI_LABEL else "softmax",
            **own,
        ),
        class_names=file.class_names if num_classes else (),
        step=0,
        changes=(*file.changes, *changes, *overruled, *left_out),
    )


def _patches(file: TensorFile, arrays: Mapping[str, LazyArray]) -> int | None:
    """Returns the number of patches of a file's images. None if it is not known."""
    kernel = arrays["embedding/kernel"].shape if "embedding/kernel" in arrays else ()
    has_stem = "conv_root/kernel" in arrays or "conv_stem/conv_0/kernel" in arrays
    if file.image_size is None or len(kernel) != 4 or has_stem:
        return None
    return (file.image_size[0] // kernel[0]) * (file.image_size[1] // kernel[1])


def _usual_heads(width: int, closest: Mapping[str, Any]) -> int:
    """Returns the number of attention heads of the closest variant, or of heads of 64 features.

    Args:
      width: of the model.
      closest: the row of the closest variant.

    Raises:
      ValueError: the width can't be divided so.
    """
    if closest.get("width") == width:
        return closest["num_heads"]
    if width % _USUAL_DEPTH:
        raise ValueError(
            f"nothing says how many attention heads share the width of {width}: give num_heads."
        )
    return width // _USUAL_DEPTH


def _unknown(
    file: TensorFile, model: nn.Module, guessed: Collection[str]
) -> tuple[list[str], list[str]]:
    """Returns what nothing says of a file's model and images, and what is taken, in words.

    Args:
      file: the opened file.
      model: what is taken.
      guessed: what is assumed: "num_heads", "pool", or "grid" if that of patches is concluded from
        the number of positions.
    """
    unknown, taken = [], []
    if "num_heads" in guessed:
        unknown.append("how many attention heads there are")
        taken.append(f"{model.num_heads} heads")
    if "pool" in guessed:
        unknown.append("what is pooled")
        taken.append(f"pool={model.pool!r}")
    if unknown:
        taken.append(f"gelu={model.gelu!r}")
    if file.mean is None:
        unknown.append("with which mean and standard deviation images were scaled")
        taken.append("images with values in [-1, 1]")
    if unknown and "grid" in guessed:
        unknown.append("for which grid of patches the positions are")
    if unknown and not file.view:
        unknown.append("how images were cut")
        taken.append("the central part of them")
    return unknown, taken


def any_image_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns an image size for which the model has parameters of the checkpoint's shapes.

    Returns:
      (height, width) in pixels. The images that the checkpoint is for have as many patches, but
      perhaps in another arrangement.
    """
    flat = flatten_dict(checkpoint.params, sep="/")
    shape, _ = shapes.image_shape_of({k: x.shape for k, x in flat.items()}, checkpoint.model())
    return shape


def config_for(
    variant: str,
    image_size: tuple[int, int] | None,
    *,
    view: Mapping[str, Any] = MappingProxyType({}),
    loss: str = "softmax",
    **attributes: Any,
) -> ConfigDict:
    """Returns a configuration for weights that come without one.

    Only its `model`, `data.image_size`, `optim.loss` and the keys of `view` have a meaning.

    Args:
      variant: name of the model.
      image_size: (height, width) in pixels. None if it is not known.
      view: keys of `config.data` that say how images are resized and cut in evaluation.
      loss: what the head was trained with, see `Checkpoint.loss`.
      **attributes: attributes of the model that are not those of the variant.
    """
    config = default()
    with config.ignore_type():  # a patch may have two sides
        config.model.update(variant=models.canonical(variant), **attributes)
        config.data.update(**view)
    config.data.image_size, config.optim.loss = side_or_sides(image_size), loss
    return config


def side_or_sides(image_size: tuple[int, int] | None) -> int | tuple[int, int] | None:
    """Returns (height, width) as `config.data.image_size` has it: one number for a square."""
    if image_size is None or image_size[0] != image_size[1]:
        return image_size
    return image_size[0]


def _changed_from(variant: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes that differ from those of the variant."""
    unchanged = models.build(variant, num_classes=0)
    return {k: v for k, v in attributes.items() if getattr(unchanged, k, None) != v}


def _blocks(model: nn.Module) -> int:
    """Returns the number of a model's blocks and residual units."""
    stages = getattr(model, "stem", None) or getattr(model, "layers", None) or ()
    return getattr(model, "depth", 0) + sum(stages)


def _can_cut(model: nn.Module, image_size: tuple[int, int]) -> bool:
    try:
        return bool(model.grid(image_size))
    except ValueError:
        return False


def _problems(
    file: TensorFile,
    model: nn.Module,
    stated: Mapping[str, Any],
    found: dict[str, Shape],
    expected: dict[str, Shape],
) -> list[str]:
    """Returns one phrase for each way in which a file is not of a model.

    Args:
      file: the opened file.
      model: the module.
      stated: sizes that the file states, and that the model must have.
      found: shapes of the file's arrays, by name.
      expected: shapes of the model's, by the same names.
    """
    problems = differences(found, expected)
    for key, value in stated.items():
        if (own := getattr(model, key, None)) != value:
            problems.append(f"its {key} is {value}, the model's is {own}")
    if file.class_names and model.num_classes not in (0, len(file.class_names)):
        problems.append(
            f"it names {len(file.class_names)} classes, but has {model.num_classes} logits"
        )
    return problems
