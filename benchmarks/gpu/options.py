"""Training steps with one setting changed, in turns with the default: what is worth having.

Each option is a process of its own, since XLA reads its flags once. The first compiles alone, since
XLA chooses between kernels by timing them; the others find most of its choices in a cache.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import machine


class Option(NamedTuple):
    """A setting.

    Attributes:
      flags: for XLA_FLAGS.
      apply: changes the code of this process; returns keys of the configuration to change.
    """

    flags: str = ""
    apply: Callable[[], dict[str, Any]] = dict


def _layer_norm() -> dict[str, Any]:
    """The LayerNorm of "custom_vjp" in every implementation."""
    from vit_jax.models import encoder, layers

    def norm_layer(*args, implementation, dtype):
        del implementation
        return layers.norm_layer(*args, implementation="custom_vjp", dtype=dtype)

    encoder.norm_layer = norm_layer
    return {}


def _convolution() -> dict[str, Any]:
    """Patches are embedded by a convolution."""
    from vit_jax.models import patches, vit

    def embedding(*args, as_matmul, **kwargs):
        del as_matmul
        return patches.PatchEmbedding(*args, **kwargs)

    vit.PatchEmbedding = embedding
    return {}


def _plain_gelu() -> dict[str, Any]:
    from vit_jax.models import encoder, layers

    encoder.gelu = lambda x, kind, implementation: layers.gelu(x, kind, "plain")
    return {}


def _plain_dense() -> dict[str, Any]:
    import flax.linen as nn

    from vit_jax.models import attention, encoder

    encoder.dense = attention.dense = lambda implementation: nn.DenseGeneral
    return {}


def _fused_qkv() -> dict[str, Any]:
    """Query, key and value as one matmul with concatenated kernels."""
    import flax.linen as nn
    import jax.numpy as jnp

    from vit_jax.models import attention

    class Projection(nn.Module):
        heads: tuple[int, int]

        @nn.compact
        def __call__(self, width):
            init = nn.initializers.xavier_uniform()
            kernel = self.param("kernel", lambda key, shape: init(key, shape), (width, *self.heads))
            return kernel, self.param("bias", nn.initializers.zeros, self.heads)

    class Attention(attention.MultiHeadDotProductAttention):
        @nn.compact
        def __call__(self, x):
            width = x.shape[-1]
            heads = (self.num_heads, width // self.num_heads)
            parts = [Projection(heads, name=n)(width) for n in ("query", "key", "value")]
            kernel = jnp.concatenate([k.reshape(width, width) for k, _ in parts], 1)
            bias = jnp.concatenate([b.reshape(width) for _, b in parts])
            y = x.reshape(-1, width) @ kernel.astype(self.dtype) + bias.astype(self.dtype)
            y = y.reshape(*x.shape[:-1], 3, *heads)
            y = self.attention_fn(y[..., 0, :, :], y[..., 1, :, :], y[..., 2, :, :])
            init = nn.initializers.xavier_uniform()
            out = self.dense(width, axis=(-2, -1), name="out", kernel_init=init, dtype=self.dtype)
            return out(y)

    attention.MultiHeadDotProductAttention = Attention
    return {}


OPTIONS = {
    "default": Option(),
    "Triton matmuls": Option("--xla_gpu_enable_triton_gemm=true"),
    "latency hiding": Option("--xla_gpu_enable_latency_hiding_scheduler=true"),
    "no command buffers": Option("--xla_gpu_enable_command_buffer="),
    "convolution": Option(apply=_convolution),
    "LayerNorm by hand": Option(apply=_layer_norm),
    "plain GELU": Option(apply=_plain_gelu),
    "plain dense layers": Option(apply=_plain_dense),
    "fused QKV": Option(apply=_fused_qkv),
    "remat dots": Option(apply=lambda: {"model.remat": "dots"}),
    "no class token": Option(apply=lambda: {"model.pool": "gap"}),
    "dropout": Option(apply=lambda: {"model.dropout": 0.1}),
    "one block": Option(apply=lambda: {"model.depth": 1}),  # --smoke of the part `speed`
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    from benchmarks.gpu import result
    from benchmarks.gpu.steps import Cell

    begin = time.monotonic()
    parser = result.parser(__doc__)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS)[:6])
    parser.add_argument("--variants", nargs="+", default=["B/16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    found = result.Result(args.out, "options")
    cells = [
        Cell("vit_jax", variant, "training", batch, 224, "bfloat16")
        for variant, batch in zip(args.variants, args.batches, strict=True)
    ]
    if args.smoke:
        cells = [Cell("vit_jax", "Ti/16", "training", 2, 32, "float32")]
    names = args.options[:2] if args.smoke else args.options
    share = 0.8 / len(names)
    trace = str(pathlib.Path(args.out, "trace"))
    # XLA keeps here which matmul kernels are fastest; the first process finds most of them.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_per_fusion_autotune_cache_dir="
    flags += str(pathlib.Path(args.out, "autotuned").resolve())
    pathlib.Path(args.out, "autotuned").mkdir(parents=True, exist_ok=True)

    def start(name):
        env = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
        env["XLA_FLAGS"] = f"{flags} {OPTIONS[name].flags}".strip()
        command = [sys.executable, "-m", "benchmarks.gpu.steps", "vit_jax"]
        command += [json.dumps(cells), f"--option={name}", "--turn=0.4"]
        if name == "no command buffers":  # in command buffers, kernels have no names in a trace
            command.append(f"--trace={trace}")
        return machine.Contender(name, command, env)

    running: dict[str, machine.Contender] = {}

    def wait(name):
        try:
            running[name].ask(0)
            print(f"{name}: ready after {time.monotonic() - begin:.0f} s", flush=True)
        except RuntimeError as error:  # it doesn't know a flag, or needs more memory
            print(f"{name}: {error}", flush=True)
            del running[name]

    try:
        running[names[0]] = start(names[0])
        wait(names[0])
        running |= {name: start(name) for name in names[1:]}
        for name in names[1:]:
            wait(name)
        for number, cell in enumerate(cells):
            turns = [
                {name: cell.batch / contender.ask(number) for name, contender in running.items()}
                for _ in range(args.rounds)
            ]
            for name in running:
                speeds = [turn[name] for turn in turns]
                row = {"option": name, "model": cell.variant, "batch": cell.batch}
                row |= {"images/s": machine.median(speeds)}
                row |= {"slowest": min(speeds), "fastest": max(speeds)}
                ratios = (turn[name] / turn[names[0]] for turn in turns)
                found.add("Options", {**row, f"of {names[0]}": machine.median(ratios)})
    finally:
        for contender in running.values():
            contender.close()
    for number, cell in enumerate(cells):
        file = pathlib.Path(f"{trace}{number}.json")
        for table, rows in (json.loads(file.read_text()) if file.exists() else {}).items():
            for row in rows:
                found.add(f"{cell.variant}, batch {cell.batch}: {table}", row)


if __name__ == "__main__":
    main()
