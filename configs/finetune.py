"""Fine-tunes a model on another data set, usually at a higher resolution (paper table 4).

    python -m vit_jax.main --config=configs/finetune.py:Nano/8,../shared/data/flower_photos \\
        --workdir=runs/transfer --config.init_from=runs/quickstart \\
        --config.data.image_size=96 --config.batch_size=32 --config.optim.lr=0.03

Time: 66 seconds on two cores (307 images/s), 4 minutes on slower ones.
Result of one run: 65.7 % test accuracy. The model of the quickstart had only seen drawn flowers of
48 pixels.

The argument is VARIANT,DATASET: a variant of `vit_jax.models.VARIANTS`, and a tfds name or a folder
of images. `init_from` is a workdir, a file or folder of weights, a URL or a name:
`--config.init_from=B/16` downloads the best AugReg checkpoint that was trained on ImageNet-21k.
Without `init_from`, training starts from random parameters, and a warning says so.

`configs/sweep.py` tries the table's learning rates first. For the ImageNet results of its table 2
the paper averages the parameters, at 512 pixels (L/16) or 518 (H/14):
`--config.optim.polyak=0.9999 --config.data.image_size=512`.
"""

from vit_jax import config as config_lib
from vit_jax import models

# Paper table 4: SGD with momentum 0.9, batch 512, cosine decay, no weight decay, global-norm
# clipping at 1, resolution 384. A row for each data set; "…" is any other. Without a sweep
# the first learning rate is used.
_PETS = (0.01, 0.001, 0.003, 0.03)
_TABLE_4 = {
    #                     steps   learning rates            held  train               test
    #                                                       out   split               split
    "imagenet2012":      (20_000, (0.03, 0.003, 0.01, 0.06), 0.01, "train",           "validation"),
    "cifar10":           (10_000, _PETS,                     0.02, "train",            "test"),
    "cifar100":          (10_000, _PETS,                     0.02, "train",            "test"),
    "oxford_iiit_pet":   (   500, _PETS,                     0.1,  "train",            "test"),
    "oxford_flowers102": (   500, _PETS,                     0.1,  "train+validation", "test"),
    "…":                 (   500, _PETS,                     0.1,  None,               None),
}  # fmt: skip


def get_config(argument="B/16,tf_flowers"):
    """Returns the configuration for "VARIANT,DATASET"."""
    variant, _, dataset = argument.partition(",")
    steps, rates, held_out, train, test = _TABLE_4.get(dataset, _TABLE_4["…"])

    config = config_lib.default()
    config.model.variant = models.canonical(variant)
    config.data.name = dataset
    config.data.train, config.data.test = train, test
    config.data.image_size = 384
    config.data.crop, config.data.eval_crop = "resize", "whole"  # as the public code has it
    config.batch_size = 512
    config.total_steps = steps
    config.optim.name = "sgd"
    config.optim.lr = rates[0]
    config.init_expected = True
    config.sweep.lr, config.sweep.held_out = tuple(sorted(rates)), held_out
    config.log_every, config.eval_every, config.checkpoint.every = 10, 100, 100
    return config
