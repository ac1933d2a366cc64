"""The configuration of a run: every key with its default, meaning and unit."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


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
