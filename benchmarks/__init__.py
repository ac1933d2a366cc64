"""Measurements of the package. Each file is a command: `python -m benchmarks.NAME`."""

import sys

# A contender's own interpreter, such as that of --tf_python, doesn't have vit_jax's packages.
if not any(argument.startswith("--contender=tf.data") for argument in sys.argv):
    import vit_jax  # so that Ctrl-C has no traceback, while a file imports the rest
