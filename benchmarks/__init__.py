"""Measurements of the package. Each file is a command: `python -m benchmarks.NAME`."""

import vit_jax  # so that Ctrl-C has no traceback, while a file imports the rest
