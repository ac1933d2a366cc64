"""The Vision Transformer of "An Image is Worth 16x16 Words" in JAX and Flax."""


def __getattr__(name):
    """Makes `from vit_jax import Classifier` work without importing all of it for everything."""
    if name == "Classifier":
        from vit_jax.predict import Classifier

        return Classifier
    raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
