"""Parameters"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from vit_jax.config.keys import image_shape


def parameter_shapes(model: nn.Module, image_size: int | Sequence[int]) -> Any:
    """Returns the tree of a model's parameters as `jax.ShapeDtypeStruct`s; computes nothing.

    Args:
      model: a module of `models.build`.
      image_size: pixels: one side, or (h, w).

    Raises:
      ValueError: the model can't take images of this size.
    """
    return jax.eval_shape(model.init, jax.random.key(0), image_struct(image_size))["params"]


def image_struct(image_size: int | Sequence[int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape(image_size), 3), jnp.float32)


def check_same(found: Any, wanted: Any, where: str) -> None:
    """Compares the names and shapes of two parameter trees.

    Args:
      found, wanted: nested dictionaries of anything with a shape.
      where: what `found` is, for the message.

    Raises:
      ValueError: lists every missing, unexpected and wrong-shaped parameter by name.
    """
    shapes = (
        {name: tuple(x.shape) for name, x in flatten_dict(tree, sep="/").items()}
        for tree in (found, wanted)
    )
    if problems := differences(*shapes):
        raise ValueError(f"{where} doesn't fit the model: " + "; ".join(problems) + ".")


def differences(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns a sentence for every missing, unexpected and wrong-shaped parameter of `found`.

    What is unexpected comes with the missing parameter of the most similar name, if there is one.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    comparable = len(missing) * len(extra) < 10_000  # else it is another model altogether
    problems = [f"{name} is missing" for name in missing]
    for name in extra:
        close = difflib.get_close_matches(name, missing, n=1) if comparable else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        problems.append(f"{name} is not in the model{hint}")
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            turned = " (transposed?)" if sorted(found[name]) == sorted(shape) else ""
            problems.append(f"{name} has the shape {found[name]}, the model's is {shape}{turned}")
    return problems
