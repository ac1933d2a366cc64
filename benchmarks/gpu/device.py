"""The chip, versions, and the peaks that a large matmul and a copy reach."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine
from benchmarks.gpu import result

PACKAGES = ("jaxlib", "flax", "optax", "torch", "timm", "grain", "simplejpeg")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"


def seconds(function: Callable[..., Any], *args: Any, repeats: int = 20) -> float:
    """Returns the median seconds of a jitted function, over five turns of some runs each."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(repeats):
            out = function(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begin) / repeats)
    return machine.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    args = result.parser(__doc__).parse_args(argv)
    found = result.Result(args.out, "device")
    about = machine.description()
    for name in PACKAGES:
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about[name] = "not installed"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        values = subprocess.run(command, capture_output=True, text=True).stdout.split(",")
        about |= {k: v.strip() for k, v in zip(QUERY.split(","), values, strict=False)}
    for key, value in about.items():
        found.add("Machine", {"what": key, "value": str(value)})
    size = 512 if args.smoke else 8192
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    took = seconds(jax.jit(lambda a, b: a @ b), a, b)
    rate = 2 * size**3 / took / 1e12
    found.add("Peaks", {"what": f"bfloat16 matmul {size}^3", "TFLOP/s or GB/s": rate})
    x = jnp.ones((2**20 if args.smoke else 2**31,), jnp.bfloat16)
    took = seconds(jax.jit(lambda x: x + 1), x)
    rate = 2 * x.nbytes / took / 1e9
    found.add("Peaks", {"what": "copy, bytes read and written", "TFLOP/s or GB/s": rate})


if __name__ == "__main__":
    main()
