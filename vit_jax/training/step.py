"""step"""

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


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: updates done, int32 ().
      params: tree of float32 arrays.
      opt_state: of the optimizer.
      average: the Polyak average of the parameters, None where none is kept.
      nonfinite: updates refused in a row, up to now, int32 ().
      skipped: updates refused in all, int32 ().
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    average: Any = None
    nonfinite: Any = 0
    skipped: Any = 0


def identity(x: Any) -> Any:
    """The mean over devices, where there is one."""
    return x


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int],
    key: jax.Array,
    *,
    polyak: float = 0.0,
) -> TrainState:
    """Returns the state before the first step, for images of (h, w) pixels."""
    params = model.init(key, jnp.zeros((1, *image_shape, 3)))["params"]
    average = jax.tree.map(jnp.copy, params) if polyak else None
    step, nonfinite, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), average, nonfinite, skipped)


def make_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulate_steps: int = 1,
    polyak: float = 0.0,
    max_skipped: int = 0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `update(state, batch, key, *, mean=identity) -> (state, metrics)`.

    `batch` holds `image` uint8 (b, h, w, 3) and what else the objective reads. `key` is the run's:
    the step's number is folded in, and every micro-batch gets its own. `mean` averages gradients
    and metrics over the devices that each hold a part of the batch. The metrics are float32
    scalars: the objective's, `learning_rate`, and `grad_norm` before clipping; and the state's
    `nonfinite` and `skipped`.

    An update with a NaN or infinite loss or gradient is refused: it counts as a step, but changes
    no parameter and no average of the optimizer. The one that comes after `max_skipped` refused in
    a row, and all that follow it, change nothing but the two counts, so that the state of before
    is still there when the host comes to see it.

    Args:
      accumulate_steps: micro-batches that a batch is computed in.
      polyak: see `optim.polyak_average`; 0 keeps no average.
      max_skipped: updates that may be refused in a row.
    """

    def update(state, batch, key, *, mean=identity):
        key = jax.random.fold_in(key, state.step)

        def micro_step(batch, key):
            gradient = jax.value_and_grad(objective.loss, has_aux=True)
            (_, metrics), grads = gradient(state.params, batch, key)
            return metrics, grads

        if accumulate_steps == 1:  # a loop of one step would halve the speed on a CPU
            total = micro_step(batch, key)
        else:
            # Every so many-th example: each device that holds a stretch of them has its share.
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

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = (
            jax.tree.map(lambda new, old: _accepted(new, old, finite, stopped), *pair)
            for pair in ((params, state.params), (opt_state, state.opt_state))
        )
        average = state.average
        if polyak:
            average = optim.polyak_average(average, params, polyak, state.step)
            average = jax.tree.map(
                lambda new, old: jnp.where(stopped, old, new), average, state.average
            )
        metrics |= {
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "nonfinite": nonfinite,
            "skipped": skipped,
        }
        step = state.step + ~stopped
        return TrainState(step, params, opt_state, average, nonfinite, skipped), metrics

    return update


def _accepted(new: Any, old: Any, finite: jax.Array, stopped: jax.Array) -> jax.Array:
    """Returns a leaf after an update; the optimizer's integers are counts of steps."""
    counts = jnp.issubdtype(new.dtype, jnp.integer)
    return jnp.where(~stopped if counts else finite, new, old)
