"""The names and axes of each format's arrays, as rules of `layout`.

A file is written in the first layout of its format that has a place for everything.
"""

from vit_jax.weights.parameter_names.jax_files import NPZ, OURS
from vit_jax.weights.parameter_names.timm import TIMM, TIMM_PACKED

__all__ = ["NPZ", "OURS", "TIMM", "TIMM_PACKED"]
