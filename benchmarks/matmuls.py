"""The share of matmuls in a forward pass, and their speed on this machine.

    python -m benchmarks.matmuls Ti/16 S/16 B/16 --json=matmuls.json

Each kind of matmul of an encoder is timed alone, at the sizes of the model and batch, in float32
and by XLA. It takes turns with the forward pass and with one large matmul, 2048 x 2048 x 2048,
whose rate stands for the machine's peak. `share` is the time of the model's matmuls relative to
that of the forward pass. The rest of the forward pass is all that a faster formulation of other
operations could save.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from vit_jax import models
from vit_jax.cli.environment import keep_freed_memory

PEAK = "2048 x 2048 x 2048"


def matmuls(model: Any, batch: int, tokens: int) -> dict[str, tuple[int, tuple, tuple]]:
    """Returns the matmuls of a forward pass: name -> (how many, shapes of the two operands)."""
    rows, d, k = batch * tokens, model.width, model.num_heads
    heads = (batch * k, tokens, d // k)
    return {
        "query, key, value, out": (4 * model.depth, (rows, d), (d, d)),
        "MLP, in": (model.depth, (rows, d), (d, model.mlp_dim)),
        "MLP, out": (model.depth, (rows, model.mlp_dim), (model.mlp_dim, d)),
        "scores": (model.depth, heads, (batch * k, d // k, tokens)),
        "weights x values": (model.depth, (batch * k, tokens, tokens), heads),
    }


def measure(variant: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each kind of matmul, and one for the forward pass."""
    import jax
    import jax.numpy as jnp

    model = models.build(variant, num_classes=1000)
    rng = np.random.default_rng(0)

    def array(shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    images = array((args.batch, args.image_size, args.image_size, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    rows, columns = model.grid((args.image_size, args.image_size))
    tokens = model.num_class_tokens + rows * columns
    kinds = matmuls(model, args.batch, tokens)
    kinds[PEAK] = (0, (2048, 2048), (2048, 2048))
    multiply = jax.jit(jnp.matmul)
    runs: dict[str, Callable[[], jax.Array]] = {
        name: functools.partial(multiply, array(left), array(right))
        for name, (_, left, right) in kinds.items()
    }
    forward = jax.jit(lambda params, x: model.apply({"params": params}, x))
    runs["forward pass"] = lambda: forward(params, images)

    def seconds(run, steps):
        start = time.perf_counter()
        for _ in range(steps):
            result = run()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / steps

    steps = {}
    for name, run in runs.items():
        seconds(run, 1)  # compiles
        steps[name] = max(1, round(args.seconds / seconds(run, 1)))
    turns = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            turns[name].append(seconds(run, steps[name]))
    taken = {name: machine.median(times) for name, times in turns.items()}

    def row(name, flops, share):
        return {
            "model": variant,
            "product": name,
            "GFLOPs": flops / 1e9,
            "GFLOP/s": flops / 1e9 / taken[name],
            "of peak": f"{flops / taken[name] / peak:.0%}",
            "share": f"{share / taken['forward pass']:.0%}" if share else None,
        }

    peak = 2 * 2048**3 / taken[PEAK]
    flops = {name: 2 * np.prod(left) * right[-1] for name, (_, left, right) in kinds.items()}
    total = sum(kinds[name][0] * flops[name] for name in kinds)
    spent = sum(kinds[name][0] * taken[name] for name in kinds)
    return [
        *(row(name, flops[name], kinds[name][0] * taken[name]) for name in kinds),
        row("forward pass", total, spent),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.matmuls`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matmuls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", nargs="+", help="ViTs, such as Ti/16")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each matmul")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    keep_freed_memory()
    rows = [row for variant in args.variant for row in measure(variant, args)]
    about = machine.description("flax")
    about |= {k: getattr(args, k) for k in ("batch", "image_size", "rounds")}
    machine.report("Matmuls", rows, about, args.json)


if __name__ == "__main__":
    main()
