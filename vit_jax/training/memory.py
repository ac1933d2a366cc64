"""The memory that a run takes of each device, estimated before anything is compiled.

A step keeps arrays of the forward pass for the backward pass. They are counted in the traced loss.
With state, gradients and batches they are most of what a step takes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.common import host
from vit_jax.config.keys import eval_image_shape, image_shape, model_attributes, with_changes
from vit_jax.data import batch as batch_lib
from vit_jax.data.read_ahead import threads_of_process
from vit_jax.models.layers import best_implementation
from vit_jax.models.variants import has_encoder
from vit_jax.training import parallel, setup
from vit_jax.training.step import TrainState
from vit_jax.training.trained import join_params, split_params

# XLA's temporaries of a step are at most `_MARGINS` times the gradients and what the backward pass
# reads, and `_LARGEST` times the largest array of the forward pass. Those of an evaluation are at
# most `_EVALUATED` times that array. docs/devices.md has the measurements.
_MARGINS, _LARGEST = {"cpu": 1.3, "gpu": 1.0, "tpu": 1.3}, 2
_EVALUATED = {"cpu": 8, "gpu": 4, "tpu": 4}
_TRACED = 256  # images: so many that what doesn't depend on their number hardly counts
_ANY_LENGTH = 10**6  # steps of a run: nothing here depends on it


class Needs(NamedTuple):
    """The bytes that a run takes of each device.

    Attributes:
      fixed: of parameters, optimizer state, Polyak average, and batches of training. On a CPU,
        batches that are read ahead are among them.
      gradients: for the gradients.
      image: for each image of a micro-batch.
      evaluated: for each image of a batch of evaluation.
    """

    fixed: float
    gradients: float
    image: float
    evaluated: float

    def step(self, images: int, accumulate_steps: int) -> float:
        """Returns the bytes that a step takes.

        Args:
          images: of a device's part of the batch.
          accumulate_steps: micro-batches that it is computed in.
        """
        copies = 1 if accumulate_steps == 1 else 2  # the sum, and those of one micro-batch
        micro_batch = self.image * images / accumulate_steps
        return self.fixed + copies * self.gradients + micro_batch


def estimate_needs(config: ConfigDict, *, num_classes: int, devices: Sequence[jax.Device]) -> Needs:
    """Returns what a training run takes of each device, without compiling it.

    Args:
      config: see `config.defaults.default`.
      num_classes: number of classes of the data.
      devices: all devices of the run; they need not be there.

    Raises:
      ValueError: there is no such model.
    """
    config = for_device(config, devices[0])
    platform = devices[0].platform
    run = setup.set_up(config, num_classes=num_classes, total_steps=_ANY_LENGTH)
    state, batch = step_arguments(config, run)
    per_image = functools.partial(
        _per_image, num_classes=num_classes, params=state.params, platform=platform
    )
    remat = config.model.remat
    kept, largest = per_image(config)
    if remat not in (None, "none"):
        every_block, _ = per_image(with_changes(config, {"model.remat": "none"}))
        # One block at a time is computed again.
        is_dropped = drops_remat(config, platform)
        kept = every_block if is_dropped else kept + every_block / run.model.depth
    held, batch_bytes = bytes_per_device(config, state, batch, len(devices))
    trained, frozen = split_params(state.params, config.optim.freeze)
    gradients, _ = bytes_per_device(config, trained, {}, len(devices))
    forward = _EVALUATED[platform] * largest
    image = _MARGINS[platform] * kept + _LARGEST * largest
    if frozen:  # what is frozen is computed as in an evaluation
        image = max(image, forward)
    evaluated, eval_size = min(image, forward), eval_image_shape(config.data)
    if eval_size != image_shape(config.data.image_size):
        tested = config.copy_and_resolve_references()
        with tested.ignore_type():  # one side or two
            tested.data.image_size = eval_size
        _, largest = per_image(tested)
        evaluated = _EVALUATED[platform] * largest
    pixels = math.prod(eval_size) * 3
    return Needs(
        fixed=held + _batches_held(config, platform) * batch_bytes,
        gradients=_MARGINS[platform] * gradients,
        image=image,
        evaluated=evaluated + _batches_held(config, platform) * pixels,
    )


def evaluation_needs(
    config: ConfigDict,
    function: Callable[[Any, Any], Any],
    params: Any,
    size: int | Sequence[int],
    devices: Sequence[jax.Device],
) -> tuple[float, float]:
    """Returns the bytes of each device that parameters take, and an evaluation for each image.

    Args:
      config: `parallel`, `fsdp` and `data` are read.
      function: (params, batch) -> arrays, what is computed of a batch.
      params: tree of arrays.
      size: of the images, one side or (height, width), in pixels.
      devices: all devices.
    """
    platform = devices[0].platform
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), params)
    held, _ = bytes_per_device(config, params, {}, len(devices))
    jaxpr = jax.make_jaxpr(function)(params, _batch(_TRACED, size)).jaxpr
    largest = max(_sizes(jaxpr, _item_size(platform))) / _TRACED
    pixels = math.prod(image_shape(size)) * 3
    return held, _EVALUATED[platform] * largest + _batches_held(config, platform) * pixels


def _per_image(
    config: ConfigDict, *, num_classes: int, params: Any, platform: str
) -> tuple[float, float]:
    """Returns the bytes that a backward pass reads for each image, and those of the largest array.

    Of the operations inside of LayerNorm, GELU and softmax, XLA keeps as little as "custom_vjp"
    does, except on a CPU and in a loop over blocks. So that implementation is traced in place of
    "plain" and "tpu".
    """
    is_fused = platform != "cpu" and not config.model.scan
    if config.model.implementation in ("plain", "tpu") and is_fused:
        config = with_changes(config, {"model.implementation": "custom_vjp"})
    run = setup.set_up(config, num_classes=num_classes, total_steps=_ANY_LENGTH)
    item_size = _item_size(platform)

    def backward(trained, frozen, batch, key):
        def loss(trained):
            return run.objective.loss(join_params(trained, frozen), batch, key, key)

        return jax.tree.leaves(jax.vjp(loss, trained, has_aux=True)[1])

    batch = _batch(_TRACED, config.data.image_size)
    parts = split_params(params, config.optim.freeze)
    jaxpr = jax.make_jaxpr(backward)(*parts, batch, run.key).jaxpr
    kept = {x for x in jaxpr.outvars if isinstance(x, jex.core.Var)} - {*jaxpr.invars}
    return sum(map(item_size, kept)) / _TRACED, max(_sizes(jaxpr, item_size)) / _TRACED


def _sizes(jaxpr: jex.core.Jaxpr, item_size: Callable[[Any], float]) -> Iterator[float]:
    """Yields the bytes of every array that a traced function computes."""
    for equation in jaxpr.eqns:
        parameters = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        called = [x for x in parameters if _is_jaxpr(x)]
        if called:  # not the results of the call: those of a loop are of all its turns
            for inner in called:
                yield from _sizes(getattr(inner, "jaxpr", inner), item_size)
        else:
            yield from map(item_size, equation.outvars)


def drops_remat(config: ConfigDict, platform: str) -> bool:
    """Returns True if XLA drops rematerialisation: on a CPU, outside of loops."""
    return platform == "cpu" and not config.model.scan


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)


def _item_size(platform: str) -> Callable[[Any], int]:
    """Returns the function variable of a jaxpr -> bytes; on a CPU, XLA widens to 32 bits."""

    smallest = 4 if platform == "cpu" else 1
    return lambda x: x.aval.size * max(smallest, x.aval.dtype.itemsize)


def _batches_held(config: ConfigDict, platform: str) -> int:
    """Returns how many batches a device holds: computed with, sent, and cut into micro-batches.

    On a CPU, those that are read ahead and that each thread puts together, of images that it holds
    one by one, lie in the same memory. The process that has the most threads is counted, so that
    all processes get the same number.
    """
    threads = config.data.threads or max(map(threads_of_process, host.all_processes()))
    ahead = max(config.data.prefetch, threads) + 2 * threads if platform == "cpu" else 0
    return 3 + ahead


def _batch(size: int, image_size: int | Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    layout = batch_lib.layout(size, image_shape(image_size))
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in layout.items()}


def step_arguments(
    config: ConfigDict, run: setup.Setup
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the state and the batch of a step, as `jax.ShapeDtypeStruct`s.

    Args:
      config: the run's configuration.
      run: what `setup.set_up` returns for it.
    """
    batch = _batch(config.batch_size, config.data.image_size)
    return jax.eval_shape(run.init_state, run.init_key), batch


def bytes_per_device(config: ConfigDict, state: Any, batch: Any, devices: int) -> tuple[int, int]:
    """Returns the bytes of the state and of the batch on one device.

    Args:
      config: says which sharding strategy there is.
      state, batch: what `step_arguments` returns.
      devices: how many there are.
    """
    shards = (config.fsdp or devices) if config.parallel == "sharded" else 1

    def bytes_of(x):
        is_sharded = len(parallel.partition(x.shape, shards, parallel.SMALLEST_SHARDED)) > 0
        return x.size * x.dtype.itemsize // (shards if is_sharded else 1)

    batch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    return sum(map(bytes_of, jax.tree.leaves(state))), batch_bytes // devices


def for_device(config: ConfigDict, device: jax.Device) -> ConfigDict:
    """Returns a configuration with the implementation of the encoder that suits a device."""
    if not has_encoder(config.model.variant) or config.model.implementation is not None:
        return config
    model: Any = models.build(config.model.variant, num_classes=1, **model_attributes(config))
    best = best_implementation(config.dtype, model.width // model.num_heads, device)
    return with_changes(config, {"model.implementation": best})
