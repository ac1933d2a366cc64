"""The models of the paper as Flax Linen modules; start at `vit.py`."""

from vit_jax.models.variants import VARIANTS, build, canonical, plain

__all__ = ["VARIANTS", "build", "canonical", "plain"]
