"""Recipes for thousands of images. `vit_jax.fit` takes them, `configs/pretrain.py` the first."""

from __future__ import annotations

from ml_collections import ConfigDict


def train_from_scratch(config: ConfigDict) -> None:
    """Sets our recipe for random first parameters. Reads `model.variant`."""
    config.data.crop, config.data.crop_area = "torchvision", 0.25
    config.batch_size = config.eval_batch_size = 64
    config.epochs = 25.0
    config.optim.name = "adam"
    config.optim.lr, config.optim.warmup_steps = 1e-3, 100
    config.optim.weight_decay, config.optim.label_smoothing = 0.1, 0.1
    if config.model.variant == "Nano/8":  # small images: keeps their border in evaluation
        config.data.image_size, config.data.crop_fraction = 64, 1.0
    elif config.model.variant == "Conv+Nano/16":
        _conv_nano(config)


def _conv_nano(config: ConfigDict) -> None:
    """Sets the recipe of Conv+Nano/16; docs/your_data.md says what each part of it gives."""
    config.data.image_size, config.data.eval_image_size = 64, 80
    config.data.crop_fraction = 0.875
    config.data.mixup, config.data.cutmix = 0.2, 1.0
    config.model.pool, config.model.positions = "gap", "sincos"
    config.epochs = 66.0
    config.optim.name, config.optim.lr = "muon", 4e-3
    config.optim.momentum, config.optim.beta2 = 0.95, 0.98


def fine_tune(config: ConfigDict) -> None:
    """Sets the paper's recipe for pretrained weights (table 4) with an eighth of its batch."""
    config.data.eval_crop = "whole"  # as the public code has it, and the crop and the warm-up
    config.batch_size = config.eval_batch_size = 64
    config.total_steps = 500
    config.optim.lr, config.optim.warmup_steps = 0.01, 100
