"""Plans a training run: memory, FLOPs, communication and time on devices that need not be there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vit_jax.analysis import compiling
from vit_jax.analysis.compiling import Program
from vit_jax.analysis.hardware import Topology, find_topology, roofline
from vit_jax.analysis.suggestions import suggest_changes
from vit_jax.config.keys import is_folder, model_attributes, with_changes
from vit_jax.data import sources, splits
from vit_jax.data.builders import prepare, rendered_flowers
from vit_jax.jobs import validation
from vit_jax.models.flops import JFT_IMAGES, forward_flops
from vit_jax.models.params import count_parameters
from vit_jax.training import setup
from vit_jax.training.fit_memory import choose_accumulate_steps
from vit_jax.training.memory import bytes_per_device, estimate_needs, step_arguments
from vit_jax.training.trained import split_params

# (training images, classes) of data sets that are seldom on the machine where one plans.
KNOWN = {
    "imagenet2012": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_841),
    "jft_300m": (int(JFT_IMAGES), 18_291),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "oxford_flowers102": (1020, 102),
    "oxford_iiit_pet": (3680, 37),
    "rendered_flowers": (rendered_flowers.SPLITS["train"], len(rendered_flowers.KINDS)),
    "tf_flowers": (3670, 5),
}


def plan(
    config: ConfigDict,
    topology: str,
    *,
    num_classes: int,
    images: int | None,
    suggest: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles the train step of a configuration and returns what it needs, as a report.

    Args:
      config: see `config.defaults.default`; its job is "train".
      topology: see `hardware.find_topology`.
      num_classes: number of classes of the data set.
      images: number of images in the training split. None if `config.total_steps` is the run's
        length.
      suggest: compiles up to three more batch sizes to find the largest that fits and, if the step
        doesn't fit, up to four other ways to make it fit.
      log: is called with a line before each compilation.

    Returns:
      A dictionary that JSON can hold. `accumulate_steps` is the configuration's or, if that is
      None, what a run on these devices would choose; `estimated_bytes` is what the choice goes by,
      see `training.memory`. Bytes and collectives are those of one device and step;
      FLOPs are those of all devices. `flops_per_…` are three forward passes as
      `models.flops.forward_flops` counts them; a step with frozen parameters takes fewer.
      `compiled_flops_…` are the matmuls of the compiled step, with those that are computed twice;
      on GPUs they may be all operations, as XLA counts them. Times are in seconds, estimated by
      `hardware.roofline`. What is unknown is None: times if the device's peaks are not published,
      and all that the compiler counts if the step doesn't fit.

    Raises:
      ValueError: the configuration or the topology can't be used.
      ModuleNotFoundError, OSError: see `hardware.find_topology`.
    """
    if config.job != "train":
        raise ValueError(f"config.job={config.job!r}: only the steps of 'train' can be planned.")
    found = find_topology(topology)
    count = len(found.devices)
    validation.validate(config, device_count=count)
    if config.total_steps is None and images is None:
        raise ValueError(
            f"The number of training images of {config.data.name} is unknown, which {config.epochs}"
            f" epochs are counted by: give --images=N, or --config.total_steps=N."
        )
    steps = setup.run_length(config, images or 0)

    def compile_config(config: ConfigDict) -> Program:
        log(f"Compiling for {count} x {found.kind}: {_summary(config)}.")
        return compiling.compile_step(config, found, num_classes=num_classes, total_steps=steps)

    needs = estimate_needs(config, num_classes=num_classes, devices=found.devices)
    per_device = config.batch_size // count
    if config.accumulate_steps is None:  # what doesn't fit at all is planned for the least memory
        fitting = choose_accumulate_steps(needs, per_device, found.memory)
        config = with_changes(config, {"accumulate_steps": fitting or per_device})
    run = setup.set_up(config, num_classes=num_classes, total_steps=steps)
    state, batch = step_arguments(config, run)
    state_bytes, _ = bytes_per_device(config, state, batch, count)
    trained, _ = split_params(state.params, config.optim.freeze)
    program = compile_config(config)
    flops_per_image = 3 * forward_flops(
        config.model.variant,
        config.data.image_size,
        num_classes=num_classes if setup.needs_labels(config) else 0,
        **model_attributes(config),
    )
    report = {
        "variant": config.model.variant,
        "topology": topology,
        "device": found.kind,
        "chips": count,
        "parallel": config.parallel,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "estimated_bytes": round(needs.step(per_device, config.accumulate_steps)),
        "parameters": count_parameters(state.params),
        "trained_parameters": count_parameters(trained),
        "flops_per_image": flops_per_image,
        "flops_per_step": flops_per_image * config.batch_size,
        **_compiled_costs(program, found, flops_per_image * config.batch_size),
        "total_steps": steps,
    }
    if report["step_seconds"] is not None:
        seconds = report["step_seconds"]["step"]
        report["images_per_second"] = config.batch_size / seconds
        report["run_hours"] = steps * seconds / 3600
        report["run_chip_hours"] = report["run_hours"] * count
    report["compile_seconds"] = program.seconds
    report["suggestions"] = suggest_changes(
        config, found, program, state_bytes, compile_config if suggest else None
    )
    return report


def _summary(config: ConfigDict) -> str:
    parts = [config.model.variant, f"batch {config.batch_size}", config.parallel, config.dtype]
    if config.accumulate_steps > 1:
        parts.append(f"in {config.accumulate_steps} parts")
    return ", ".join(parts)


def _compiled_costs(program: Program, topology: Topology, expected_flops: float) -> dict[str, Any]:
    """Returns the part of a report that comes from the compiled program.

    Args:
      program: the compiled step.
      topology: its devices.
      expected_flops: floating-point operations of the step, on all devices.
    """
    chip = topology.chip
    costs: dict[str, Any] = {
        "arguments_bytes": program.arguments,
        "temporaries_bytes": program.temporaries,
        "total_bytes": program.total,
        "memory_bytes": topology.memory,
        "fits": program.fits,
        "compiled_flops_per_step": None,
        "compiled_flops_ratio": None,
        "bytes_accessed": program.bytes_accessed,
        "intensity": None,
        "intensity_of_peak": chip and chip.peak_flops / chip.memory_bandwidth,
        "collectives": None,
        "step_seconds": None,
        "bound_by": None,
        "images_per_second": None,
        "run_hours": None,
        "run_chip_hours": None,
    }
    if program.flops is None or program.bytes_accessed is None or program.collectives is None:
        return costs
    flops = program.flops * len(topology.devices)
    costs["compiled_flops_per_step"] = flops
    costs["compiled_flops_ratio"] = flops / expected_flops
    costs["intensity"] = program.flops / program.bytes_accessed
    costs["collectives"] = {k: v._asdict() for k, v in program.collectives.items()}
    if chip:
        bytes_sent = sum(x.sent for x in program.collectives.values())
        times = roofline(program.flops, program.bytes_accessed, bytes_sent, chip)
        costs["step_seconds"] = times
        costs["bound_by"] = max(list(times)[:-1], key=lambda part: times[part])
    return costs


def dataset_size(config: ConfigDict) -> tuple[int | None, int | None]:
    """Returns the numbers of training images and of classes, None if they are unknown.

    They are those of a folder of images or of a tfds data set that is on this machine, else those
    in `KNOWN`. Nothing is downloaded.

    Raises:
      ValueError: `data.train` is not a split, or `data.name` can't be the name of a data set.
    """
    name = config.data.name
    if is_folder(name):
        is_here = os.path.exists(os.path.expanduser(name))
    else:
        is_here = prepare.find(name, config.data.dir) is not None
    if is_here:
        dataset = sources.open_dataset(name, config.data.dir)
        _, source = sources.open_source(dataset, "train", config.data.train)
        return len(source), len(dataset.class_names)
    if name not in KNOWN:
        return None, None
    images, classes = KNOWN[name]
    return splits.split_size(config.data.train or "train", {"train": images}), classes
