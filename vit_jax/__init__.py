"""The Vision Transformer of "An Image is Worth 16x16 Words" in JAX and Flax."""
