"""The configuration of a run."""

from vit_jax.config.defaults import default
from vit_jax.config.keys import image_shape, model_attributes

__all__ = ["default", "image_shape", "model_attributes"]
