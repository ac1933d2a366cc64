"""The Vision Transformer of "An Image is Worth 16x16 Words" in JAX and Flax."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from vit_jax.config.defaults import default as default_config
    from vit_jax.inference.classifier import Classifier
    from vit_jax.jobs.evaluate import evaluate
    from vit_jax.jobs.train import train
    from vit_jax.models.variants import VARIANTS, build
    from vit_jax.weights.api import adapt, load, save
