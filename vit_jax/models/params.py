"""Parameter trees: the shapes that a model needs, their size, and how two trees differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax.common.messages import closest
from vit_jax.config.keys import image_shape

# The layers, by their parameters' names, that follow the pooling: a new task gets new ones.
HEAD_LAYERS = ("pre_logits", "projection", "head")


def image_struct(image_size: int | Sequence[int]) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one image as a model takes it: (1, h, w, 3) float32.

    Args:
      image_size: pixels, one side or (h, w).
    """
    return jax.ShapeDtypeStruct((1, *image_shape(image_size), 3), jnp.float32)


def parameter_shapes(model: nn.Module, image_size: int | Sequence[int]) -> Any:
    """Returns the tree of a model's parameters as `jax.ShapeDtypeStruct`s; computes nothing.

    Args:
      model: what `models.build` returns.
      image_size: pixels, one side or (h, w).

    Raises:
      ValueError: the model can't take images of this size.
    """
    try:
        shapes = _parameter_shapes(model, image_shape(image_size))
    except TypeError:  # an attribute that is a list has no hash
        shapes = _parameter_shapes.__wrapped__(model, image_shape(image_size))
    return jax.tree.map(lambda x: x, shapes)  # a tree of its own, which the caller may change


@functools.lru_cache(maxsize=64)  # tracing takes 0.3 to 2 s
def _parameter_shapes(model: nn.Module, size: tuple[int, int]) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), image_struct(size))["params"]


def count_parameters(tree: Any) -> int:
    """Returns the number of parameters in a tree, each element of an array counted.

    Args:
      tree: arrays, or anything else with a `shape`, such as parameters in a file.
    """
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def check_same(found: Any, wanted: Any, where: str) -> None:
    """Raises ValueError unless two parameter trees have the same names and shapes.

    Args:
      found: nested dictionary of anything with a `shape`.
      wanted: the same of the model.
      where: says what `found` is, for the message.

    Raises:
      ValueError: they differ; lists every missing, unexpected and wrong-shaped parameter by name.
    """
    shapes = (
        {name: tuple(x.shape) for name, x in flatten_dict(tree, sep="/").items()}
        for tree in (found, wanted)
    )
    if problems := differences(*shapes):
        raise ValueError(f"{where} doesn't fit the model: " + "; ".join(problems) + ".")


def differences(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns one phrase for every missing, unexpected and wrong-shaped parameter of `found`.

    An unexpected parameter is listed with the missing one of the most similar name, if any.

    Args:
      found: shapes by name.
      wanted: the model's shapes by name.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    comparable = len(missing) * len(extra) < 10_000  # else it is another model, and comparing slow
    problems = [f"{name} is missing" for name in missing]
    for name in extra:
        hint = closest(name, missing) if comparable else ""
        problems.append(f"{name} is not in the model{hint}")
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            turned = " (transposed?)" if sorted(found[name]) == sorted(shape) else ""
            problems.append(f"{name} has the shape {found[name]}, the model's is {shape}{turned}")
    return problems
