"""The configuration of a run: every key with its default, meaning and unit, and its validation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import flax.linen as nn
import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import data, models
from vit_jax.models.vit import VisionTransformer
from vit_jax.objectives import TARGETS

JOBS = ("train", "evaluate", "fewshot", "sweep", "compare")
OBJECTIVES = ("classification", "masked_patches")
OPTIMIZERS = ("sgd", "adam")
DECAYS = ("cosine", "linear", "constant")
CROPS = ("inception", "resize")
EVAL_CROPS = ("central", "whole")
DTYPES = ("float32", "bfloat16")
PARALLEL = ("pmap", "sharded")
RESIZES = ("linear", "cubic")


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
    # see vit_jax/models/layers.py. None: the fastest known for the devices.
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
      ValueError: lists every problem found, one a line, each with its key and what would fit.
    """
    devices = jax.device_count() if device_count is None else device_count
    if problems := list(_problems(config, devices)):
        raise ValueError("The configuration can't be run:\n- " + "\n- ".join(problems))


def _problems(config: ConfigDict, devices: int) -> Iterator[str]:
    yield from _unknown_keys(config, default())
    choices = {
        "job": JOBS, "objective": OBJECTIVES, "masked.target": tuple(TARGETS),
        "dtype": DTYPES, "parallel": PARALLEL, "init_resize": RESIZES, "data.crop": CROPS,
        "data.eval_crop": EVAL_CROPS, "optim.name": OPTIMIZERS, "optim.decay": DECAYS,
        "optim.momentum_dtype": DTYPES,
    }  # fmt: skip
    for key, known in choices.items():
        if (value := _get(config, key)) not in known:
            yield f"{key}={value!r} is unknown: {_one_of(known, value)}."
    yield from _range_problems(config)
    yield from _length_problems(config)
    yield from _batch_problems(config, devices)
    yield from _model_problems(config)
    for key in ("data.train", "data.test", "fewshot.train", "fewshot.test"):
        if (split := _get(config, key)) is not None:
            try:
                data.parse_split(split)
            except ValueError as error:
                yield f"{key}: {error}"
    if config.job == "compare":
        yield from _compare_problems(config, devices)


def _range_problems(config: ConfigDict) -> Iterator[str]:
    positive = ("batch_size", "eval_batch_size", "accumulate_steps", "log_every",
                "checkpoint.keep", "data.threads", "data.prefetch", "optim.lr", "fewshot.seeds",
                "compare.seeds")  # fmt: skip
    not_negative = ("seed", "eval_every", "checkpoint.every", "optim.warmup_steps",
                    "optim.weight_decay", "optim.clip_norm", "data.mixup", "data.randaugment",
                    "fewshot.every")  # fmt: skip
    fractions = ("optim.label_smoothing", "optim.momentum", "optim.beta1", "optim.beta2",
                 "optim.polyak")  # fmt: skip
    shares = ("data.crop_area", "data.crop_fraction", "masked.fraction")
    for keys, rule, fits in (
        (positive, "above 0", lambda x: x > 0),
        (not_negative, "0 or more", lambda x: x >= 0),
        (fractions, "in [0, 1)", lambda x: 0 <= x < 1),
        (shares, "in (0, 1]", lambda x: 0 < x <= 1),
    ):
        for key in keys:
            if not fits(_get(config, key)):
                yield f"{key}={_get(config, key)} must be {rule}."
    if not 0 <= config.data.randaugment_magnitude <= 30:
        yield f"data.randaugment_magnitude={config.data.randaugment_magnitude} must be in [0, 30]."
    if not 0 < config.sweep.held_out < 1:
        yield f"sweep.held_out={config.sweep.held_out} must be in (0, 1)."
    for key, least in (("fewshot.shots", 1), ("sweep.lr", 1), ("compare.epochs", 0)):
        values = _get(config, key)
        if len(values) < least or not all(value > 0 for value in values):
            yield f"{key}={values} must be numbers above 0, such as {_get(default(), key) or (5,)}."


def _length_problems(config: ConfigDict) -> Iterator[str]:
    if config.job == "compare" and config.compare.epochs:
        return
    training = config.job not in ("evaluate", "fewshot")
    if training and config.total_steps is None and config.epochs is None:
        yield "neither total_steps nor epochs is set: one of them gives the run its length."
    for key in ("total_steps", "epochs"):
        if config[key] is not None and config[key] <= 0:
            yield f"{key}={config[key]} must be above 0."


def _batch_problems(config: ConfigDict, devices: int) -> Iterator[str]:
    for key, parts in (
        ("batch_size", devices * config.accumulate_steps),
        ("eval_batch_size", devices),
    ):
        if parts > 0 and (size := config[key]) % parts:
            fit = max(parts, size // parts * parts)
            by = f"the {devices} devices"
            if parts != devices:
                by += f" x accumulate_steps={config.accumulate_steps}"
            yield f"{key}={size} can't be split evenly over {by}: take a multiple of {parts}, " \
                  f"such as {fit}."
    if config.fsdp is not None:
        if config.parallel != "sharded":
            yield f"fsdp={config.fsdp} is for parallel='sharded': '{config.parallel}' divides no " \
                  f"state."
        elif config.fsdp < 1 or devices % config.fsdp:
            yield f"fsdp={config.fsdp} must divide the number of devices, {devices}."


def _model_problems(config: ConfigDict) -> Iterator[str]:
    try:
        model = models.build(config.model.variant, num_classes=1, **model_overrides(config))
    except ValueError as error:
        yield f"model: {error}"
        return
    try:
        shape = data.image_shape(config.data.image_size)
        grid = model.grid(shape)
    except (TypeError, ValueError) as error:
        yield f"data.image_size={config.data.image_size} with {config.model.variant}: {error}"
        return
    if config.objective == "masked_patches":
        yield from _masked_problems(config, model, shape, grid)


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
    single = config.copy_and_resolve_references()
    changes = single.compare.runs[name]
    with single.unlocked():
        single.compare = default().compare
    single.update(changes)
    single.job = "train"
    return single


def _compare_problems(config: ConfigDict, devices: int) -> Iterator[str]:
    if not config.compare.runs:
        yield "compare.runs is empty: give each run a name and what makes it different."
    for name in config.compare.runs:
        try:
            single = run(config, name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield f"compare.runs.{name}: {str(error).splitlines()[0]}"
            continue
        if single.epochs is None and config.compare.epochs:
            single.epochs = float(config.compare.epochs[0])
        yield from (f"compare.runs.{name}: {problem}" for problem in _problems(single, devices))


def _unknown_keys(config: ConfigDict, known: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known.keys(), n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else "."
            yield f"there is no key {prefix}{key}{hint}"
        elif isinstance(value, ConfigDict) and f"{prefix}{key}" != "compare.runs":
            yield from _unknown_keys(value, known[key], f"{prefix}{key}.")


def _get(config: ConfigDict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


def _one_of(known: tuple[str, ...], value: str) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return " or ".join(map(repr, known)) + (f" (did you mean {close[0]!r}?)" if close else "")
