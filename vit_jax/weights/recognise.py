"""recognise"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.models import masked
from vit_jax.models.params import differences, parameter_shapes
from vit_jax.weights import layout
from vit_jax.weights.layout import Layout, Shape, Slot

# Attributes of a model that its parameters' names and shapes decide, and that make a variant.
_SIZES = (
    "depth",
    "width",
    "mlp_dim",
    "patch_size",
    "num_heads",
    "stem",
    "axial",
    "layers",
    "width_factor",
)
_TABLES = r"Transformer/posembed_\w+/pos_embedding"


class TensorFile(NamedTuple):
    """The arrays of a file.

    Attributes:
      path: for messages.
      shapes: of its arrays, by their names in the file.
      read: name -> array; raises ValueError where the file is damaged.
      layouts: the spellings its format has.
      model: what it says of its model: `variant` and attributes, as `models.build` takes them.
      image_size: (h, w) in pixels, None where it doesn't say.
      class_names: of its head, () where it doesn't say.
    """

    path: str
    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    layouts: tuple[Layout, ...]
    model: Mapping[str, Any] = MappingProxyType({})
    image_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] = ()


class FileArray:
    """One parameter in a file: `np.asarray` reads it, as float32.

    Attributes:
      shape: of the array.
    """

    def __init__(self, file: TensorFile, theirs: str, slot: Slot, name: str, shapes: dict):
        self._file, self._theirs, self._slot = file, theirs, slot
        self._name, self._shapes = name, shapes
        self.shape = shapes[name]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._file.read(self._theirs)
        if array.dtype.kind not in "fiu" and array.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"{self._file.path}: {self._theirs} holds {array.dtype}, not numbers.")
        array = np.asarray(self._slot.part(array, self._name, self._shapes), np.float32)
        if not np.isfinite(array).all():
            bad = np.count_nonzero(~np.isfinite(array))
            raise ValueError(
                f"{self._file.path}: {bad} of the {array.size} values of {self._theirs} are NaN or "
                f"infinite; weights must be finite, so the file is damaged or its training failed."
            )
        return np.asarray(array, dtype)


def to_checkpoint(file: TensorFile, variant: str | None = None, **overrides: Any) -> Checkpoint:
    """Returns our checkpoint of a file's arrays; its parameters are `FileArray`s.

    Args:
      file: the arrays.
      variant: the model they must be of; None takes what the file says, or else its shapes show.
      **overrides: attributes of the model that depart from the variant's row.

    Raises:
      ValueError: the arrays are not those of the model; every difference is named.
    """
    spelling = layout.recognise_layout(file.layouts, file.shapes)
    ours = {
        name: shape
        for theirs in file.shapes
        for name, shape in spelling.ours(theirs, file.shapes[theirs]).items()
    }
    if not ours:
        titles = " or ".join(dict.fromkeys(x.title for x in file.layouts))
        raise ValueError(
            f"{file.path} holds no ViT or BiT ResNet as {titles} files name them: its "
            f"{len(file.shapes)} arrays are called {', '.join(list(file.shapes)[:4])}…"
        )
    seen = _attributes(ours)
    said = file.model if variant is None else _without_sizes(file.model)
    attributes = {**_without_sizes(seen), **said, **overrides}
    num_classes = _length(ours, r"head/bias|head/kernel", -1)
    try:
        if "dtype" in attributes:
            raise ValueError("dtype is a computation's, not that of weights: leave it out.")
        closest = _closest({**seen, **file.model})
        said_variant = attributes.pop("variant", closest)
        variant = models.canonical(variant or said_variant)
        attributes = _departing(variant, attributes)
        model = models.build(variant, num_classes=num_classes, **attributes)
        if (units := _units(model)) > len(ours):
            raise ValueError(f"it tells of {units} blocks, but holds {len(ours)} parameters.")
        image_shape, known = _image_shape(ours, model)
        if file.image_size is not None and _cuts(model, file.image_size):
            image_shape, known = file.image_size, True
        tree = parameter_shapes(model, image_shape)
        wanted = {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}
        slots = layout.slots([spelling], wanted)
        expected = {theirs: slot.shape(wanted) for theirs, slot in slots.items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{file.path}: {error}") from error
    if problems := _problems(file, model, expected):
        like = "" if closest == variant else f", it looks most like {closest}"
        raise ValueError(f"{file.path} isn't a {variant}{like}: {'; '.join(problems)}.")
    params = {
        name: FileArray(file, theirs, slot, name, wanted)
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


def file_arrays(
    checkpoint: Checkpoint, formats: tuple[Layout, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, float32 array) of a file in the first of the layouts that can hold them.

    Raises:
      ValueError: the format has no place for a parameter, which is named.
    """
    if checkpoint.config.model.positions_at == "shared":
        raise ValueError(
            f"{checkpoint.path} adds its positions before every block (positions_at='shared'), "
            f"which no format but Orbax can tell: its readers would add them once."
        )
    if extra := [name for name in masked.PARAMETERS if name in checkpoint.params]:
        raise ValueError(
            f"{checkpoint.path} comes from masked patch prediction, and no format but Orbax has a "
            f"place for its {' and '.join(extra)}: leave them out by num_classes=0."
        )
    params = flatten_dict(checkpoint.params, sep="/")
    for theirs, slot in layout.slots(formats, params).items():
        yield theirs, slot.join(np.asarray(params[name], np.float32) for name in slot.ours)


def image_shape_like(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns an (h, w) for which the model has parameters of the checkpoint's shapes.

    It is that of the images they are for, up to the arrangement of the patches.
    """
    flat = flatten_dict(checkpoint.params, sep="/")
    return _image_shape({name: x.shape for name, x in flat.items()}, checkpoint.model())[0]


def config_for(variant: str, image_size: tuple[int, int] | None, **attributes: Any) -> ConfigDict:
    """Returns the configuration of a model whose weights come without one.

    Only `model` and `data.image_size` of it mean something, the latter None where unknown.
    """
    config = default()
    with config.ignore_type():  # a patch may have two sides
        config.model.update(variant=models.canonical(variant), **attributes)
    config.data.image_size = side_or_sides(image_size)
    return config


def side_or_sides(image_size: tuple[int, int] | None) -> int | tuple[int, int] | None:
    """Returns (h, w) as `config.data.image_size` has it: one number for a square."""
    square = image_size is not None and image_size[0] == image_size[1]
    return image_size[0] if square else image_size


def _without_sizes(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in _SIZES}


def _departing(variant: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes that are not those the variant has anyway."""
    plain = models.build(variant, num_classes=0)
    return {k: v for k, v in attributes.items() if getattr(plain, k, None) != v}


def _units(model: nn.Module) -> int:
    stages = getattr(model, "stem", None) or getattr(model, "layers", ())
    return getattr(model, "depth", 0) + sum(stages)


def _cuts(model: nn.Module, image_size: tuple[int, int]) -> bool:
    try:
        return bool(model.grid(image_size))
    except ValueError:
        return False


def _problems(file: TensorFile, model: nn.Module, expected: dict[str, Shape]) -> list[str]:
    """Returns a sentence for each way in which a file is not of a model."""
    found = dict(file.shapes)
    for name, shape in found.items():  # GroupNorm's (1, 1, 1, c), in some files, is our (c,)
        if len(expected.get(name, ())) == 1 and set(shape[:-1]) == {1}:
            found[name] = shape[-1:]
    problems = differences(found, expected)
    for key in (key for key in file.model if key in _SIZES):
        if (value := getattr(model, key, None)) != file.model[key]:
            problems.append(f"its {key} is {file.model[key]}, the model's is {value}")
    if file.class_names and model.num_classes not in (0, len(file.class_names)):
        problems.append(
            f"it names {len(file.class_names)} classes and has logits of {model.num_classes}"
        )
    return problems


def _attributes(shapes: dict[str, Shape]) -> dict[str, Any]:
    """Returns the attributes of the model that parameters of these names and shapes are of.

    Kernels of query, key and value may have their heads flattened; then `num_heads` is left out.
    Of names or axes that are missing, there are zeros: the comparison names them later.
    """
    stages = _stages(shapes)
    if not any(name.startswith(("Transformer/", "embedding/")) for name in shapes):
        return {
            "layers": stages,
            "width_factor": _length(shapes, r"conv_root/kernel", 3) // 64,
            "axial": any("/attention/" in name for name in shapes),
        }
    patch = tuple(_length(shapes, r"embedding/kernel", axis) for axis in (0, 1))
    kinds = {"x_embedding": "2d", "pos_embedding": "1d", "offset_embedding": "relative"}
    tables = [kind for name, kind in kinds.items() if any(n.endswith(name) for n in shapes)]
    blocks = [re.match(r"Transformer/encoderblock_(\d{1,4})/", name) for name in shapes]
    tokens = _length(shapes, _TABLES, 1)
    attributes = {
        "depth": 1 + max((int(match[1]) for match in blocks if match), default=-1),
        "width": _length(shapes, r"Transformer/encoder_norm/scale|embedding/bias|cls", -1),
        "mlp_dim": _length(shapes, r".*/Dense_0/bias", -1),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "stem": stages if any(name.startswith("conv_root/") for name in shapes) else None,
        "axial": any("/row/" in name for name in shapes),
        "positions": tables[0] if tables else "none",
        "positions_at": "layers" if any("posembed_0/" in name for name in shapes) else "stem",
        # Where neither a class token nor its absence would fit the table, it is taken as missing.
        "pool": "token" if "cls" in shapes or math.isqrt(tokens) ** 2 != tokens else "gap",
        "pre_logits": any(name.startswith("pre_logits/") for name in shapes),
    }
    if _length(shapes, r".*/query/kernel", 2):
        attributes["num_heads"] = _length(shapes, r".*/query/kernel", 1)
    return attributes


def _length(shapes: dict[str, Shape], pattern: str, axis: int) -> int:
    """Returns an axis of the first parameter whose name matches, 0 where there is none."""
    shape = next((s for name, s in shapes.items() if re.fullmatch(pattern, name)), ())
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _stages(shapes: dict[str, Shape]) -> tuple[int, ...]:
    """Returns the units of each stage of a ResNet: the highest number in a name."""
    units: dict[int, int] = {}
    for match in filter(None, (re.match(r"block(\d{1,3})/unit(\d{1,4})/", n) for n in shapes)):
        stage, unit = int(match[1]), int(match[2])
        units[stage] = max(unit, units.get(stage, 0))
    return tuple(units.get(stage, 0) for stage in range(1, max(units, default=0) + 1))


def _closest(attributes: dict[str, Any]) -> str:
    """Returns the variant that agrees with most attributes, and with most stages of a ResNet."""

    def agreement(variant):
        row = {"stem": None, "axial": False, **models.VARIANTS[variant]}
        equal = sum(row.get(k, ...) == v for k, v in attributes.items() if k in _SIZES)
        pairs = [(row.get(k) or (), attributes.get(k) or ()) for k in ("stem", "layers")]
        return equal, sum(
            a == b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=False)
        )

    return max(models.VARIANTS, key=agreement)


def _image_shape(shapes: dict[str, Shape], model: nn.Module) -> tuple[tuple[int, int], bool]:
    """Returns the (h, w) of images that position embeddings are for, and whether it is known.

    From a number of tokens alone only a square grid is; for others it is put as one row.
    """
    offsets = {
        n: (_length(shapes, re.escape(n), 0) + 1) // 2
        for n in shapes
        if n.endswith("/offset_embedding")
    }
    if model.axial and offsets:  # the tables of rows are as long as there are columns
        first = "block1/unit1/attention" if hasattr(model, "layers") else ""
        stride = (4, 4) if first else model.stride
        rows, columns = (
            max((n for name, n in offsets.items() if f"{first}/{line}/" in name), default=1)
            for line in ("column", "row")
        )
        return (rows * stride[0], columns * stride[1]), True
    grid, known = (1, 1), False
    tokens = max([_length(shapes, _TABLES, 1), *offsets.values()])
    patches = tokens - (getattr(model, "pool", "") == "token")
    if rows := _length(shapes, r".*/y_embedding", 0):
        grid, known = (rows, _length(shapes, r".*/x_embedding", 0)), True
    elif patches > 0:
        side = math.isqrt(patches)
        known = side**2 == patches
        grid = (side, side) if known else (1, patches)
    return (grid[0] * model.stride[0], grid[1] * model.stride[1]), known
