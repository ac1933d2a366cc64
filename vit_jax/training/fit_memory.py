"""What a run changes so that it fits into the memory of its devices."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.config.keys import image_shape, with_changes
from vit_jax.models.variants import has_encoder
from vit_jax.training.device_memory import smallest_memory
from vit_jax.training.memory import Needs, drops_remat, estimate_needs, evaluation_needs

logger = logging.getLogger(__name__)

_GIB = 2**30


def fit_training(
    config: ConfigDict, *, num_classes: int, preferred: int | None = None
) -> ConfigDict:
    """Returns a configuration whose steps and evaluations fit into the memory of the devices.

    `accumulate_steps`, if it is None, becomes `preferred` if a step fits with it, else the smallest
    number that lets a step fit. `eval_batch_size` is reduced until an evaluation fits. Neither
    changes the gradients or the results, but for rounding and, if there are micro-batches, for the
    random numbers of dropout, stochastic depth and corruption, and the pairs of mixup. All
    processes get the same values. If the memory of the devices is unknown, everything is taken to
    fit, with a warning.

    Args:
      config: see `config.defaults.default`; valid for these devices.
      num_classes: number of classes of the data.
      preferred: the number of micro-batches of the run so far; None for a new run.

    Raises:
      ValueError: a step doesn't fit with one image a device and micro-batch; says what would.
    """
    devices = jax.devices()
    memory = _known_memory(devices[0])
    per_device = config.batch_size // len(devices)
    config = config.copy_and_resolve_references()
    needs = estimate_needs(config, num_classes=num_classes, devices=devices)
    total = needs.step(per_device, config.accumulate_steps or 1)
    needed = f"{config.batch_size} images a step take {total / _GIB:.1f} GiB of a device"
    if config.accumulate_steps is not None and total > memory:
        logger.warning(
            "By the estimate, %s in %d micro-batches, and %.1f GiB are free. If it fails, raise "
            "accumulate_steps.",
            needed,
            config.accumulate_steps,
            memory / _GIB,
        )
    elif config.accumulate_steps is None:
        steps = choose_accumulate_steps(needs, per_device, memory, preferred)
        if steps is None:
            raise ValueError(_refusal(config, num_classes, devices, needs, memory))
        config.accumulate_steps = steps
        if preferred not in (None, steps):
            logger.warning(
                "The run so far took accumulate_steps=%d, and takes %d from here: with the earlier "
                "number a step doesn't fit into the memory of these devices by the estimate, or it "
                "doesn't divide the %d images of a device. Dropout, stochastic depth and the "
                "corruption of patches draw other random numbers, and mixup blends other pairs.",
                preferred,
                steps,
                per_device,
            )
        if steps > 1:
            logger.info(
                "By the estimate, %s, and %.1f GiB are free: each batch is computed in "
                "%d micro-batches, one after the other, which gives the same gradients "
                "(accumulate_steps=%d). A smaller batch_size or data.image_size is faster.",
                needed,
                memory / _GIB,
                steps,
                steps,
            )
    config.eval_batch_size = _fitting_eval_batch(
        config.eval_batch_size, needs.evaluated, memory - needs.fixed, len(devices)
    )
    return config


def choose_accumulate_steps(
    needs: Needs, images: int, memory: float, preferred: int | None = None
) -> int | None:
    """Returns the smallest number of micro-batches with which a step fits; None if none does.

    Args:
      needs: of the run.
      images: of a device's part of the batch; the result divides it.
      memory: bytes of a device.
      preferred: is returned instead if a step fits with it.
    """
    divisors = [steps for steps in range(1, images + 1) if images % steps == 0]
    fitting = [steps for steps in divisors if needs.step(images, steps) <= memory]
    return preferred if preferred in fitting else next(iter(fitting), None)


def fit_evaluation(
    config: ConfigDict,
    function: Callable[[Any, Any], Any],
    params: Any,
    size: int | Sequence[int],
) -> ConfigDict:
    """Returns a configuration whose `eval_batch_size` fits into the memory of the devices.

    Args:
      config: `eval_batch_size` and `data` are read.
      function: (params, batch) -> arrays, what is computed of each batch.
      params: tree of arrays.
      size: of the images, one side or (height, width), in pixels.
    """
    devices = jax.devices()
    memory = _known_memory(devices[0])
    held, image = evaluation_needs(config, function, params, size, devices)
    batch = _fitting_eval_batch(config.eval_batch_size, image, memory - held, len(devices))
    return with_changes(config, {"eval_batch_size": batch})


def _fitting_eval_batch(batch_size: int, image: float, memory: float, devices: int) -> int:
    """Returns the largest batch up to `batch_size` whose evaluation fits, and logs a change.

    If not even one image a device fits, it is one image a device.
    """
    per_device = batch_size // devices
    fitting = int(min(per_device, memory / image))
    if fitting < 1:
        logger.warning(
            "By the estimate, evaluation takes %.1f GiB of a device for one image, and %.1f GiB "
            "are free. It takes one image a device at once (eval_batch_size=%d). If it fails, take "
            "a smaller model, smaller images, or a device with more memory.",
            image / _GIB,
            max(0, memory) / _GIB,
            devices,
        )
        return devices
    if fitting < per_device:
        logger.info(
            "By the estimate, %d images at once take %.1f GiB of a device, and %.1f GiB are free: "
            "evaluation takes %d at once, with the same results (eval_batch_size=%d).",
            batch_size,
            per_device * image / _GIB,
            memory / _GIB,
            fitting * devices,
            fitting * devices,
        )
    return fitting * devices


def _known_memory(device: jax.Device) -> float:
    """Returns `smallest_memory`; infinity, with a warning, if it is unknown."""
    memory = smallest_memory()
    if memory is not None:
        return memory
    logger.warning(
        "JAX doesn't say how much memory a %s has, so nothing is changed to fit into it. If it "
        "runs out, raise accumulate_steps or lower eval_batch_size.",
        device.device_kind,
    )
    return math.inf


def _refusal(
    config: ConfigDict,
    num_classes: int,
    devices: Sequence[jax.Device],
    needs: Needs,
    memory: float,
) -> str:
    """Returns why no step fits, and which changes of the configuration would make it fit."""
    per_device = config.batch_size // len(devices)
    fitting: dict[tuple[str, ...], str] = {}  # the first change that fits, by its keys
    for change in _smaller(config, devices):
        keys, changed = tuple(change), with_changes(config, change)
        images = changed.batch_size // len(devices)
        try:
            found = estimate_needs(changed, num_classes=num_classes, devices=devices)
        except ValueError:  # such as an image that can't be cut into patches
            continue
        if keys not in fitting and choose_accumulate_steps(found, images, memory):
            fitting[keys] = " ".join(f"--config.{key}={change[key]}" for key in keys)
    advice = " or ".join(fitting.values()) or "a smaller model and smaller images"
    total, fixed, free = (
        f"{size / _GIB:.1f} GiB"
        for size in (needs.step(per_device, per_device), needs.fixed, memory)
    )
    return (
        f"The run doesn't fit into the memory of {devices[0].device_kind}: with one image in each "
        f"micro-batch, a step takes {total} of a device by the estimate ({fixed} of it for the "
        f"state and the batches), and {free} are free. What fits: {advice}. If accumulate_steps is "
        f"set, this is a warning."
    )


def changes_with_same_results(
    config: ConfigDict, devices: Sequence[jax.Device]
) -> Iterator[dict[str, Any]]:
    """Yields changes that save a device's memory and train the same, but for rounding.

    Of the changes of one key, each saves more memory than the one before. `accumulate_steps` is not
    among them, see `choose_accumulate_steps`.
    """
    if config.parallel == "pmap" and len(devices) > 1:
        yield {"parallel": "sharded"}
    if has_encoder(config.model.variant) and not drops_remat(config, devices[0].platform):
        policies = ("none", "dots", "full")
        for remat in policies[policies.index(config.model.remat or "none") + 1 :]:
            yield {"model.remat": remat}


def _smaller(config: ConfigDict, devices: Sequence[jax.Device]) -> Iterator[dict[str, Any]]:
    """Yields changes of a configuration, each of which saves memory."""
    if devices[0].platform == "cpu":
        yield {"data.threads": 1, "data.prefetch": 1}
    yield from changes_with_same_results(config, devices)
    if devices[0].platform != "cpu" and config.dtype == "float32":
        yield {"dtype": "bfloat16"}
    encoder = has_encoder(config.model.variant)
    side = max(image_shape(config.data.image_size))
    yield from ({"data.image_size": size} for size in (384, 224, 96) if size < side)
    ladder = ["B/16", "S/16", "Ti/16"] if encoder else ["R101x1", "R50x1"]
    yield from ({"model.variant": name} for name in ladder if name != config.model.variant)
    for parts in (4, 16):
        size = config.batch_size // parts // len(devices) * len(devices)
        if size:
            yield {"batch_size": size}
