"""The seam between pure steps and devices: the only file that says pmap, Mesh, shard, replicate.

`pmap` returns a `Parallel`: the same functions whatever lies beneath. To its callers, state
is a tree of ordinary arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.objectives import Metrics
from vit_jax.step import TrainState


class Parallel(NamedTuple):
    """One program on all devices.

    Attributes:
      init: (function, *arguments) -> its result, a state or a part of one, placed on the devices.
      update: (state, device batch) -> (state, metrics); the given state's buffers are reused.
      evaluate: (params, device batch) -> sums over the whole batch of all devices.
      represent: (params, device batch) -> arrays (b, …) of the whole batch of all devices, device
        by device, one after the other.
      put_batch: this process's part of a batch, host arrays (b, …) -> device batch.
      gather: arrays that all devices hold alike -> host arrays.
    """

    init: Callable[..., Any]
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Any], Metrics]
    represent: Callable[[Any, Any], Any]
    put_batch: Callable[[Any], Any]
    gather: Callable[[Any], Any]


def pmap(
    evaluate: Callable[..., Metrics] | None = None,
    update: Callable[..., tuple[TrainState, Metrics]] | None = None,
    key: jax.Array | None = None,
    represent: Callable[..., Any] | None = None,
) -> Parallel:
    """Data parallelism: every device holds the whole state and computes its part of the batch.

    Args:
      evaluate: an `Objective`'s.
      update: what `step.make_update` returns.
      key: the run's key; each device folds its number in, so that dropout differs between them.
      represent: (params, batch) -> arrays with one entry an example, as `fewshot.represent`.

    What is None can't be called.
    """
    axis = "batch"
    replicated = NamedSharding(Mesh(np.array(jax.devices()), (axis,)), PartitionSpec())

    def init(function, *args):
        return jax.jit(function, out_shardings=replicated)(*args)

    def device_update(state, batch):
        device_key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return update(state, batch, device_key, mean=lambda x: jax.lax.pmean(x, axis))

    def device_evaluate(params, batch):
        return jax.lax.psum(evaluate(params, batch), axis)

    def device_represent(params, batch):
        return jax.lax.all_gather(represent(params, batch), axis, tiled=True)

    def put_batch(batch):
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)

    return Parallel(
        init=init,
        update=jax.pmap(device_update, axis, in_axes=(None, 0), out_axes=None, donate_argnums=0),
        evaluate=jax.pmap(device_evaluate, axis, in_axes=(None, 0), out_axes=None),
        represent=jax.pmap(device_represent, axis, in_axes=(None, 0), out_axes=None),
        put_batch=put_batch,
        gather=jax.device_get,
    )


BODIES = {"pmap": pmap}  # by the value of config.parallel
