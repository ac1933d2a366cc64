"""The configuration of a run: every key with its default, its meaning and its unit."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default() -> ConfigDict:
    """Returns the configuration that all others start from: the paper's fine-tuning, small data.

    `placeholder(type)` is None, and can be set to that type. "Paper" says what the paper used; its
    tables of pre-training and fine-tuning are in `configs/`. Where the comment names a table of
    choices, such as training.optim.OPTIMIZERS, the key takes any name in that table.

    Example:
      >>> config = vit_jax.default_config()
      >>> config.model.variant, config.optim.lr = "S/16", 0.003
      >>> config.batch_size
      512
    """
    config = ConfigDict()
    # What is done, in jobs.table.JOBS: "train" also evaluates on the way; "evaluate" and "fewshot"
    # test the checkpoint in init_from; "sweep" tries learning rates; "compare" trains several runs.
    config.job = "train"
    # What is trained for, in training.setup.OBJECTIVES. "masked_patches" needs no labels (paper:
    # B.1.2).
    config.objective = "classification"
    config.seed = 0  # of parameters, order of the data, augmentation and dropout
    # Of the computation in the blocks (or all of a ResNet), or "bfloat16". Parameters, patch
    # embedding, and the last norm and head of a ViT are always float32. On a CPU, bfloat16 takes
    # less memory and more time, see benchmarks/README.md.
    config.dtype = "float32"
    # How the devices share the work, in training.parallel.STRATEGIES: with "pmap" each holds a
    # full copy of the state; with "sharded" each holds a part, for models too large for one device.
    config.parallel = "pmap"
    # With "sharded": number of devices that hold one copy of the state together. None: all of them.
    config.fsdp = placeholder(int)

    # The model. Keys that are set replace the variant's values; None keeps them. ResNets take only
    # axial, head_bias, kernel_epsilon, layers and width_factor. See models.attributes.ATTRIBUTES.
    config.model = ConfigDict()
    config.model.variant = "B/16"  # a row of models.VARIANTS, in any common spelling
    config.model.dropout = placeholder(float)  # probability; paper: 0.1 on ImageNet(-21k), else 0
    config.model.stochastic_depth = placeholder(float)  # probability at the last block; paper: 0
    # The head reads the class token, "token" (paper), the mean of the patches, "gap", both,
    # "token+gap", or what a query reads in the patches, "map".
    config.model.pool = placeholder(str)
    config.model.pre_logits = placeholder(bool)  # Dense, tanh before the head; paper: pre-training
    config.model.projection = placeholder(int)  # size of a linear layer after pooling; paper: 0
    # What the bias of a new head starts with. None: 0. Its authors' pre-training: -10.
    config.model.head_bias = placeholder(float)
    config.model.positions = placeholder(str)  # "1d" (paper), "2d", "relative", "sincos", "none"
    # Where positions are added: before the encoder, "stem" (paper), or before every block, from a
    # table for each, "layers", or from one table, "shared".
    config.model.positions_at = placeholder(str)
    # Pixels, one side or (height, width); of the feature map if there is a stem.
    config.model.patch_size = placeholder(object)
    config.model.width = placeholder(int)  # size of a token (paper: D)
    config.model.depth = placeholder(int)  # encoder blocks (paper: L)
    config.model.mlp_dim = placeholder(int)  # hidden size of the MLP
    config.model.num_heads = placeholder(int)  # attention heads
    config.model.stem = placeholder(tuple)  # of a hybrid: units of each stage of its ResNet
    # Of a small convolutional stem: channels of each layer. The first makes one position of 4x4
    # pixels, each other one halves the sides: (32, 64, 128), patch_size=1: 16x16 pixels a token.
    config.model.conv_stem = placeholder(tuple)
    config.model.axial = placeholder(bool)  # attention along rows, then along columns (paper: D.6)
    # Parts of later ViTs, see VisionTransformer in models/vit.py. The paper has none of them.
    config.model.class_tokens = placeholder(int)  # paper: 1 if the pool reads it, else 0
    config.model.registers = placeholder(int)  # tokens that have no positions and aren't pooled
    config.model.patch_norm = placeholder(bool)  # normalises the patch embeddings
    config.model.pre_norm = placeholder(bool)  # normalises the tokens before the first block
    config.model.final_norm = placeholder(str)  # "before_pool" (paper), "after_pool" or "none"
    config.model.norm = placeholder(str)  # "layer" (paper) or "rms"
    config.model.mlp = placeholder(str)  # "plain" (paper) or "swiglu", which has a gate
    # For these four and those above, and for positions, positions_at and pool, None takes the
    # value that the weights in init_from were trained with.
    config.model.gelu = placeholder(str)  # the "tanh" approximation (published), "exact", "quick"
    config.model.norm_epsilon = placeholder(float)  # added to LayerNorm's variance; published: 1e-6
    config.model.kernel_epsilon = placeholder(float)  # added to a standardised kernel's variance
    config.model.crop_to_patches = placeholder(bool)  # leaves out pixels beside whole patches
    # Fine-tuning by LoRA: the encoder is frozen, and the queries, values and MLP of every block get
    # updates of this rank, which are trained with the head. None: no LoRA.
    config.model.lora_rank = placeholder(int)
    config.model.lora_alpha = placeholder(float)  # updates are times alpha / rank; None: times 1
    # What the backward pass computes a second time, to save memory: "none", "dots" (all but matmuls
    # with parameters) or "full" (everything of a block). None: "none".
    config.model.remat = placeholder(str)
    # How the encoder is computed: "plain", "custom_vjp" (for CPUs), "cudnn" (NVIDIA GPUs, in
    # bfloat16) or "tpu", see models/layers.py. None: the one for the devices.
    config.model.implementation = placeholder(str)
    # Of the tokens between blocks, with dtype="bfloat16": "float32", as in the public code, or
    # "bfloat16", which is faster on GPUs and less exact, see benchmarks/README.md. None: "float32".
    config.model.residual_dtype = placeholder(str)
    # True trains the blocks as one loop: compiles in a fraction of the time, takes more memory.
    config.model.scan = placeholder(bool)
    config.model.layers = placeholder(tuple)  # of a ResNet: units of each stage
    config.model.width_factor = placeholder(int)  # of a ResNet: multiplies every width

    config.data = ConfigDict()
    # A tfds name; or a path: a folder of images, or of Parquet or Arrow files, or one such file.
    config.data.name = "rendered_flowers"
    config.data.dir = placeholder(str)  # where tfds keeps its data; None: ~/tensorflow_datasets
    # Splits in the syntax of tfds, such as "train[:85%]". None: see data.splits.default_splits.
    config.data.train = placeholder(str)  # to train on
    config.data.test = placeholder(str)  # to evaluate on
    # Pixels: one side or (height, width). Paper: 224 in pre-training, 384 in fine-tuning.
    config.data.image_size = placeholder(object)
    config.data.image_size = 224
    # The same in evaluation, if it differs: random crops enlarge what training images show, so that
    # a larger size may fit better (arXiv 1906.06423). Not with learned positions.
    config.data.eval_image_size = placeholder(object)
    # How training images are cropped, in data.transforms.TRAIN_CROPS: "inception" takes a random
    # part of the image, as the published models were trained, and "torchvision" larger parts, as
    # PyTorch's recipes; "resize" resizes, then crops at a random place.
    config.data.crop = "inception"
    config.data.crop_area = 0.05  # of the first two: smallest share of the image's area
    # Side of the crop / side that the image is resized to; of "resize", "central" and "squash".
    # None: 0.875 in training; else as for eval_crop.
    config.data.crop_fraction = placeholder(float)
    # How images are cropped in evaluation, in data.resizing.EVAL_CROPS: "central" keeps the aspect,
    # and so does "central_down", transformers' centre; "squash" doesn't; "whole" resizes the whole
    # image. None: "central" in training; jobs that only test take it from the weights in init_from.
    config.data.eval_crop = placeholder(str)
    # How images are resized in evaluation, in data.resizing.EVAL_RESIZES: "bilinear", without
    # antialiasing (published), or Pillow's "bilinear_antialias", "bicubic_antialias"
    # (timm, transformers), "lanczos_antialias" or "box_antialias". None: "bilinear" in training;
    # else as for eval_crop.
    config.data.eval_resize = placeholder(str)
    # How JPEG files are decoded: "scaled" at 1/2, 1/4 or 1/8 of the sides where that still covers
    # what they are resized to, which is faster and antialiases; or "whole". None: "scaled" in a
    # run that begins; else as for eval_crop, where weights of other code say "whole".
    config.data.decode = placeholder(str)
    # RGB that transparent pixels are laid over, each in 0 to 255. None: (255, 255, 255), white, in
    # training; else as for eval_crop.
    config.data.background = placeholder(tuple)
    # A CSV file that pairs the data's classes with those of a checkpoint: columns class and
    # model_class, a name or the number of a logit. None: class_map.csv in the data's folder, or by
    # their names, see evaluation.pairing.pair_classes.
    config.data.class_map = placeholder(str)
    config.data.flip = True  # mirrors half of the training images
    config.data.randaugment = 0  # operations of RandAugment on a training image; paper: none
    config.data.randaugment_magnitude = 10.0  # their strength, 0 to 30
    # 3-Augment: each training image is made grey, solarized or blurred. Its paper also has
    # colour_jitter=0.3.
    config.data.three_augment = False
    # Changes brightness, contrast and saturation by random factors of 1 - this to 1 + this.
    config.data.colour_jitter = 0.0
    config.data.erase = 0.0  # probability that a rectangle of a training image becomes noise
    config.data.mixup = 0.0  # blends images: alpha of the share's Beta distribution; paper: 0
    # Puts a box of one image into another (CutMix): alpha of the Beta distribution of the box's
    # share of the area. Paper: 0.
    config.data.cutmix = 0.0
    config.data.cutmix_probability = 0.5  # share of the steps with CutMix, if mixup is on, too
    # Weights of the classes in the loss of training: "none", "balanced" (inversely proportional to
    # the classes' numbers of images), or a CSV file with the columns class and weight. They are
    # scaled such that their mean over the training images is 1.
    config.data.class_weights = "none"
    # How training images are drawn, in data.class_balance.SAMPLING: "uniform", each once an epoch,
    # or "balanced", each class equally often.
    config.data.sampling = "uniform"
    # Threads that read and decode, in each process; each makes a batch. None: one for each CPU that
    # the process may use, shared with the other processes of the host that may use the same. At
    # most 2 if CPUs compute the steps, too. Of more than 4, each 4 are in a process of their own,
    # since Python's lock lets no more run at once.
    config.data.threads = placeholder(int)
    config.data.prefetch = 4  # batches made ahead in each process; at least one for every thread
    config.data.check = True  # decodes every image of a folder before a run's first step
    config.data.on_error = "stop"  # at an image that can't be decoded; or "skip" it

    config.batch_size = 512  # images a step, over all devices; paper: 4096, fine-tuning 512
    config.eval_batch_size = 512  # images a step of evaluation, over all devices
    config.total_steps = placeholder(int)  # length of the run in steps; if set, epochs isn't read
    config.epochs = placeholder(float)  # length of the run in passes over the training split
    # Micro-batches that make up a step's batch, to save memory. None: as many as let a step fit
    # into the devices' memory, by an estimate; a run that is resumed keeps their number if it fits.
    config.accumulate_steps = placeholder(int)

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # in training.optim.OPTIMIZERS; paper: "adam" in pre-training
    config.optim.lr = 0.01  # base learning rate, reached after the warm-up
    config.optim.lr_end = 0.0  # what a cosine or linear decay ends at; the authors: 1e-5 if linear
    config.optim.warmup_steps = 0  # linear from 0; paper: 10,000 in pre-training
    config.optim.decay = "cosine"  # to lr_end at the end of the run, in training.optim.SCHEDULES
    config.optim.momentum = 0.9  # of SGD; of Muon, whose authors have 0.95
    # Of Adam, which is also for what Muon doesn't take, since it isn't a matrix.
    config.optim.beta1 = 0.9  # first moment
    config.optim.beta2 = 0.999  # second moment
    config.optim.weight_decay = 0.0  # decoupled, kernels only, times the rate; paper: 0.03 to 0.3
    config.optim.clip_norm = 1.0  # largest norm of the whole gradient; 0: no clipping
    # Cross-entropy, in training.objective.LOSSES: "softmax" over the classes, or "sigmoid", of each
    # class by itself, which also takes images with several labels (the paper's authors in
    # pre-training).
    config.optim.loss = "softmax"
    config.optim.label_smoothing = 0.0  # probability that is spread evenly over the classes
    config.optim.momentum_dtype = "float32"  # of momentum (Adam: the first moment), or "bfloat16"
    config.optim.polyak = 0.0  # decay of the averaged parameters; 0: no average; paper: 0.9999
    # What isn't trained: "none" of the parameters, the "encoder", which is all but the head (a
    # linear probe), or a whole number n: the stem (patch embedding, positions, class token) and the
    # first n blocks of a ViT.
    config.optim.freeze = placeholder(object)
    config.optim.freeze = "none"
    # Learning rate of a layer divided by that of the next, as in BEiT and MAE. The head and the
    # last norm have the whole rate, the last block has this share of it, and the stem, before L
    # blocks, this to the power of L + 1. 1: all have the same rate.
    config.optim.layer_decay = 1.0
    config.optim.head_lr = placeholder(float)  # the head's own base learning rate; None: lr

    config.masked = ConfigDict()  # of objective="masked_patches"
    # What is predicted of a patch: its "mean_colour", one of 512 classes; the same of a patch
    # "downsized" to 4x4; or its "pixels", with a squared error.
    config.masked.target = "mean_colour"
    config.masked.fraction = 0.5  # share of the patches that are corrupted; paper: 0.5

    config.fewshot = ConfigDict()  # linear classifiers on frozen features; paper: 4.1
    config.fewshot.every = 0  # steps of training between two evaluations, and at the end; 0: none
    config.fewshot.shots = (1, 5, 10, 25)  # examples of each class; paper: 5 in most tables
    config.fewshot.seeds = 3  # how many times the examples are drawn
    # Strength of regularisation, of the bias, too; public code: 1024. None: the best by
    # leave-one-out error, without regularising the bias.
    config.fewshot.penalty = placeholder(float)
    # Also classifies by this many nearest neighbours, by cosine, among the features of the whole
    # training split; DINO: 20. None: doesn't.
    config.fewshot.neighbours = placeholder(int)
    config.fewshot.name = placeholder(str)  # data set; None: data.name and its splits
    config.fewshot.train = placeholder(str)  # split that examples are drawn from
    config.fewshot.test = placeholder(str)  # split that the classifiers are tested on

    # With job="evaluate": also fits a temperature to the split that is tested, and writes the
    # checkpoint with it to WORKDIR/calibrated. The split must not have been trained on.
    config.calibrate = False

    config.sweep = ConfigDict()  # of job="sweep"; paper: table 4
    config.sweep.lr = (0.001, 0.003, 0.01, 0.03)  # the values of optim.lr to try
    config.sweep.held_out = 0.1  # share of the training split that chooses; paper: 0.01 to 0.1

    config.compare = ConfigDict()  # of job="compare"; paper: figure 5
    config.compare.runs = ConfigDict()  # name -> the keys, as in this file, that make it different
    config.compare.epochs = ()  # lengths to train each of them for; (): as epochs or total_steps
    config.compare.seeds = 3  # how many times each is trained: from seed, seed + 1…

    config.log_every = 50  # steps
    # Where the rows of metrics.csv go, too, in jobs.loggers.LOGGERS: "tensorboard", "wandb",
    # "mlflow". (): nowhere.
    config.loggers = ("tensorboard",)
    config.eval_every = 500  # steps; the last step is always evaluated; 0: only the last
    config.checkpoint = ConfigDict()
    # Steps; the last step is always saved. 0: only the last. Else the first checkpoint comes after
    # two minutes, if none was due before; of several processes, with the next row of metrics.csv.
    config.checkpoint.every = 500
    config.checkpoint.keep = 2  # how many of the newest checkpoints stay
    # A column of metrics.csv, such as "test_accuracy", "test_loss" or "fewshot_5": the checkpoint
    # with its best value stays beside the newest, and WORKDIR@best names it. The lowest loss is the
    # best; of other metrics, the highest value. None keeps none.
    config.checkpoint.best = placeholder(str)
    config.checkpoint.fallback = False  # goes on from an older one if the newest is damaged
    config.checkpoint.other_config = False  # goes on in a workdir of another configuration
    config.checkpoint.other_data = False  # goes on in a workdir of other images or classes
    config.early_stopping = ConfigDict()
    # The run ends after this many tests in a row that were no better than the best so far, by the
    # metric in checkpoint.best. None or 0: it doesn't end early.
    config.early_stopping.patience = placeholder(int)
    config.on_nonfinite = "stop"  # at a NaN or infinite loss or gradient; or "skip" that update
    config.max_skipped_updates = 10  # in a row, by on_nonfinite="skip"; one more stops the run
    # What to start from, or to evaluate: a workdir, WORKDIR@best, a checkpoint's folder, a file of
    # weights, a URL or a name, see vit_jax.load. None: random parameters.
    config.init_from = placeholder(str)
    config.init_expected = False  # warns if a run starts without init_from; True in fine-tuning
    config.init_resize = "linear"  # how the positions of init_from are resized; or "cubic"
    config.init_average = False  # starts from the Polyak average of init_from
    # The first head: "keep" is that of init_from, if it is for the run's classes; or "new". None:
    # "keep" if both have the same names of classes, else "new".
    config.init_head = placeholder(str)
    return config.lock()
