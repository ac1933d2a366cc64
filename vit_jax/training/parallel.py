"""parallel"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vit_jax.training.objective import Metrics
from vit_jax.training.step import TrainState

SMALLEST_SHARDED = 2**14  # elements of an array that `sharded` divides


class Parallel(NamedTuple):
    """One program on all devices.

    Attributes:
      init: (function, *arguments) -> its result, a state or a part of one, placed on the devices.
      update: (state, device batch) -> (state, metrics); the given state's buffers are reused.
      lower: (state, this process's batch), both of `jax.ShapeDtypeStruct` -> `update`, lowered: to
        be compiled, not run, so the devices needn't be there.
      evaluate: (params, device batch) -> sums over the whole batch of all devices.
      represent: (params, device batch) -> arrays (b, …) of the whole batch of all devices, device
        by device, one after the other.
      put_batch: this process's part of a batch, host arrays (b, …) -> device batch, which is on
        its way when this returns.
      gather: arrays -> whole arrays on the host of every process.
    """

    init: Callable[..., Any]
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    lower: Callable[[TrainState, Any], jax.stages.Lowered]
    evaluate: Callable[[Any, Any], Metrics]
    represent: Callable[[Any, Any], Any]
    put_batch: Callable[[Any], Any]
    gather: Callable[[Any], Any]


def pmap(
    evaluate: Callable[..., Metrics] | None = None,
    update: Callable[..., tuple[TrainState, Metrics]] | None = None,
    key: jax.Array | None = None,
    represent: Callable[..., Any] | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Data parallelism: every device holds the whole state and computes its part of the batch.

    Args:
      evaluate: an `Objective`'s.
      update: what `step.make_update` returns.
      key: the run's key; each device folds its number in, so that dropout differs between them.
      represent: (params, batch) -> arrays with one entry an example, as `fewshot.represent`.
      devices: of this one process; None for all, of all processes.

    What is None can't be called.
    """
    axis = "batch"
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (axis,))
    replicated = NamedSharding(mesh, PartitionSpec())
    local = jax.local_devices() if devices is None else devices
    over_local = NamedSharding(Mesh(np.array(local), (axis,)), PartitionSpec(axis))
    over_devices = functools.partial(jax.pmap, axis_name=axis, devices=devices, in_axes=(None, 0))

    def init(function, *args):
        return jax.jit(function, out_shardings=replicated)(*args)

    def global_arrays(tree):
        """Of several hosts, `jax.pmap` returns each one's copies alone."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, replicated, [shard.data for shard in x.addressable_shards]
            ),
            tree,
        )

    def device_update(state, batch):
        device_key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return update(state, batch, device_key, mean=lambda x: jax.lax.pmean(x, axis))

    def device_evaluate(params, batch):
        return jax.lax.psum(evaluate(params, batch), axis)

    def device_represent(params, batch):
        return jax.lax.all_gather(represent(params, batch), axis, tiled=True)

    def by_device(batch):
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)

    update_all = over_devices(device_update, out_axes=None, donate_argnums=0)

    return Parallel(
        init=init,
        update=lambda state, batch: global_arrays(update_all(state, batch)),
        lower=lambda state, batch: update_all.lower(state, jax.eval_shape(by_device, batch)),
        evaluate=over_devices(device_evaluate, out_axes=None),
        represent=over_devices(device_represent, out_axes=None),
        put_batch=lambda batch: jax.device_put(by_device(batch), over_local),
        gather=jax.device_get,
    )


def sharded(
    evaluate: Callable[..., Metrics] | None = None,
    update: Callable[..., tuple[TrainState, Metrics]] | None = None,
    key: jax.Array | None = None,
    represent: Callable[..., Any] | None = None,
    *,
    fsdp: int | None = None,
    smallest: int = SMALLEST_SHARDED,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Data parallelism with a divided state, for models that don't fit into one device.

    The devices form a mesh ("data", "fsdp"). Batches are divided over both axes; parameters,
    optimizer state and average over "fsdp", by `partition`. The step is that of one device with
    the whole batch: the compiler finds what to exchange. Arguments are `pmap`'s, and:

    Args:
      fsdp: devices that share one state; None for all. It divides their number.
      smallest: arrays of fewer elements stay whole on every device.
      devices: None for all.

    Raises:
      ValueError: `fsdp` doesn't divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shared = fsdp or len(devices)
    if len(devices) % shared:
        raise ValueError(f"fsdp={fsdp} doesn't divide the {len(devices)} devices.")
    mesh = jax.make_mesh(
        (len(devices) // shared, shared), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices
    )
    whole = NamedSharding(mesh, PartitionSpec())
    over_all = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    rules = [("batch", ("data", "fsdp"))]  # of the axes that models name

    def part_of(x):
        return NamedSharding(mesh, partition(x.shape, shared, smallest))

    def divided(tree):
        """Tells the compiler where a state's parts go."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, part_of(x)), tree)

    def init(function, *args):
        return jax.jit(lambda *args: divided(function(*args)))(*args)

    def mesh_update(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
            state, metrics = update(state, batch, key)
        return divided(state), jax.lax.with_sharding_constraint(metrics, whole)

    update_all = jax.jit(mesh_update, donate_argnums=0)

    def lower(state, batch):
        def placed(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return update_all.lower(
            jax.tree.map(lambda x: placed(x, part_of(x)), state),
            jax.tree.map(lambda x: placed(x, over_all), batch),
        )

    def put_batch(batch):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(over_all, x), batch)

    def gather(tree):
        if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
            tree = jax.jit(lambda x: x, out_shardings=whole)(tree)
        return jax.device_get(tree)

    return Parallel(
        init=init,
        update=update_all,
        lower=lower,
        evaluate=jax.jit(lambda *args: evaluate(*args), out_shardings=whole),
        represent=jax.jit(lambda *args: represent(*args), out_shardings=whole),
        put_batch=put_batch,
        gather=gather,
    )


def partition(shape: tuple[int, ...], devices: int, smallest: int) -> PartitionSpec:
    """Returns how an array is divided over the axis "fsdp": along its longest axis that can be.

    Args:
      shape: of the array.
      devices: along the mesh axis.
      smallest: arrays of fewer elements stay whole.
    """
    axes = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if devices == 1 or not axes or np.prod(shape) < smallest:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


STRATEGIES = {"pmap": pmap, "sharded": sharded}  # by the value of config.parallel


def strategy(config: ConfigDict) -> Callable[..., Parallel]:
    """Returns the function that a configuration asks for by `parallel` and `fsdp`."""
    options = {"fsdp": config.fsdp} if config.parallel == "sharded" else {}
    return functools.partial(STRATEGIES[config.parallel], **options)
