"""The configuration of a run: every key with its default, meaning and unit, and its validation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import data, models

JOBS = ("train", "evaluate")
OPTIMIZERS = ("sgd", "adam")
DECAYS = ("cosine", "linear", "constant")
CROPS = ("inception", "resize")
DTYPES = ("float32", "bfloat16")
PARALLEL = ("pmap",)
RESIZES = ("linear", "cubic")


def default() -> ConfigDict:
    """Returns the configuration that all others start from: the paper's fine-tuning, small data.

    Keys that are None by default can be set to the type their comment names. "Paper" gives what
    the paper used; its pre-training and fine-tuning tables are in `configs/`.
    """
    config = ConfigDict()
    config.job = "train"  # "train" (and evaluate on the way), or "evaluate" a checkpoint
    config.seed = 0  # of parameters, data order, augmentation and dropout
    config.dtype = "float32"  # of the computation, or "bfloat16"; parameters are always float32
    config.parallel = "pmap"  # how the step is spread over the devices

    config.model = ConfigDict()
    config.model.variant = "B/16"  # a row of vit_jax.models.VARIANTS
    # The rest replaces the row's values; None keeps them. ResNets have axial and the last three.
    config.model.dropout = placeholder(float)  # probability; paper: 0.1 on ImageNet(-21k), else 0
    config.model.pool = placeholder(str)  # the head reads the class "token", or "gap": their mean
    config.model.pre_logits = placeholder(bool)  # Dense, tanh before the head; paper: pre-training
    config.model.positions = placeholder(str)  # "1d", "2d", "relative" or "none"; paper: "1d"
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
    config.data.crop_fraction = 0.875  # side of the crop / side resized to: "resize" and evaluation
    config.data.flip = True  # mirror half of the training images
    config.data.threads = 2  # that read and decode, in each process
    config.data.prefetch = 4  # batches that wait ready, in each process

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

    config.log_every = 50  # steps
    config.eval_every = 500  # steps; the last step is always evaluated; 0: only that
    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps; the last step is always saved; 0: only that
    config.checkpoint.keep = 2  # newest checkpoints that stay
    # What to start from, or to evaluate: a workdir, a checkpoint's folder, a file of weights, a URL
    # or a name, see vit_jax.interop.restore.
    config.init_from = placeholder(str)
    config.init_resize = "linear"  # how init_from's positions are resized; or "cubic"
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
        "job": JOBS, "dtype": DTYPES, "parallel": PARALLEL, "init_resize": RESIZES,
        "data.crop": CROPS, "optim.name": OPTIMIZERS, "optim.decay": DECAYS,
    }  # fmt: skip
    for key, known in choices.items():
        if (value := _get(config, key)) not in known:
            yield f"{key}={value!r} is unknown: {_one_of(known, value)}."
    yield from _range_problems(config)
    yield from _length_problems(config)
    yield from _batch_problems(config, devices)
    yield from _model_problems(config)
    for key in ("train", "test"):
        if (split := config.data[key]) is not None:
            try:
                data.parse_split(split)
            except ValueError as error:
                yield f"data.{key}: {error}"


def _range_problems(config: ConfigDict) -> Iterator[str]:
    positive = ("batch_size", "eval_batch_size", "accumulate_steps", "log_every",
                "checkpoint.keep", "data.threads", "data.prefetch", "optim.lr")  # fmt: skip
    not_negative = ("seed", "eval_every", "checkpoint.every", "optim.warmup_steps",
                    "optim.weight_decay", "optim.clip_norm")  # fmt: skip
    fractions = ("optim.label_smoothing", "optim.momentum", "optim.beta1", "optim.beta2")
    shares = ("data.crop_area", "data.crop_fraction")
    for keys, rule, fits in (
        (positive, "above 0", lambda x: x > 0),
        (not_negative, "0 or more", lambda x: x >= 0),
        (fractions, "in [0, 1)", lambda x: 0 <= x < 1),
        (shares, "in (0, 1]", lambda x: 0 < x <= 1),
    ):
        for key in keys:
            if not fits(_get(config, key)):
                yield f"{key}={_get(config, key)} must be {rule}."


def _length_problems(config: ConfigDict) -> Iterator[str]:
    if config.job == "train" and config.total_steps is None and config.epochs is None:
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


def _model_problems(config: ConfigDict) -> Iterator[str]:
    try:
        model = models.build(config.model.variant, num_classes=1, **model_overrides(config))
    except ValueError as error:
        yield f"model: {error}"
        return
    try:
        model.grid(data.image_shape(config.data.image_size))
    except (TypeError, ValueError) as error:
        yield f"data.image_size={config.data.image_size} with {config.model.variant}: {error}"


def _unknown_keys(config: ConfigDict, known: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if key not in known:
            close = difflib.get_close_matches(key, known.keys(), n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else "."
            yield f"there is no key {prefix}{key}{hint}"
        elif isinstance(value, ConfigDict):
            yield from _unknown_keys(value, known[key], f"{prefix}{key}.")


def _get(config: ConfigDict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


def _one_of(known: tuple[str, ...], value: str) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return " or ".join(map(repr, known)) + (f" (did you mean {close[0]!r}?)" if close else "")
