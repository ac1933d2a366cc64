"""Measurements of the package. Each file is a command: `python -m benchmarks.NAME`."""

import sys

from vit_jax.cli.interrupts import end_quietly_at_ctrl_c

if sys.argv[:1] == ["-m"]:
    end_quietly_at_ctrl_c()
