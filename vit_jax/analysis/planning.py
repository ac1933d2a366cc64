"""planning"""

from __future__ import annotations

import math
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.analysis import hlo
from vit_jax.analysis.hardware import GPU_COMPILER_OPTIONS, Target, find_target, roofline
from vit_jax.config.keys import image_shape, model_attributes
from vit_jax.data import sources, splits
from vit_jax.data.builders import rendered_flowers
from vit_jax.jobs import validation
from vit_jax.models.flops import forward_flops
from vit_jax.models.layers import best_implementation
from vit_jax.training import parallel, setup
from vit_jax.training.step import TrainState

# (training images, classes) of data sets that are seldom on the machine where one plans.
KNOWN = {
    "imagenet2012": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_841),
    "jft_300m": (303_000_000, 18_291),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "oxford_flowers102": (1020, 102),
    "oxford_iiit_pet": (3680, 37),
    "rendered_flowers": (rendered_flowers.SPLITS["train"], len(rendered_flowers.KINDS)),
    "tf_flowers": (3670, 5),
}


def step_shapes(
    config: ConfigDict, trained: setup.Setup
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the state and the batch of a step, as `jax.ShapeDtypeStruct`s."""
    b, sides = config.batch_size, image_shape(config.data.image_size)
    batch = {
        "image": jax.ShapeDtypeStruct((b, *sides, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((b,), jnp.bool_),
    }
    return jax.eval_shape(trained.initial, trained.init_key), batch


def held(config: ConfigDict, state: Any, batch: Any, devices: int) -> tuple[int, int]:
    """Returns the bytes of the state and of the batch that one device holds; see `step_shapes`."""
    shared = (config.fsdp or devices) if config.parallel == "sharded" else 1

    def part(x):
        divided = len(parallel.partition(x.shape, shared, parallel.SMALLEST_SHARDED)) > 0
        return x.size * x.dtype.itemsize // (shared if divided else 1)

    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    return sum(map(part, jax.tree.leaves(state))), whole // devices


class Program(NamedTuple):
    """A compiled train step. Everything is a step's, and of one device.

    Attributes:
      seconds: that compiling took.
      arguments: bytes of the state and the device's part of the batch.
      temporaries: bytes of activations, gradients and what else a step makes and drops.
      total: bytes of these, of results that reuse no argument, and of the program itself.
      fits: into the device's memory. Where it doesn't, the rest is None.
      flops, moved, collectives: see `hlo.Counts`; where a library computes products that are not
        described there, flops are all that XLA counts.
    """

    seconds: float
    arguments: int
    temporaries: int
    total: int
    fits: bool
    flops: float | None = None
    moved: float | None = None
    collectives: dict[str, hlo.Collective] | None = None


def compiled(
    lowered: jax.stages.Lowered,
    arguments: int,
    memory: int,
    devices: int,
    accumulate_steps: int,
    options: dict[str, Any] | None = None,
) -> Program:
    """Compiles a lowered step.

    Args:
      lowered: what `lower` returns.
      arguments: bytes of them on one device.
      memory: bytes of a device.
      devices: how many there are.
      accumulate_steps: micro-batches of a step.
      options: of the compiler.
    """
    start = time.monotonic()
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if (temporaries := exceeded(str(error))) is None:
            raise
        total = arguments + temporaries
        return Program(time.monotonic() - start, arguments, temporaries, total, False)
    seconds = time.monotonic() - start
    memories, counts = program.memory_analysis(), hlo.counts(program.as_text(), devices)
    flops = counts.flops
    if flops is None:  # XLA counts once what a loop does
        flops = (program.cost_analysis() or {}).get("flops", math.nan) * accumulate_steps
    arguments = memories.argument_size_in_bytes
    returned = memories.output_size_in_bytes
    total = (
        arguments
        + returned
        - memories.alias_size_in_bytes
        + memories.temp_size_in_bytes
        + memories.generated_code_size_in_bytes
    )
    return Program(
        seconds,
        arguments,
        memories.temp_size_in_bytes,
        total,
        total <= memory,
        flops,
        counts.moved,
        counts.collectives,
    )


def compile_step(
    config: ConfigDict, goal: Target, *, num_classes: int, total_steps: int
) -> Program:
    """Compiles the train step of a configuration for devices; arguments as `train.train_step`'s."""
    device = goal.devices[0]
    if has_encoder(config.model.variant) and config.model.implementation is None:
        model = models.build(config.model.variant, num_classes=1, **model_attributes(config))
        best = best_implementation(config.dtype, model.width // model.num_heads, device)
        config = _with(config, **{"model.implementation": best})
    trained = setup.set_up(config, num_classes=num_classes, total_steps=total_steps)
    program = parallel.strategy(config)(
        update=trained.update, key=trained.key, devices=goal.devices
    )
    state, batch = step_shapes(config, trained)
    devices = len(goal.devices)
    arguments = sum(held(config, state, batch, devices))
    return compiled(
        program.lower(state, batch),
        arguments,
        goal.memory,
        devices,
        config.accumulate_steps,
        GPU_COMPILER_OPTIONS if device.platform == "gpu" != jax.default_backend() else None,
    )


def has_encoder(variant: str) -> bool:
    """Tells whether a variant is a ViT, a hybrid or axial: whether its blocks can be chosen for."""
    return "width" in models.VARIANTS[models.canonical(variant)]


def exceeded(message: str) -> int | None:
    """Returns the bytes of temporaries of which XLA says that they don't fit, None elsewhere."""
    match = re.search(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM", message)
    match = match or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return match and int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))


def estimated_batch(
    needed: Sequence[tuple[int, float]], fixed: float, memory: float, multiple: int
) -> int:
    """Returns the largest batch that should fit: what a step needs is close to linear in it.

    Args:
      needed: (batch, bytes of a device) of programs that were compiled; the last two count.
      fixed: bytes that don't grow with the batch, to go on where there is only one program.
      memory: bytes of a device.
      multiple: the batch is one of this; 0 where not even the smallest fits.
    """
    (size, bytes_), other = needed[-1], (0, fixed)
    if len(needed) > 1 and needed[-2][0] != size:
        other = needed[-2]
    slope = (bytes_ - other[1]) / (size - other[0])
    if slope <= 0:
        return size // multiple * multiple
    return max(0, math.floor((memory - bytes_) / slope + size) // multiple * multiple)


def largest_batch(
    compile_at: Callable[[int], Program],
    first: Program,
    batch: int,
    fixed: float,
    memory: int,
    multiple: int,
    tries: int = 3,
) -> tuple[int, Program] | None:
    """Returns the largest batch of those tried that fits, and its program; None where none does.

    Args:
      compile_at: batch -> its program.
      first: the program of `batch`.
      fixed, memory, multiple: see `estimated_batch`.
      tries: compilations at most.
    """
    known = {batch: first}
    for _ in range(tries):
        needed = [(size, program.total) for size, program in known.items()]
        guess = estimated_batch(needed, fixed, memory, multiple)
        too_large = min((x for x, program in known.items() if not program.fits), default=math.inf)
        guess = int(min(guess, too_large - multiple))
        if guess <= 0 or guess in known:
            break
        known[guess] = compile_at(guess)
        if known[guess].fits and known[guess].total > 0.95 * memory:
            break
    return max(((size, p) for size, p in known.items() if p.fits), default=None)


def plan(
    config: ConfigDict,
    topology: str,
    *,
    num_classes: int,
    images: int | None,
    suggest: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles the train step of a configuration and returns what is to know about it.

    Bytes and collectives are of one device and step, FLOPs of all devices; `flops_…` are three
    forward passes as `cost.forward_flops` counts them, `compiled_flops_…` the products of the
    compiled step, those computed again too, or on GPUs all operations as XLA counts them. Times are
    seconds, estimated by `roofline`. What is unknown is None: times where the device's peaks are
    not published, and everything the compiler counts where the step doesn't fit.

    Args:
      config: see `vit_jax.config.default`; its job is "train".
      topology: see `target`.
      num_classes: of the data set.
      images: of the training split; None where `config.total_steps` gives the run's length.
      suggest: compiles up to three more batch sizes to find the largest that fits, and, where the
        step doesn't fit, up to four other ways to make it fit.
      tell: gets a line before each compilation.

    Raises:
      ValueError: the configuration or the topology can't be used.
      ModuleNotFoundError, OSError: see `target`.
    """
    if config.job != "train":
        raise ValueError(f"config.job={config.job!r}: only the steps of 'train' can be planned.")
    goal = find_target(topology)
    count = len(goal.devices)
    validation.validate(config, device_count=count)
    if config.total_steps is None and images is None:
        raise ValueError(
            f"The number of training images of {config.data.name} is unknown, which {config.epochs}"
            f" epochs are counted by: give --images=N, or --config.total_steps=N."
        )
    steps = config.total_steps or max(1, round(config.epochs * images / config.batch_size))

    def compile_(config: ConfigDict) -> Program:
        tell(f"Compiling for {count} x {goal.kind}: {_described(config)}.")
        return compile_step(config, goal, num_classes=num_classes, total_steps=steps)

    trained = setup.set_up(config, num_classes=num_classes, total_steps=steps)
    state, batch = step_shapes(config, trained)
    program = compile_(config)
    per_image = 3 * forward_flops(
        config.model.variant,
        config.data.image_size,
        num_classes=0 if config.objective == "masked_patches" else num_classes,
        **model_attributes(config),
    )
    report = {
        "variant": config.model.variant,
        "topology": topology,
        "device": goal.kind,
        "chips": count,
        "parallel": config.parallel,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "flops_per_image": per_image,
        "flops_per_step": per_image * config.batch_size,
        **_counted(program, goal, per_image * config.batch_size),
        "total_steps": steps,
    }
    if report["step_seconds"] is not None:
        seconds = report["step_seconds"]["step"]
        report["images_per_second"] = config.batch_size / seconds
        report["run_hours"] = steps * seconds / 3600
        report["run_chip_hours"] = report["run_hours"] * count
    report["compile_seconds"] = program.seconds
    report["suggestions"] = _suggestions(
        config, goal, program, held(config, state, batch, count)[0], compile_, suggest
    )
    return report


def _counted(program: Program, goal: Target, expected: float) -> dict[str, Any]:
    """Returns the part of a report that compiling gives."""
    count = len(goal.devices)
    report = {
        "arguments_bytes": program.arguments,
        "temporaries_bytes": program.temporaries,
        "total_bytes": program.total,
        "memory_bytes": goal.memory,
        "fits": program.fits,
        "compiled_flops_per_step": None,
        "compiled_flops_ratio": None,
        "moved_bytes": program.moved,
        "intensity": None,
        "intensity_of_peak": goal.chip and goal.chip.peak / goal.chip.bandwidth,
        "collectives": None,
        "step_seconds": None,
        "bound_by": None,
        "images_per_second": None,
        "run_hours": None,
        "run_chip_hours": None,
    }
    if program.flops is None:
        return report
    report["compiled_flops_per_step"] = program.flops * count
    report["compiled_flops_ratio"] = program.flops * count / expected
    report["intensity"] = program.flops / program.moved
    report["collectives"] = {k: v._asdict() for k, v in program.collectives.items()}
    if goal.chip:
        sent = sum(x.sent for x in program.collectives.values())
        times = roofline(program.flops, program.moved, sent, goal.chip)
        report["step_seconds"] = times
        report["bound_by"] = max(list(times)[:-1], key=times.get)
    return report


def _suggestions(
    config: ConfigDict,
    goal: Target,
    program: Program,
    fixed: int,
    compile_: Callable[[ConfigDict], Program],
    suggest: bool,
) -> list[dict[str, Any]]:
    """Returns the largest batch, and other ways to fit; `verified` ones were compiled."""
    multiple = len(goal.devices) * config.accumulate_steps
    if not suggest:
        needed = [(config.batch_size, program.total)]
        size = estimated_batch(needed, fixed, goal.memory, multiple)
        found = [{"change": {"batch_size": size}, "total_bytes": None, "verified": False}]
        found = found if size else []
    else:
        best = largest_batch(
            lambda size: compile_(_with(config, batch_size=size)),
            program,
            config.batch_size,
            fixed,
            goal.memory,
            multiple,
        )
        found = []
        if best is not None:
            change = {"batch_size": best[0]}
            found = [{"change": change, "total_bytes": best[1].total, "verified": True}]
    if program.fits:
        return found
    for change, total in _ways_to_fit(config, goal, program, fixed):
        if total is not None and total > goal.memory:
            continue
        if suggest:
            other = compile_(_with(config, **change))
            if not other.fits:
                continue
            total = other.total
        found.append({"change": change, "total_bytes": total, "verified": suggest})
    return found


def _ways_to_fit(
    config: ConfigDict, goal: Target, program: Program, fixed: int
) -> Iterable[tuple[dict[str, Any], float | None]]:
    """Yields changes of the configuration that save memory, and the bytes they should leave.

    What is saved by computing again only a compiler can tell: then the bytes are None.
    """
    devices = len(goal.devices)
    if config.parallel == "pmap" and devices > 1:
        yield {"parallel": "sharded"}, program.total - fixed * (1 - 1 / devices)
    if has_encoder(config.model.variant):
        order = ("none", "dots", "full")
        for remat in order[order.index(config.model.remat or "none") + 1 :]:
            yield {"model.remat": remat}, None
    per_device = config.batch_size // devices
    for steps in (2, 4, 8, 16):
        total = program.arguments + program.temporaries * config.accumulate_steps / steps
        if steps > config.accumulate_steps and per_device % steps == 0 and total <= goal.memory:
            yield {"accumulate_steps": steps}, total
            break


def _with(config: ConfigDict, **changes: Any) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def _described(config: ConfigDict) -> str:
    parts = [config.model.variant, f"batch {config.batch_size}", config.parallel, config.dtype]
    if config.accumulate_steps > 1:
        parts.append(f"in {config.accumulate_steps} parts")
    return ", ".join(parts)


def dataset_size(config: ConfigDict) -> tuple[int | None, int | None]:
    """Returns the numbers of training images and of classes, None where they are unknown.

    They are those of a folder of images or a tfds data set that is on this machine, else of
    `KNOWN`. Nothing is downloaded.

    Raises:
      ValueError: `data.train` is not a split.
    """
    name = config.data.name
    prepared = pathlib.Path(config.data.dir or "~/tensorflow_datasets").expanduser() / name
    if pathlib.Path(name).expanduser().is_dir() or any(prepared.glob("**/dataset_info.json")):
        dataset = sources.open_dataset(name, config.data.dir)
        train = config.data.train or splits.default_splits(dataset.splits)[0]
        return splits.split_size(train, dataset.splits), len(dataset.class_names)
    if name not in KNOWN:
        return None, None
    images, classes = KNOWN[name]
    return splits.split_size(config.data.train or "train", {"train": images}), classes


def table(report: dict[str, Any]) -> list[str]:
    """Returns the lines that tell a report of `plan`."""
    chips, batch = report["chips"], report["batch_size"]
    rows = [
        ("parameters", f"{report['parameters']:,}"),
        ("FLOPs an image", f"{_si(report['flops_per_image'])}, three forward passes"),
        ("FLOPs a step", _si(report["flops_per_step"])),
    ]
    if report["fits"]:
        more = report["compiled_flops_ratio"] - 1
        compiled_flops = _si(report["compiled_flops_per_step"])
        rows.append(("as compiled", f"{compiled_flops} ({more:+.1%})"))
    fits = "fits" if report["fits"] else "does not fit"
    total, memory = _iec(report["total_bytes"]), _iec(report["memory_bytes"])
    rows += [
        ("state and batch", f"{_iec(report['arguments_bytes'])} a chip"),
        ("temporaries", f"{_iec(report['temporaries_bytes'])} a chip"),
        ("memory", f"{total} of {memory} a chip: {fits}"),
    ]
    for kind, found in (report["collectives"] or {}).items():
        size, sent = _si(found["bytes"]), _si(found["sent"])
        rows.append((kind, f"{found['count']}, of {size}B; a chip sends {sent}B"))
    if report["fits"]:
        peak = report["intensity_of_peak"]
        limit = f"; bound by memory below {peak:,.0f}" if peak else ""
        rows.append(("intensity", f"{report['intensity']:,.0f} FLOPs a byte moved{limit}"))
    if times := report["step_seconds"]:
        parts = ", ".join(f"{k} {1e3 * v:,.1f}" for k, v in times.items() if k != "step")
        hours, chip_hours = report["run_hours"], report["run_chip_hours"]
        rows += [
            ("step, roofline", f"{1e3 * times['step']:,.1f} ms ({parts})"),
            ("images/s", f"{report['images_per_second']:,.0f}"),
            ("run", f"{report['total_steps']:,} steps: {hours:,.2f} h, {chip_hours:,.1f} chip-h"),
        ]
    elif report["fits"]:
        rows.append(("step", f"no estimate: the peaks of a {report['device']} are unknown"))
    rows.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    for found in report["suggestions"]:
        change = " ".join(f"--config.{key}={value}" for key, value in found["change"].items())
        largest = "largest batch" if "batch_size" in found["change"] else "may fit"
        total = f", {_iec(found['total_bytes'])} a chip" if found["total_bytes"] else ""
        how = "compiled" if found["verified"] else "estimated; --suggest compiles it"
        rows.append((largest, f"{change}{total} ({how})"))
    width = max(len(name) for name, _ in rows) + 2
    head = (
        f"{report['variant']} on {report['topology']} ({chips} x {report['device']}): "
        f"{batch} images a step, {report['parallel']}, {report['dtype']}"
    )
    return [head, *(f"{name:<{width}}{value}" for name, value in rows)]


def _si(number: float) -> str:
    power = min(5, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.4g} {'kMGTP'[power - 1] if power else ''}"


def _iec(size: float) -> str:
    power = min(3, int(math.log2(max(size, 1)) // 10))
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
