"""Each implementation of the encoder in bfloat16 beside the plain one in float32.

Same parameters and images. An error is the norm of the difference over the norm of the float32
values, of all logits or of the whole gradient. `of plain` is the error relative to that of the
plain implementation in bfloat16. Then 30 steps of training from one start.

Dropout is compared where the number of tokens is even: for an odd one, cuDNN's attention adds a
token, so other numbers are drawn.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import machine
from benchmarks.gpu import result
from benchmarks.numerics import implementations
from vit_jax import models
from vit_jax.config.defaults import default
from vit_jax.training import parallel, setup

CLASSES = 100
FOUR = {"depth": 4}  # blocks, which compile in a third of the time of twelve
WITH_80 = dict(FOUR, width=320, num_heads=4, mlp_dim=1280, patch_size=14)  # H/14's head depth
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # variant, pixels, attributes
    "S/16, 197 tokens": ("S/16", 224, FOUR),
    "S/16, 577 tokens": ("S/16", 384, FOUR),
    "S/16, 196 tokens": ("S/16", 224, {**FOUR, "pool": "gap"}),
    "S/16, 196 tokens, dropout": ("S/16", 224, {**FOUR, "pool": "gap", "dropout": 0.1}),
    "heads of 80, 257 tokens": ("S/16", 224, WITH_80),
    "heads of 80, 256 tokens, dropout": ("S/16", 224, {**WITH_80, "pool": "gap", "dropout": 0.1}),
}
SMOKE: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Ti/16, 4 tokens, dropout": ("Ti/16", 32, {"depth": 1, "pool": "gap", "dropout": 0.1}),
}


def logits_and_gradient(
    case: tuple[str, int, dict[str, Any]], implementation: str, dtype: str, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits (b, classes) and the gradient (parameters,) as float64."""
    variant, size, attributes = case
    model = models.build(
        variant, num_classes=CLASSES, dtype=dtype, implementation=implementation, **attributes
    )
    keys = iter(jax.random.split(jax.random.key(0), 4))
    images = jax.random.uniform(next(keys), (batch, size, size, 3), minval=-1, maxval=1)
    labels = jnp.arange(batch) % CLASSES
    params = jax.jit(model.init)(next(keys), images[:1])["params"]
    head = params["head"]  # its kernel starts at zero
    head["kernel"] = 0.05 * jax.random.normal(next(keys), head["kernel"].shape)
    key = next(keys)

    def loss(params):
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    precision = "highest" if dtype == "float32" else None
    with jax.default_matmul_precision(precision):
        (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)]
    return np.asarray(logits, np.float64), np.concatenate(flat)


def losses(implementation: str, dtype: str, steps: int, smoke: bool) -> list[float]:
    """Returns the losses of training steps on noise, all from one start."""
    config = default()
    config.model.variant, config.model.implementation = "Ti/16" if smoke else "S/16", implementation
    config.model.depth = 1 if smoke else FOUR["depth"]
    config.data.image_size = 32 if smoke else 224
    config.batch_size, config.dtype, config.optim.lr = 8 if smoke else 64, dtype, 0.03
    with jax.default_matmul_precision("highest" if dtype == "float32" else None):
        trained = setup.set_up(config, num_classes=CLASSES, total_steps=steps)
        program = parallel.make_program(config, update=trained.update, key=trained.key)
        state = program.init(trained.init_state, trained.init_key)
        batch = program.put_batch(machine.batch(config.batch_size, config.data.image_size, CLASSES))
        found = []
        for _ in range(steps):
            state, metrics = program.update(state, batch)
            found.append(metrics["loss"])
        return [float(x) for x in found]


def error(values: np.ndarray, exact: np.ndarray) -> float:
    """Returns the norm of the difference over the norm of the exact values."""
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    args = result.parser(__doc__).parse_args(argv)
    # XLA takes the first kernel that it finds instead of the fastest: programs run once here.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    found = result.Result(args.out, "numerics")
    names = implementations()[: 2 if args.smoke else None]
    variants = [("plain", "float32"), *((name, "bfloat16") for name in names)]
    cases = SMOKE if args.smoke else CASES
    steps = 3 if args.smoke else 30
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # programs are compiled side by side
        by_case = {
            title: [
                pool.submit(logits_and_gradient, case, *variant, 2 if args.smoke else 16)
                for variant in variants
            ]
            for title, case in cases.items()
        }
        runs = [pool.submit(losses, *variant, steps, args.smoke) for variant in variants]
        for title, futures in by_case.items():
            (logits, gradient), *others = (future.result() for future in futures)
            errors = [(error(x, logits), error(y, gradient)) for x, y in others]
            for name, (of_logits, of_gradient) in zip(names, errors, strict=True):
                row = {"case": title, "implementation": name, "logits": of_logits}
                row |= {"of plain": of_logits / errors[0][0], "gradient": of_gradient}
                row |= {"gradient, of plain": of_gradient / errors[0][1]}
                found.add("Errors in bfloat16", row)
        exact, *others = (np.array(run.result()) for run in runs)
        for name, values in zip(names, others, strict=True):
            row = {"implementation": name, "first loss": values[0], f"loss {steps}": values[-1]}
            row |= {"float32's": exact[-1], "largest difference": float(abs(values - exact).max())}
            found.add(f"{steps} steps from one start", row)


if __name__ == "__main__":
    main()
