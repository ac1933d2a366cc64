"""Data sets of our own for tfds, and tfds data without TensorFlow."""
