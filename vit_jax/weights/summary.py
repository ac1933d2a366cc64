"""A checkpoint in words."""

from __future__ import annotations

import math

from flax.traverse_util import flatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.keys import model_attributes
from vit_jax.models.attributes import of_kind


def describe(checkpoint: Checkpoint, parameters: bool = False) -> str:
    """Returns a line on a checkpoint: variant, image size, classes and number of parameters.

    Args:
      checkpoint: any; its parameters are not read.
      parameters: if True, lines with the name and shape of each parameter come before.
    """
    flat = flatten_dict(checkpoint.params, sep="/")
    width = max(map(len, flat))
    lines = [f"{name:{width}}  {tuple(x.shape)}" for name, x in flat.items()]
    total = sum(math.prod(x.shape) for x in flat.values())
    if shape := checkpoint.image_shape:
        images = f"{shape[0]} x {shape[1]} pixels"
    elif "Transformer" in checkpoint.params:  # the patches may form several grids
        images = "an unknown image size"
    else:  # a ResNet
        images = "any image size"
    classes = f"{checkpoint.num_classes} classes" if checkpoint.num_classes else "no head"
    attributes = of_kind(model_attributes(checkpoint.config), "size", "weights")
    sizes = " and ".join(f"{name}={value}" for name, value in attributes.items())
    variant = f"{checkpoint.config.model.variant}{f' with {sizes}' * bool(sizes)}"
    summary = f"{variant}, {images}, {classes}: {total:,} parameters"
    return "\n".join([*lines, summary] if parameters else [summary])
