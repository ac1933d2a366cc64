"""Fine-tunes a model on another data set, usually at a higher resolution.

    python -m vit_jax.main --config=configs/finetune.py:Nano/8,../shared/data/flower_photos \\
        --workdir=runs/transfer --config.init_from=runs/quickstart \\
        --config.data.image_size=96 --config.batch_size=32 --config.optim.lr=0.03

Expect 65.1 % test accuracy after 4.3 minutes on two cores of a shared server (76 images/s), where
the quickstart's model left 48 px and drawn flowers for photos.

The argument is VARIANT,DATASET, as in `pretrain.py`. `init_from` is a run, a file or folder of
weights, an address or a name: `--config.init_from=B/16` downloads AugReg's best of ImageNet-21k.
Without it, training starts from random parameters, which is of use only to try things out.
"""

from vit_jax import config as config_lib
from vit_jax import models

# One row a data set; "…": any other.
#                        steps    lr  train split         test split  (lr: one of paper table 4's)
_RECIPES = {
    "imagenet2012":      (20_000, 0.03, "train",            "validation"),
    "cifar10":           (10_000, 0.01, "train",            "test"),
    "cifar100":          (10_000, 0.01, "train",            "test"),
    "oxford_iiit_pet":   (   500, 0.01, "train",            "test"),
    "oxford_flowers102": (   500, 0.01, "train+validation", "test"),
    "…":                 (   500, 0.01, None,               None),
}  # fmt: skip


def get_config(argument="B/16,tf_flowers"):
    """Returns the configuration for "VARIANT,DATASET"."""
    variant, _, dataset = argument.partition(",")
    steps, lr, train, test = _RECIPES.get(dataset, _RECIPES["…"])

    config = config_lib.default()
    config.model.variant = models.canonical(variant)
    config.data.name = dataset
    config.data.train, config.data.test = train, test
    config.data.image_size = 384
    config.data.crop = "resize"
    config.batch_size = 512
    config.total_steps = steps
    config.optim.name = "sgd"
    config.optim.lr = lr
    config.log_every, config.eval_every, config.checkpoint.every = 10, 100, 100
    return config
