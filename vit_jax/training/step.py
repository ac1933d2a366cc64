"""One training step: the state before and after it, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.training import optim
from vit_jax.training.objective import Metrics, Objective
from vit_jax.training.trained import join_params, split_params


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: number of updates done, int32 ().
      params: tree of float32 arrays.
      opt_state: the optimizer's state, for the trained parameters.
      average: Polyak average of the parameters, a tree like `params`; None if none is kept.
      nonfinite: number of updates refused since the last accepted one, int32 ().
      skipped: number of updates refused since the run's start, int32 ().
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    average: Any = None
    nonfinite: Any = 0
    skipped: Any = 0


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int],
    key: jax.Array,
    *,
    polyak: float = 0.0,
    freeze: str | int = "none",
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: the objective's module, which makes all parameters.
      optimizer: what `optim.optimizer` returns.
      image_shape: (h, w) in pixels.
      key: from which parameters are drawn.
      polyak: see `optim.polyak_average`; 0 keeps no average.
      freeze: see `trained.split_params`.
    """
    params = model.init(key, jnp.zeros((1, *image_shape, 3)))["params"]
    average = jax.tree.map(jnp.copy, params) if polyak else None
    step, nonfinite, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
    trained, _ = split_params(params, freeze)
    return TrainState(step, params, optimizer.init(trained), average, nonfinite, skipped)


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulate_steps: int = 1,
    polyak: float = 0.0,
    max_skipped: int = 0,
    freeze: str | int = "none",
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function `update(state, batch, key, *, device, mean) -> (state, metrics)`.

    It is one step. `batch` holds `image` uint8 (b, h, w, 3) and what else the objective reads.
    `key` is the run's: the step's number is folded in, and every micro-batch gets its own. If each
    device holds a part of the batch, `device` is its number, int32 (), which is folded in, too, and
    `mean` averages gradients and metrics over the devices. The metrics are the objective's,
    `learning_rate` and `grad_norm` (before clipping), float32 (), and the state's `nonfinite` and
    `skipped`, int32 ().

    An update with a NaN or infinite loss or gradient is refused: it counts as a step, but changes
    no parameter and no moment of the optimizer. When more than `max_skipped` updates in a row are
    refused, this and all later updates change nothing but the two counts. So the last good state
    is still there when the host reads the metrics and stops the run.

    The gradient is that of the trained parameters alone, and so are its norm and clipping. Frozen
    parameters stay as they are, and the average of one is the parameter itself.

    Args:
      objective: gives the loss and its metrics.
      optimizer: what `optim.optimizer` returns.
      learning_rate: the schedule that the optimizer follows, for the metrics.
      accumulate_steps: number of micro-batches that a batch is computed in, one after the other.
        It divides the batch size.
      polyak: see `optim.polyak_average`; 0 keeps no average.
      max_skipped: number of updates that may be refused in a row.
      freeze: see `trained.split_params`.
    """

    def update(state, batch, key, *, device=None, mean=lambda x: x):
        shared_key = jax.random.fold_in(key, state.step)
        if device is None:
            key = shared_key
        else:
            key = jax.random.fold_in(jax.random.fold_in(key, device), state.step)
        trained, frozen = split_params(state.params, freeze)

        def micro_step(batch, key):
            def loss(trained):
                return objective.loss(join_params(trained, frozen), batch, key, shared_key)

            (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trained)
            return metrics, grads

        if accumulate_steps == 1:  # on a CPU, a loop of one step would halve the speed
            total = micro_step(batch, key)
        else:
            # A micro-batch takes every accumulate_steps-th example. So if each device holds a
            # stretch of the batch, every device has its share of every micro-batch.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, accumulate_steps, *x.shape[1:]).swapaxes(0, 1), batch
            )
            parts = parts, jax.random.split(key, accumulate_steps)
            shapes = jax.eval_shape(micro_step, *jax.tree.map(lambda x: x[0], parts))
            total, _ = jax.lax.scan(
                lambda total, part: (jax.tree.map(jnp.add, total, micro_step(*part)), None),
                jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
                parts,
            )
        metrics, grads = mean(jax.tree.map(lambda x: x / accumulate_steps, total))
        grad_norm = optax.tree.norm(grads)
        stopped = state.nonfinite > max_skipped
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & ~stopped
        nonfinite = jnp.where(finite, 0, state.nonfinite + 1)
        skipped = state.skipped + ~finite
        stopped = nonfinite > max_skipped

        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        updated, opt_state = (
            jax.tree.map(lambda new, old: _accepted(new, old, finite, stopped), *pair)
            for pair in (
                (optax.apply_updates(trained, updates), trained),
                (opt_state, state.opt_state),
            )
        )
        average = state.average
        if polyak:
            before, _ = split_params(average, freeze)
            average = optim.polyak_average(before, updated, polyak, state.step)
            average = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), average, before)
            average = join_params(average, frozen)
        metrics |= {
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "nonfinite": nonfinite,
            "skipped": skipped,
        }
        step = state.step + ~stopped
        params = join_params(updated, frozen)
        return TrainState(step, params, opt_state, average, nonfinite, skipped), metrics

    return update


def _accepted(new: Any, old: Any, finite: jax.Array, stopped: jax.Array) -> jax.Array:
    """Returns a leaf of parameters or optimizer state after an update: the new one or the old.

    Integers are the optimizer's counts of steps, which a refused update also raises.
    """
    counts = jnp.issubdtype(new.dtype, jnp.integer)
    return jnp.where(~stopped if counts else finite, new, old)
