"""From a file's arrays to a checkpoint: which model they are of, and whether they are all there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.models.attributes import of_kind, without
from vit_jax.models.params import differences, parameter_shapes
from vit_jax.weights import layout, shapes
from vit_jax.weights.layout import Shape
from vit_jax.weights.tensor_file import FileArray, TensorFile


def to_checkpoint(
    file: TensorFile, variant: str | None = None, *, assumed_pool: str = "token", **attributes: Any
) -> Checkpoint:
    """Returns the checkpoint of a file's arrays; its parameters are `FileArray`s.

    Args:
      file: the opened file.
      variant: the model that the arrays must be of. None takes the variant that the file states,
        or else the one that its shapes are closest to.
      assumed_pool: see `shapes.attributes_of`.
      **attributes: attributes of the model; they override what the file states and what its shapes
        show.

    Raises:
      ValueError: the arrays are not those of the model; every difference is named.
    """
    file_layout = layout.recognise_layout(file.layouts, file.shapes)
    our_shapes = {
        name: shape
        for theirs in file.shapes
        for name, shape in file_layout.ours(theirs, file.shapes[theirs]).items()
    }
    if not our_shapes:
        titles = " or ".join(dict.fromkeys(x.title for x in file.layouts))
        raise ValueError(
            f"{file.path} holds no ViT or BiT ResNet as {titles} files name them: its "
            f"{len(file.shapes)} arrays are called {', '.join(list(file.shapes)[:4])}…"
        )
    shape_attributes = shapes.attributes_of(our_shapes, assumed_pool=assumed_pool)
    stated_attributes = file.model if variant is None else without(file.model, "size")
    attributes = {**without(shape_attributes, "size"), **stated_attributes, **attributes}
    num_classes = shapes.num_classes_of(our_shapes)
    try:
        if "dtype" in attributes:
            raise ValueError("dtype belongs to a computation, not to weights: leave it out.")
        closest = shapes.closest_variant({**shape_attributes, **file.model})
        stated_variant = attributes.pop("variant", closest)
        variant = models.canonical(variant or stated_variant)
        attributes = _changed_from(variant, attributes)
        model = models.build(variant, num_classes=num_classes, **attributes)
        if (blocks := _blocks(model)) > len(our_shapes):  # such a model would take long to compare
            raise ValueError(f"it records {blocks} blocks, but has {len(our_shapes)} parameters.")
        image_shape, known = shapes.image_shape_of(our_shapes, model)
        if file.image_size is not None and _can_cut(model, file.image_size):
            image_shape, known = file.image_size, True
        tree = parameter_shapes(model, image_shape)
        model_shapes = {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}
        slots = layout.slots([file_layout], model_shapes)
        expected_shapes = {theirs: slot.shape(model_shapes) for theirs, slot in slots.items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    if problems := _problems(file, model, expected_shapes):
        like = "" if closest == variant else f", it looks most like {closest}"
        raise ValueError(f"{file.path} isn't a {variant}{like}: {'; '.join(problems)}.")
    params = {
        name: FileArray(file, theirs, slot, name, model_shapes)
        for theirs, slot in slots.items()
        for name in slot.ours
    }
    return Checkpoint(
        path=file.path,
        params=unflatten_dict(params, sep="/"),
        config=config_for(variant, image_shape if known else None, **attributes),
        class_names=file.class_names if num_classes else (),
        step=0,
    )


def any_image_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns an image size for which the model has parameters of the checkpoint's shapes.

    Returns:
      (height, width) in pixels. The images that the checkpoint is for have as many patches, but
      perhaps in another arrangement.
    """
    flat = flatten_dict(checkpoint.params, sep="/")
    shape, _ = shapes.image_shape_of({k: x.shape for k, x in flat.items()}, checkpoint.model())
    return shape


def config_for(variant: str, image_size: tuple[int, int] | None, **attributes: Any) -> ConfigDict:
    """Returns a configuration for weights that come without one.

    Only its `model` and `data.image_size` have a meaning.

    Args:
      variant: name of the model.
      image_size: (height, width) in pixels. None if it is not known.
      **attributes: attributes of the model that are not those of the variant.
    """
    config = default()
    with config.ignore_type():  # a patch may have two sides
        config.model.update(variant=models.canonical(variant), **attributes)
    config.data.image_size = side_or_sides(image_size)
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


def _problems(file: TensorFile, model: nn.Module, expected_shapes: dict[str, Shape]) -> list[str]:
    """Returns one phrase for each way in which a file is not of a model.

    Args:
      file: the opened file.
      model: the module.
      expected_shapes: shapes of the model's arrays, by their names in the file.
    """
    file_shapes = dict(file.shapes)
    for name, shape in file_shapes.items():  # some files have a GroupNorm's (c,) as (1, 1, 1, c)
        if len(expected_shapes.get(name, ())) == 1 and set(shape[:-1]) == {1}:
            file_shapes[name] = shape[-1:]
    problems = differences(file_shapes, expected_shapes)
    for key in of_kind(file.model, "size"):
        if (value := getattr(model, key, None)) != file.model[key]:
            problems.append(f"its {key} is {file.model[key]}, the model's is {value}")
    if file.class_names and model.num_classes not in (0, len(file.class_names)):
        problems.append(
            f"it names {len(file.class_names)} classes, but has {model.num_classes} logits"
        )
    return problems
