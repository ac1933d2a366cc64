"""Learning-rate schedules, optimizers and the average of the parameters.

`SCHEDULES` and `OPTIMIZERS` have one function each for every name that `config.optim` may choose;
a new one is a function and its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from vit_jax.models import lora
from vit_jax.models.params import HEAD_LAYERS
from vit_jax.training.trained import rate_factors

# ------------------------------------------------------------------------------- schedules

# By the value of config.optim.decay: (optim.lr, steps, optim.lr_end) -> learning rate by step.
SCHEDULES: dict[str, Callable[[float, int, float], optax.Schedule]] = {
    "cosine": lambda lr, steps, end: optax.cosine_decay_schedule(lr, steps, alpha=end / lr),
    "linear": lambda lr, steps, end: optax.linear_schedule(lr, end, steps),
    "constant": lambda lr, steps, end: optax.constant_schedule(lr),
}


def learning_rate_schedule(optim: ConfigDict, total_steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise from 0, then the schedule.

    Args:
      optim: `config.optim`; reads `lr`, `lr_end`, `warmup_steps` and `decay`, a key of
        `SCHEDULES`.
      total_steps: length of the run. If the warm-up is longer, the rate only rises.
    """
    steps = max(1, total_steps - optim.warmup_steps)
    decay = SCHEDULES[optim.decay](optim.lr, steps, optim.lr_end)
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, optim.lr, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])


# ------------------------------------------------------------------------------- optimizers


def sgd(optim: ConfigDict) -> optax.GradientTransformation:
    """Returns SGD with momentum, `optim.momentum`, which is kept as `optim.momentum_dtype`."""
    return optax.trace(optim.momentum, accumulator_dtype=optim.momentum_dtype)


def adam(optim: ConfigDict) -> optax.GradientTransformation:
    """Returns Adam with `optim.beta1` and `optim.beta2`.

    The first moment is kept as `optim.momentum_dtype`, the second as float32.
    """
    return optax.scale_by_adam(optim.beta1, optim.beta2, mu_dtype=optim.momentum_dtype)


def muon(optim: ConfigDict) -> optax.GradientTransformation:
    """Returns Muon, by Optax: the direction of a matrix is its momentum, made orthogonal.

    Jordan et al., https://kellerjordan.github.io/posts/muon, 2024. The direction is scaled such
    that its entries are about as large as Adam's, so learning rates and weight decays of Adam can
    be kept (Liu et al., arXiv 2502.16982). What isn't a matrix by `matrix_axes` follows Adam, with
    Nesterov's momentum.

    Reads `momentum` (public code: 0.95), and for Adam `beta1` and `beta2`. The momentum and the
    first moment are kept as `momentum_dtype`.
    """
    return optax.contrib.muon(
        learning_rate=-1.0,  # the direction itself: `optimizer` has the rate and the weight decay
        beta=optim.momentum,
        mu_dtype=optim.momentum_dtype,
        adam_b1=optim.beta1,
        adam_b2=optim.beta2,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=0.2,
    )


_NOT_MATRICES = {"embedding", "conv_root", "conv_0", "patch_head", *HEAD_LAYERS}


def matrix_axes(params: Any) -> Any:
    """Returns the tree of `params` with the axes of the matrices that Muon makes orthogonal.

    These are the kernels, but not those of the first and the last layers: the patch embedding, a
    stem's first layer, and the head. A kernel of attention has an axis for the heads, which belongs
    to its output, or to the input of `out`. The input of a convolution is its window. All else is
    None.
    """

    def axes(path, x):
        names = tuple(part.key for part in path)
        if names[-1] != "kernel" or not _NOT_MATRICES.isdisjoint(names):
            return None
        inputs = 1 if names[-2] in ("query", "key", "value") else x.ndim - 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, x.ndim)))

    return jax.tree.map_with_path(axes, params)


# By the value of config.optim.name: config.optim -> gradient to direction of the step. Clipping,
# weight decay and the learning rate are added to each by `optimizer`.
OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "muon": muon,
}


def optimizer(optim: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the chosen optimizer, with clipping before it and weight decay after it.

    The gradient's global norm is clipped. Weight decay is decoupled (Loshchilov & Hutter, arXiv
    1711.05101), on kernels only, and multiplied by the learning rate, so that the
    values of the paper's table 3 can be used unchanged. At last the whole update of a parameter,
    weight decay included, is multiplied by its factor of `trained.rate_factors`.

    Args:
      optim: `config.optim`; reads `name`, a key of `OPTIMIZERS`, the keys of that optimizer,
        `clip_norm` (0: no clipping), `weight_decay`, `lr`, `layer_decay` and `head_lr`.
      learning_rate: what `learning_rate_schedule` returns.
    """
    rule = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        OPTIMIZERS[optim.name](optim),
        optax.add_decayed_weights(optim.weight_decay, mask=weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    if optim.layer_decay == 1 and optim.head_lr is None:
        return rule

    def update(grads, state, params=None):
        updates, state = rule.update(grads, state, params)
        return jax.tree.map(jnp.multiply, updates, rate_factors(updates, optim)), state

    return optax.GradientTransformation(rule.init, update)  # whose state is that of `rule`


def weight_decay_mask(params: Any) -> Any:
    """Returns the tree of `params` with True where weight decay applies: at kernels, and LoRA's."""
    decayed = ("kernel", *lora.NAMES)
    return jax.tree.map_with_path(lambda path, _: path[-1].key in decayed, params)


# ---------------------------------------------------------------------------------- average


def polyak_average(average: Any, params: Any, factor: float, step: jax.Array) -> Any:
    """Returns the average of the parameters after one more update (paper table 2).

    After T updates the parameters of update t weigh in proportion to factor^(T - t).
    This is an exponential moving average without the share of the initial parameters. With the
    paper's factor of 0.9999, that share would still be 14 % after 20,000 steps.

    Args:
      average: what this function returned before, a tree of float32 arrays. Before the first
        update it may hold any finite numbers.
      params: the parameters after the update.
      factor: in (0, 1).
      step: number of updates done before this one, int32 ().
    """
    weight = (1 - factor) / -jnp.expm1((step + 1) * math.log(factor))
    return optax.incremental_update(params, average, weight)
