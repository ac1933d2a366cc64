"""Sharding strategies: how one training step runs on all devices, and where its arrays lie.

`STRATEGIES` has one function for each strategy. `pmap` replicates the state on every device,
`sharded` splits it between devices. Both return a `Parallel`, and compute the same losses and
gradients, but for random numbers (see `pmap`). Only this file places arrays on devices.
"""

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

SMALLEST_SHARDED = 2**14  # elements; `sharded` replicates arrays that have fewer


class Parallel(NamedTuple):
    """The functions of one run, compiled for all devices.

    Attributes:
      init: (function, *arguments) -> the function's result, a state or a part of one, placed on
        the devices.
      place: tree of a state or a part of one, the same in every process -> the same tree, placed
        on the devices as `init` places it. Its leaves are host arrays, anything that `np.asarray`
        takes, or device arrays.
      update: (state, device batch) -> (state, metrics). It reuses the buffers of the given state,
        which can't be read afterwards.
      lower: (state, this process's batch), both of `jax.ShapeDtypeStruct` -> `update`, lowered. It
        can be compiled for devices that are not there.
      evaluate: (params, device batch) -> sums over the batches of all processes.
      extract_features: (params, device batch) -> arrays (b, …) of the batches of all processes,
        in the order of the devices.
      put_batch: this process's part of a batch, host arrays (b, …) -> device batch. The copy may
        still be under way when this returns.
      gather: device arrays -> the whole arrays on the host, in every process.
    """

    init: Callable[..., Any]
    place: Callable[[Any], Any]
    update: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    lower: Callable[[TrainState, Any], jax.stages.Lowered]
    evaluate: Callable[[Any, Any], Metrics]
    extract_features: Callable[[Any, Any], Any]
    put_batch: Callable[[Any], Any]
    gather: Callable[[Any], Any]


def _not_given(*_: Any, **__: Any) -> Any:
    raise TypeError("This program was made without the function that it is asked to run.")


def pmap(
    *,
    evaluate: Callable[..., Metrics] = _not_given,
    update: Callable[..., tuple[TrainState, Metrics]] = _not_given,
    key: Any = None,
    extract_features: Callable[..., Any] = _not_given,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Returns the program that replicates the state and splits the batch over the devices.

    Functions that aren't given can't be called in the result.

    Args:
      evaluate: (params, batch) -> sums over the batch, an `Objective`'s.
      update: what `step.make_update` returns.
      key: the run's key, for `update`. Each device folds its number in, so that dropout,
        stochastic depth and the corruption of patches differ between devices.
      extract_features: (params, batch) -> arrays with one entry an example, see
        `evaluation.fewshot.feature_extractor`.
      devices: the devices of a run with one process. None for all devices of all processes.
    """
    axis = "batch"
    mesh = Mesh(np.array(jax.devices() if devices is None else devices), (axis,))
    replicated = NamedSharding(mesh, PartitionSpec())
    local = jax.local_devices() if devices is None else devices
    over_local = NamedSharding(Mesh(np.array(local), (axis,)), PartitionSpec(axis))
    over_devices = functools.partial(jax.pmap, axis_name=axis, devices=devices, in_axes=(None, 0))

    def init(function, *args):
        return jax.jit(function, out_shardings=replicated)(*args)

    def place(tree):
        return init(lambda x: x, _readable(tree))

    def global_arrays(tree):
        """Returns arrays of all processes: `jax.pmap` returns the copies of this one alone."""
        if jax.process_count() == 1:
            return tree
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, replicated, [shard.data for shard in x.addressable_shards]
            ),
            tree,
        )

    def device_update(state, batch):
        device = jax.lax.axis_index(axis)
        return update(state, batch, key, device=device, mean=lambda x: jax.lax.pmean(x, axis))

    def device_evaluate(params, batch):
        return jax.lax.psum(evaluate(params, batch), axis)

    def device_features(params, batch):
        return jax.lax.all_gather(extract_features(params, batch), axis, tiled=True)

    def by_device(batch):
        return jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), batch)

    update_all = over_devices(device_update, out_axes=None, donate_argnums=0)

    return Parallel(
        init=init,
        place=place,
        update=lambda state, batch: global_arrays(update_all(state, batch)),
        lower=lambda state, batch: update_all.lower(state, jax.eval_shape(by_device, batch)),
        evaluate=over_devices(device_evaluate, out_axes=None),
        extract_features=over_devices(device_features, out_axes=None),
        put_batch=lambda batch: jax.device_put(by_device(batch), over_local),
        gather=jax.device_get,
    )


def sharded(
    *,
    evaluate: Callable[..., Metrics] = _not_given,
    update: Callable[..., tuple[TrainState, Metrics]] = _not_given,
    key: Any = None,
    extract_features: Callable[..., Any] = _not_given,
    fsdp: int | None = None,
    min_elements: int = SMALLEST_SHARDED,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Returns the program that shards the state too, for models too large for one device.

    The devices form a mesh ("data", "fsdp"). Batches are sharded over both axes; parameters,
    optimizer state and Polyak average over "fsdp", as `partition` says. The step is that of one
    device with the whole batch, and the compiler inserts the collectives.

    Args:
      evaluate, update, key, extract_features: as for `pmap`; no device folds its number into `key`.
      fsdp: number of devices that one copy of the state is sharded over. It must divide the number
        of devices. None for all devices.
      min_elements: arrays of fewer elements are replicated.
      devices: None for all devices of all processes.

    Raises:
      ValueError: `fsdp` doesn't divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    copy_size = fsdp or len(devices)  # devices that hold one copy of the state
    if len(devices) % copy_size:
        raise ValueError(f"fsdp={fsdp} doesn't divide the {len(devices)} devices.")
    mesh = jax.make_mesh(
        (len(devices) // copy_size, copy_size),
        ("data", "fsdp"),
        (AxisType.Auto,) * 2,
        devices=devices,
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    over_all = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    rules = [("batch", ("data", "fsdp"))]  # for the axes that models name

    def sharding(x):
        return NamedSharding(mesh, partition(x.shape, copy_size, min_elements))

    def shard(tree):
        """Says to the compiler which device holds which part of a state."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding(x)), tree)

    def init(function, *args):
        return jax.jit(lambda *args: shard(function(*args)))(*args)

    def place(tree):
        return init(lambda x: x, _readable(tree))

    def mesh_update(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
            state, metrics = update(state, batch, key)
        return shard(state), jax.lax.with_sharding_constraint(metrics, replicated)

    update_all = jax.jit(mesh_update, donate_argnums=0)

    def lower(state, batch):
        def placed(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return update_all.lower(
            jax.tree.map(lambda x: placed(x, sharding(x)), state),
            jax.tree.map(lambda x: placed(x, over_all), batch),
        )

    def put_batch(batch):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(over_all, x), batch)

    def gather(tree):
        if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
            tree = jax.jit(lambda x: x, out_shardings=replicated)(tree)
        return jax.device_get(tree)

    return Parallel(
        init=init,
        place=place,
        update=update_all,
        lower=lower,
        evaluate=jax.jit(evaluate, out_shardings=replicated),
        extract_features=jax.jit(extract_features, out_shardings=replicated),
        put_batch=put_batch,
        gather=gather,
    )


def partition(shape: tuple[int, ...], devices: int, min_elements: int) -> PartitionSpec:
    """Returns how an array is sharded over the mesh axis "fsdp": along its longest axis that fits.

    An axis fits if the devices divide its length. The first is taken of axes that are equally
    long. An array without such an axis is replicated.

    Args:
      shape: the array's shape.
      devices: number of devices along "fsdp".
      min_elements: arrays of fewer elements are replicated.
    """
    axes = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if devices == 1 or not axes or np.prod(shape) < min_elements:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


def _readable(tree: Any) -> Any:
    """Returns a tree whose lazy leaves, such as parameters in a file, are read into memory."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.asarray(x), tree)


STRATEGIES = {"pmap": pmap, "sharded": sharded}  # by the value of config.parallel


def make_program(config: ConfigDict, **functions: Any) -> Parallel:
    """Returns the functions of a run, spread over the devices as a configuration chooses.

    Args:
      config: with `parallel`, a key of `STRATEGIES`, and `fsdp`, see `sharded`.
      **functions: the keyword arguments of `pmap`.
    """
    options = {"fsdp": config.fsdp} if config.parallel == "sharded" else {}
    return STRATEGIES[config.parallel](**functions, **options)
