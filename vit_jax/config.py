"""The configuration of a run: every key with its default, meaning and unit, and its validation."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import data, models
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives import TARGETS

logger = logging.getLogger(__name__)

JOBS = ("train", "evaluate", "fewshot", "sweep", "compare")
OBJECTIVES = ("classification", "masked_patches")
OPTIMIZERS = ("sgd", "adam")
DECAYS = ("cosine", "linear", "constant")
CROPS = ("inception", "resize")
EVAL_CROPS = ("central", "whole")
DTYPES = ("float32", "bfloat16")
PARALLEL = ("pmap", "sharded")
RESIZES = ("linear", "cubic")
ON_FAULT = ("stop", "skip")


def default() -> ConfigDict:
    """Returns the configuration that all others start from: the paper's fine-tuning, small data.

    Keys that are None by default can be set to the type their comment names. "Paper" gives what
    the paper used; its pre-training and fine-tuning tables are in `configs/`.
    """
    config = ConfigDict()
    # "train" (and evaluate on the way); "evaluate" a checkpoint, or its representations by
    # "fewshot"; "sweep" learning rates; "compare" several runs.
    config.job = "train"
    config.objective = "classification"  # or "masked_patches", without labels; paper: B.1.2
    config.seed = 0  # of parameters, data order, augmentation and dropout
    config.dtype = "float32"  # of the computation, or "bfloat16"; parameters are always float32
    # How the step is spread over the devices: "pmap", each holds the whole state, or "sharded",
    # they divide it, for models too large for one.
    config.parallel = "pmap"
    config.fsdp = placeholder(int)  # devices that divide one state, "sharded"; None: all of them

    config.model = ConfigDict()
    config.model.variant = "B/16"  # a row of vit_jax.models.VARIANTS
    # The rest replaces the row's values; None keeps them. ResNets have axial and the last three.
    config.model.dropout = placeholder(float)  # probability; paper: 0.1 on ImageNet(-21k), else 0
    config.model.stochastic_depth = placeholder(float)  # probability at the last block; paper: 0
    config.model.pool = placeholder(str)  # head reads "token" (paper) or "gap"; None: as init_from
    config.model.pre_logits = placeholder(bool)  # Dense, tanh before the head; paper: pre-training
    config.model.positions = placeholder(str)  # "1d" (paper), "2d", "relative", "sincos", "none"
    config.model.positions_at = placeholder(str)  # "stem" (paper), "layers", "shared" by layers
    config.model.patch_size = placeholder(int)  # pixels, of the feature map where there is a stem
    config.model.width = placeholder(int)  # size of a token (paper: D)
    config.model.depth = placeholder(int)  # encoder blocks (paper: L)
    config.model.mlp_dim = placeholder(int)  # hidden size of the MLP
    config.model.num_heads = placeholder(int)  # attention heads
    config.model.stem = placeholder(tuple)  # units of each stage of a hybrid's ResNet
    config.model.axial = placeholder(bool)  # attention along rows, then columns
    # None takes these from init_from's weights, or else what the published checkpoints are for.
    config.model.gelu = placeholder(str)  # "tanh" approximation (published), or "exact"
    config.model.norm_epsilon = placeholder(float)  # added to LayerNorm's variance; published: 1e-6
    config.model.kernel_epsilon = placeholder(float)  # added to a standardised kernel's variance
    # Computes again in the backward pass, to save memory: "none", "dots" (all but products with
    # parameters), "full" (everything of a block).
    config.model.remat = placeholder(str)
    # How the encoder computes: "plain", "custom_vjp" (for CPUs) or "cudnn" (NVIDIA GPUs, bfloat16),
    # see vit_jax/models/layers.py. None: the one for the devices.
    config.model.implementation = placeholder(str)
    # Trains the blocks as one loop: compiles in a fraction of the time, takes more memory.
    config.model.scan = placeholder(bool)
    config.model.layers = placeholder(tuple)  # of a ResNet: units of each stage
    config.model.width_factor = placeholder(int)  # of a ResNet: multiplies every width

    config.data = ConfigDict()
    config.data.name = "rendered_flowers"  # a tfds name, or a folder of images
    config.data.dir = placeholder(str)  # where tfds keeps its data; None: ~/tensorflow_datasets
    config.data.train = placeholder(str)  # split, such as "train[:85%]"; None: see data.py
    config.data.test = placeholder(str)  # split to evaluate on; None: its own, or 15 % of train
    # Pixels: one side or (height, width). Paper: 224 in pre-training, 384 in fine-tuning.
    config.data.image_size = placeholder(object)
    config.data.image_size = 224
    config.data.crop = "inception"  # in training; or "resize": resize, then crop at random
    config.data.crop_area = 0.05  # smallest share of the image's area in an inception crop
    config.data.crop_fraction = 0.875  # side of the crop / side resized to: "resize", "central"
    config.data.eval_crop = "central"  # in evaluation; or "whole": the image, whatever its aspect
    config.data.flip = True  # mirror half of the training images
    config.data.randaugment = 0  # operations of RandAugment on a training image; paper: none
    config.data.randaugment_magnitude = 10.0  # their strength, 0 to 30
    config.data.mixup = 0.0  # blends images: alpha of the share's Beta distribution; paper: 0
    config.data.threads = 2  # that read and decode, in each process
    config.data.prefetch = 4  # batches that wait ready, in each process
    config.data.check = True  # decode every image of a folder before a run's first step
    config.data.on_error = "stop"  # at an image that can't be decoded; or "skip" it, see data.py

    config.batch_size = 512  # images a step, over all devices; paper: 4096, fine-tuning 512
    config.eval_batch_size = 512  # images an evaluation step, over all devices
    config.total_steps = placeholder(int)  # length of the run in steps; if set, epochs isn't read
    config.epochs = placeholder(float)  # length of the run in passes over the training split
    config.accumulate_steps = 1  # micro-batches that a step's batch is computed in, to save memory

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # or "adam"; paper: adam in pre-training, sgd in fine-tuning
    config.optim.lr = 0.01  # base learning rate, reached after the warm-up
    config.optim.warmup_steps = 0  # linear from 0; paper: 10,000 in pre-training
    config.optim.decay = "cosine"  # to 0 at the end; or "linear", or "constant"
    config.optim.momentum = 0.9  # of sgd
    config.optim.beta1 = 0.9  # of adam: first moment
    config.optim.beta2 = 0.999  # of adam: second moment
    config.optim.weight_decay = 0.0  # decoupled, kernels only, times the rate; paper: 0.03 to 0.3
    config.optim.clip_norm = 1.0  # largest norm of the whole gradient; 0: no clipping
    config.optim.label_smoothing = 0.0  # probability mass spread evenly over the classes

    config.optim.momentum_dtype = "float32"  # of momentum (Adam: the first moment), or "bfloat16"
    config.optim.polyak = 0.0  # factor of the averaged parameters, 0: none; paper: 0.9999

    config.masked = ConfigDict()  # of masked_patches
    config.masked.target = "mean_colour"  # 512 classes; "downsized": 4x4 of them; "pixels": L2
    config.masked.fraction = 0.5  # of the patches that are corrupted; paper: 0.5

    config.fewshot = ConfigDict()  # linear evaluation of frozen representations; paper: 4.1
    config.fewshot.every = 0  # steps of training between two, and at the end; 0: none
    config.fewshot.shots = (1, 5, 10, 25)  # examples of each class; paper: 5 in most tables
    config.fewshot.seeds = 3  # draws of the examples
    config.fewshot.name = placeholder(str)  # data set; None: as data.name and its splits
    config.fewshot.train = placeholder(str)  # split that examples are drawn from
    config.fewshot.test = placeholder(str)  # split that the classifiers are tested on

    config.sweep = ConfigDict()  # of learning rates; paper: table 4
    config.sweep.lr = (0.001, 0.003, 0.01, 0.03)  # the values of optim.lr to try
    config.sweep.held_out = 0.1  # share of the training split that chooses; paper: 0.01 to 0.1

    config.compare = ConfigDict()  # several runs; paper: figure 5
    config.compare.runs = ConfigDict()  # name -> the keys, as in this file, that make it different
    config.compare.epochs = ()  # lengths to train each of them for; (): as the configuration says
    config.compare.seeds = 3  # times each is trained, from seed, seed + 1…

    config.log_every = 50  # steps
    config.eval_every = 500  # steps; the last step is always evaluated; 0: only that
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps; the last step is always saved; 0: only that
    config.checkpoint.keep = 2  # newest checkpoints that stay
    config.checkpoint.fallback = False  # go on from an older one where the newest is damaged
    config.checkpoint.other_config = False  # go on with a workdir of another configuration
    config.on_nonfinite = "stop"  # at a NaN or infinite loss or gradient; or "skip" that update
    config.max_skipped_updates = 10  # in a row, by on_nonfinite="skip"; one more stops the run
    # What to start from, or to evaluate: a workdir, a checkpoint's folder, a file of weights, a URL
    # or a name, see vit_jax.interop.restore.
    config.init_from = placeholder(str)
    config.init_resize = "linear"  # how init_from's positions are resized; or "cubic"
    config.init_average = False  # start from init_from's Polyak average
    return config.lock()


def model_overrides(config: ConfigDict) -> dict:
    """Returns what `config.model` sets besides the variant, as `models.build` takes it."""
    return {k: v for k, v in config.model.items() if k != "variant" and v is not None}


def validate(config: ConfigDict, *, device_count: int | None = None) -> None:
    """Checks a configuration before anything is read, built or compiled.

    Args:
      config: as `default` returns it, with values changed.
      device_count: devices the batch is spread over; None for all that JAX sees.

    Raises:
      ValueError: lists every problem found, one a line, each with its key and what would fit. It
        is the only error, whatever the configuration holds.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"A configuration is a ConfigDict, as vit_jax.config.default() returns it, not "
            f"{_shown(config)}."
        )
    devices = jax.device_count() if device_count is None else device_count
    if problems := [" ".join(problem.split()) for problem in _problems(config, devices)]:
        raise ValueError("The configuration can't be run:\n- " + "\n- ".join(problems))


def _problems(config: ConfigDict, devices: int) -> Iterator[str]:
    """Yields what is wrong with each key by itself, then what can't be combined of the others."""
    wrong, right = [], {}
    for key, value, problem in _entries(config, default()):
        if problem:
            wrong.append(key)
            yield problem
        else:
            right[key] = value
    config = default()
    config.update_from_flattened_dict(right)

    def combined(single: ConfigDict) -> list[str]:
        return [problem for keys, problem in _combinations(single, devices, config.job)
                if not any(_overlap(a, b) for a in keys for b in wrong)]  # fmt: skip

    told = combined(config)
    yield from told
    if config.job != "compare" or any(_overlap("compare.runs", key) for key in wrong):
        return
    if not config.compare.runs:
        yield "compare.runs is empty: give each run a name and what makes it different."
    for name in config.compare.runs:
        single = run(config, name)
        if config.compare.epochs:
            single.epochs, single.total_steps = float(config.compare.epochs[0]), None
        yield from (f"compare.runs.{name}: {problem}" for problem in combined(single)
                    if problem not in told)  # fmt: skip


def _overlap(a: str, b: str) -> bool:
    """Tells whether two keys are the same, or one is a section that the other is in."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


# ----------------------------------------------------------------------------- a key by itself

_CHOICES = {
    "job": JOBS, "objective": OBJECTIVES, "masked.target": tuple(TARGETS), "dtype": DTYPES,
    "parallel": PARALLEL, "init_resize": RESIZES, "data.crop": CROPS, "data.eval_crop": EVAL_CROPS,
    "data.on_error": ON_FAULT, "on_nonfinite": ON_FAULT, "optim.name": OPTIMIZERS,
    "optim.decay": DECAYS, "optim.momentum_dtype": DTYPES,
}  # fmt: skip
_SPLITS = ("data.train", "data.test", "fewshot.train", "fewshot.test")
# Keys, what their values must be, and whether one is.
_RANGES = (
    (("batch_size", "eval_batch_size", "accumulate_steps", "total_steps", "epochs", "fsdp",
      "log_every", "checkpoint.keep", "data.threads", "data.prefetch", "optim.lr", "fewshot.seeds",
      "compare.seeds", "max_skipped_updates"), "above 0", lambda x: x > 0),
    (("seed", "eval_every", "checkpoint.every", "optim.warmup_steps", "optim.weight_decay",
      "optim.clip_norm", "data.mixup", "data.randaugment", "fewshot.every"),
     "0 or more", lambda x: x >= 0),
    (("optim.label_smoothing", "optim.momentum", "optim.beta1", "optim.beta2", "optim.polyak"),
     "in [0, 1)", lambda x: 0 <= x < 1),
    (("data.crop_area", "data.crop_fraction", "masked.fraction"), "in (0, 1]",
     lambda x: 0 < x <= 1),
    (("sweep.held_out",), "in (0, 1)", lambda x: 0 < x < 1),
    (("data.randaugment_magnitude",), "in [0, 30]", lambda x: 0 <= x <= 30),
    (("fewshot.shots", "sweep.lr"), "numbers above 0", lambda x: x and min(x) > 0),
    (("compare.epochs",), "numbers above 0", lambda x: not x or min(x) > 0),
    (("data.name",), "a folder of images or the name of a data set", str.strip),
)  # fmt: skip


def _entries(
    config: ConfigDict, known: ConfigDict, prefix: str = "", *, complete: bool = True
) -> Iterator[tuple[str, Any, str]]:
    """Yields (key, value, problem) for every key there is or should be.

    The problem is "" where there is none, and so is the key where `default` has no such one.

    Args:
      config: the configuration, or a section of it.
      known: the same of `default`.
      prefix: of the section's keys.
      complete: whether no key may be missing.
    """
    try:
        found = list(config)
    except TypeError:  # they can't be sorted
        yield "", None, f"{prefix[:-1] or 'the configuration'} has keys that are not text."
        found = []
    for key in found:
        if key not in known:
            yield "", None, no_such_key(f"{prefix}{key}")
    for key, usual in known.items():
        name = f"{prefix}{key}"
        if key not in config:
            if complete:
                yield name, None, f"{name} is missing: start from vit_jax.config.default()."
            continue
        value = _value(config, key)
        if not isinstance(usual, ConfigDict):
            yield name, value, _misfit(name, value, usual, known.get_type(key))
        elif problem := _misfit(name, value, usual, ConfigDict):
            yield name, None, problem
        elif name == "compare.runs":
            problems = list(_run_problems(value))
            yield from ((name, None, problem) for problem in problems)
            if not problems:
                yield name, value, ""
        else:
            yield from _entries(value, usual, f"{name}.", complete=complete)


def _run_problems(runs: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the keys of `compare.runs`, each by itself."""
    try:
        names = list(runs)
    except TypeError:
        names = [None]
    if not all(isinstance(name, str) and any(map(str.isalnum, name)) for name in names):
        yield "compare.runs: a run's name is text, with a letter or a digit in it."
        return
    for name in names:
        different = _value(runs, name)
        if not isinstance(different, ConfigDict):
            yield f"compare.runs.{name}={_shown(different)} must be a ConfigDict of other values."
            continue
        if own := [key for key in ("job", "seed", "compare") if key in different]:
            yield f"compare.runs.{name}: job='compare' sets {', '.join(own)} itself: leave it out."
            continue
        for _, _, problem in _entries(different, default(), complete=False):
            if problem:
                yield f"compare.runs.{name}: {problem}"


def _value(config: ConfigDict, key: str) -> Any:
    try:
        return config[key]
    except Exception as error:  # a reference to what isn't there, or can't be computed
        return error


def _misfit(key: str, value: Any, usual: Any, kind: type) -> str:
    """Returns what is wrong with a key's value, whatever the other keys are, or "".

    Args:
      usual: its default.
      kind: the type of its default, or that it can be set to where this is None.
    """
    if value is None and usual is None:
        return ""
    fits, rule, such = _type(key, usual, kind)
    if not fits(value):
        return f"{key}={_shown(value)} must be {rule}{such}{' or None' * (usual is None)}."
    if key in _CHOICES and value not in _CHOICES[key]:
        return f"{key}={_shown(value)} is unknown: {_one_of(_CHOICES[key], value)}."
    for keys, rule, fits in _RANGES:
        if key in keys and not fits(value):
            return f"{key}={_shown(value)} must be {rule}{such}."
    if key in _SPLITS:
        try:
            data.parse_split(value)
        except ValueError as error:
            return f"{key}: {error}"
    return ""


def _type(key: str, usual: Any, kind: type) -> tuple[Callable[[Any], bool], str, str]:
    """Returns whether a value is of a key's type, what that is called, and an example, or ""."""
    if kind is not tuple:
        return *_TYPES[kind], ""
    whole = key not in ("sweep.lr", "compare.epochs")
    fits, rule = (_wholes, "whole numbers (of 32 bits)") if whole else (_numbers, "finite numbers")
    return fits, rule, f", such as {usual or (3, 4)}"


def what_fits(key: str) -> str:
    """Returns what the values of a key are, such as "a finite number".

    Args:
      key: of `default`, in full.
    """
    section, _, name = key.rpartition(".")
    known = default()[section] if section else default()
    return "".join(_type(key, known[name], known.get_type(name))[1:])


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and -(2**31) <= x < 2**31


def _number(x: Any) -> bool:
    real = isinstance(x, int | float) and not isinstance(x, bool)
    return real and abs(x) <= sys.float_info.max  # NaN isn't


def _wholes(x: Any) -> bool:  # a hundred at most: each stage of a ResNet doubles the stride
    return isinstance(x, tuple | list) and len(x) <= 100 and all(map(_whole, x))


def _numbers(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) <= 100 and all(map(_number, x))


def _sides(x: Any) -> bool:
    sides = [x, x] if _whole(x) else x
    return _wholes(sides) and len(sides) == 2 and min(sides) > 0


# Whether a value is of a key's type, and what that is called; `_type` has tuples.
_TYPES = {
    bool: (lambda x: isinstance(x, bool), "True or False"),
    int: (_whole, "a whole number (of 32 bits)"),
    float: (_number, "a finite number"),
    str: (lambda x: isinstance(x, str), "text"),
    object: (_sides, "pixels: one side or (height, width)"),  # data.image_size
    ConfigDict: (lambda x: isinstance(x, ConfigDict), "a section, a ConfigDict"),
}


def _shown(value: Any) -> str:
    """Returns a value as it is written, cut where that is long."""
    try:
        text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    except Exception:  # such as a number with more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:100]}…"


# ------------------------------------------------------------------------ what doesn't go together


def _combinations(
    config: ConfigDict, devices: int, job: str
) -> Iterator[tuple[Collection[str], str]]:
    """Yields (keys or sections, what is wrong with them together); each by itself is right.

    Args:
      job: of the whole configuration, where `config` is one of its runs.
    """
    training = config.job not in ("evaluate", "fewshot")
    by_compare = config.job == "compare" and config.compare.epochs
    if training and not by_compare and config.total_steps is None and config.epochs is None:
        yield ("job", "total_steps", "epochs", "compare.epochs"), (
            "neither total_steps nor epochs is set: one of them gives the run its length."
        )
    if training and config.init_average and config.init_from is None:
        yield ("job", "init_average", "init_from"), (
            "init_average=True needs init_from, whose average a run can start from."
        )
    if job in ("sweep", "compare") and (config.objective, config.masked.target) == (
        "masked_patches", "pixels"
    ):  # fmt: skip
        yield ("job", "objective", "masked.target"), (
            f"job='{job}' goes by accuracy, and masked.target='pixels' has none: take "
            f"'mean_colour' or 'downsized'."
        )
    yield from _batch_problems(config, devices)
    yield from _model_problems(config)


def _batch_problems(config: ConfigDict, devices: int) -> Iterator[tuple[Collection[str], str]]:
    for keys, parts in (
        (("batch_size", "accumulate_steps"), devices * config.accumulate_steps),
        (("eval_batch_size",), devices),
    ):
        key = keys[0]
        if (size := config[key]) % parts:
            fit = max(parts, size // parts * parts)
            by = f"the {devices} devices"
            if parts != devices:
                by += f" x accumulate_steps={config.accumulate_steps}"
            yield keys, (
                f"{key}={size} can't be split evenly over {by}: take a multiple of {parts}, such "
                f"as {fit}."
            )
    if config.fsdp is None:
        return
    if config.parallel != "sharded":
        yield ("fsdp", "parallel"), (
            f"fsdp={config.fsdp} is for parallel='sharded': '{config.parallel}' divides no state."
        )
    elif devices % config.fsdp:
        yield ("fsdp", "parallel"), (
            f"fsdp={config.fsdp} must divide the number of devices, {devices}."
        )


def _model_problems(config: ConfigDict) -> Iterator[tuple[Collection[str], str]]:
    try:
        model = models.build(
            config.model.variant, num_classes=1, dtype=config.dtype, **model_overrides(config)
        )
    except ValueError as error:
        yield ("model", "dtype"), f"model: {error}"
        return
    shape = data.image_shape(config.data.image_size)
    try:
        grid = model.grid(shape)
    except ValueError as error:
        yield ("model", "data.image_size"), (
            f"data.image_size={config.data.image_size} with {config.model.variant}: {error}"
        )
        return
    if config.objective == "masked_patches":
        keys = ("model", "data.image_size", "objective", "masked.target")
        yield from ((keys, problem) for problem in _masked_problems(config, model, shape, grid))


def _masked_problems(
    config: ConfigDict, model: nn.Module, shape: tuple[int, int], grid: tuple[int, int]
) -> Iterator[str]:
    if not isinstance(model, VisionTransformer):
        yield f"objective='masked_patches' needs a ViT or a hybrid, not {config.model.variant}."
        return
    if model.pre_logits:
        yield "objective='masked_patches' has no use for model.pre_logits: leave it out."
    patch = model.stride
    if shape != (grid[0] * patch[0], grid[1] * patch[1]):
        yield f"data.image_size={config.data.image_size}: objective='masked_patches' needs sides " \
              f"that the {patch[0]}x{patch[1]} pixels of a patch divide."
    if config.masked.target == "downsized" and any(side % 4 for side in patch):
        yield f"masked.target='downsized' needs patches whose sides 4 divides, not " \
              f"{patch[0]}x{patch[1]}."


def run(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the configuration of one of `compare.runs`, for `job="train"`.

    Raises:
      KeyError, TypeError: it changes keys that there are not, or to another type; says which.
    """
    resolved = config.copy_and_resolve_references()
    single = default()
    single.update({key: value for key, value in resolved.items() if key != "compare"})
    single.update(resolved.compare.runs[name])
    single.job = "train"
    return single


# --------------------------------------------------------------------------- a workdir's own run

# What may change when a run goes on, because no update of the parameters depends on it…
_FREE = (
    "job", "parallel", "fsdp", "accumulate_steps",  # … but for what dropout and Mixup draw
    "model.implementation", "model.remat", "model.scan",
    "data.dir", "data.test", "data.eval_crop", "data.threads", "data.prefetch", "data.check",
    "eval_batch_size", "log_every", "eval_every", "checkpoint", "fewshot", "sweep", "compare",
    "init_from", "init_resize", "init_average",  # a run reads them once, at its start
    # … or because it is for those who know: a longer run, whose schedule then ends later, and what
    # to do about faults.
    "total_steps", "epochs", "data.on_error", "on_nonfinite", "max_skipped_updates",
)  # fmt: skip


def changes(config: ConfigDict, saved: ConfigDict) -> list[str]:
    """Returns what makes a configuration train something else than a saved one.

    Keys that may change in the middle of a run don't count: where and how fast it computes, how
    long it is (`total_steps`, `epochs`: the schedule ends where the run does), what is measured and
    kept on the way, and what is read only at its start.

    Args:
      config: of the run to be, with what it inherits from the saved one.
      saved: as a checkpoint has it, where tuples have become lists. Keys it lacks, of a version
        that didn't have them, count as their default; keys that are no more don't count.

    Returns:
      One text a key: "optim.lr was 0.01, is 0.03".
    """
    usual, told = default(), []
    for key in _keys(usual):
        if isinstance(usual[key], ConfigDict) or any(_overlap(key, free) for free in _FREE):
            continue
        old, new = (_resolved(key, _get(c, key, usual[key])) for c in (saved, config))
        if old != new:
            told.append(f"{key} was {_shown(old)}, is {_shown(new)}")
    return told


def check_same_run(config: ConfigDict, saved: ConfigDict, where: str) -> None:
    """Refuses to go on with what another configuration began, see `changes`.

    Args:
      config: valid, of the run to be, with what it inherits from the saved one;
        `checkpoint.other_config` lets it go on.
      saved: as a checkpoint has it.
      where: the checkpoint, for the message.

    Raises:
      ValueError: they differ; lists by which keys, and what can be done.
    """
    told = "".join(f"\n- {change}" for change in changes(config, saved))
    if told and not config.checkpoint.other_config:
        raise ValueError(
            f"{where} is of another configuration:{told}\nTake the run's own values, or another "
            f"--workdir, or go on with these: --config.checkpoint.other_config=true."
        )
    if told:
        logger.info("going on with another configuration:%s", told)


def _get(config: Any, key: str, usual: Any) -> Any:
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return usual
        config = config[part]
    return config


def _resolved(key: str, value: Any) -> Any:
    """Returns a value such that those that mean the same are equal."""
    if key == "data.name" and os.path.isdir(folder := os.path.expanduser(str(value))):
        return os.path.realpath(folder)
    if key == "data.image_size" and isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------ names that exist


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields all keys in full, sections among them."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, ConfigDict) and name != "compare.runs":
            yield from _keys(value, f"{name}.")


def no_such_key(key: str) -> str:
    """Returns "there is no key optim.lrr; did you mean optim.lr?", or "" for a key of `default`.

    Args:
      key: in full, such as "optim.lrr".
    """
    known = list(_keys(default()))
    if key in known:
        return ""
    section, _, name = key.rpartition(".")
    here = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    shallow_last = sorted(known, key=lambda k: (k.count("."), k), reverse=True)
    elsewhere = {k.rpartition(".")[2]: k for k in shallow_last}
    for wanted, names, likeness in (
        (name, elsewhere, 1.0), (name, here, 0.6), (name, elsewhere, 0.7),
        (key, {k: k for k in known}, 0.8),
    ):  # fmt: skip
        if close := difflib.get_close_matches(wanted, names, n=1, cutoff=likeness):
            return f"there is no key {key}; did you mean {names[close[0]]}?"
    return f"there is no key {key}."


def _one_of(known: tuple[str, ...], value: str) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return " or ".join(map(repr, known)) + (f" (did you mean {close[0]!r}?)" if close else "")
