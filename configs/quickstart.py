"""Trains Nano/8, a ViT of 0.5 M parameters, from scratch on drawn flowers; downloads nothing.

    python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Time: about 2 minutes on two cores (780 images/s), 4 minutes on slower ones (390 images/s).
Result: 93.1 % test accuracy, the mean of three seeds (93.3, 92.8 and 93.3 %).
Source: our own recipe.
"""

from vit_jax import config as config_lib


def get_config():
    """Returns the configuration."""
    config = config_lib.default()
    config.model.variant = "Nano/8"
    config.data.name = "rendered_flowers"
    config.data.image_size = 48
    config.data.crop, config.data.crop_area = "torchvision", 0.35
    config.data.crop_fraction = 1.0
    config.batch_size = 32
    config.eval_batch_size = 192
    config.epochs = 25
    config.optim.name = "adam"
    config.optim.lr = 1.5e-3
    config.optim.beta2 = 0.98
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 0.1
    config.log_every = 50
    config.eval_every = 500
    return config
