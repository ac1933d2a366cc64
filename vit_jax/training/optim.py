"""optim"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(optim: ConfigDict, total_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up from 0, then the decay to 0 at the end.

    Args:
      optim: `config.optim`: lr, warmup_steps, decay.
      total_steps: length of the run; a warm-up that is longer never ends.
    """
    steps = max(1, total_steps - optim.warmup_steps)
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(optim.lr, steps),
        "linear": lambda: optax.linear_schedule(optim.lr, 0.0, steps),
        "constant": lambda: optax.constant_schedule(optim.lr),
    }[optim.decay]()
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, optim.lr, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])


def weight_decay_mask(params: Any) -> Any:
    """Returns the tree of `params` with True where weight decay applies: at every `kernel`."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def optimizer(optim: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum, or Adam, after clipping the gradient's global norm.

    Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101), on kernels only, and scaled
    by the learning rate as the step itself is: 0.1 in the paper's table 3 is 0.1 here.

    Args:
      optim: `config.optim`.
      learning_rate: what `learning_rate_schedule` returns.
    """
    dtype = optim.momentum_dtype  # the second moment of Adam is float32
    direction = {
        "sgd": lambda: optax.trace(optim.momentum, accumulator_dtype=dtype),
        "adam": lambda: optax.scale_by_adam(optim.beta1, optim.beta2, mu_dtype=dtype),
    }[optim.name]()
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        direction,
        optax.add_decayed_weights(optim.weight_decay, mask=weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def polyak_average(average: Any, params: Any, factor: float, step: jax.Array) -> Any:
    """Returns the running average of the parameters after one more update (paper table 2).

    After T updates the parameters of update t weigh factor^(T - t), and the weights sum to one: an
    exponential moving average without the share of the initial parameters, which after 20,000
    steps with the paper's 0.9999 would still be 14 %.

    Args:
      average: tree of float32 arrays; of no effect before the first update.
      params: the parameters after the update.
      factor: in (0, 1).
      step: updates done before this one, int32 ().
    """
    weight = (1 - factor) / -jnp.expm1((step + 1) * math.log(factor))
    return optax.incremental_update(params, average, weight)
