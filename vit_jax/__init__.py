"""The Vision Transformer of "An Image is Worth 16x16 Words" in JAX and Flax.

From weights to an answer:

>>> import vit_jax
>>> classifier = vit_jax.Classifier("checkpoints/quickstart")
>>> classifier.predict(["docs/flowers/rose.png"])[0][0].label
'rose'

`VARIANTS` has the named models, and the attributes that each consists of:

>>> vit_jax.VARIANTS["B/16"]["width"]
768

Names are imported when they are first used.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    # Models: a Flax module by its name, and all names.
    from vit_jax.models.variants import VARIANTS, build

    # Weights: opened from anywhere, adapted to a task and resolution, written in any format.
    from vit_jax.weights.api import adapt, load, save

    # Answers and features.
    from vit_jax.inference.classifier import Classifier

    # Runs: a configuration, training, and the evaluation of a checkpoint.
    from vit_jax.config.defaults import default as default_config
    from vit_jax.jobs.evaluate import evaluate
    from vit_jax.jobs.train import train

__all__ = [
    "VARIANTS",
    "Classifier",
    "adapt",
    "build",
    "default_config",
    "evaluate",
    "load",
    "save",
    "train",
]
