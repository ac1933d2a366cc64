"""Trains a ViT, a BiT ResNet and a hybrid of equal FLOPs from scratch (paper figure 5).

    python -m vit_jax.main --config=configs/compare.py:../shared/data/flower_photos \\
        --workdir=runs/compare

Time: about 50 minutes on two cores of a shared server (261 to 469 images/s).
Result: compare.md, compare.csv and compare.png in the workdir. After 18 epochs, test accuracy is
74.9 % for the ResNet, 70.5 % for the hybrid and 66.3 % for the ViT, see docs/experiments.md.

The argument is a tfds name or a folder of images. An image of 64 x 64 pixels costs each model about
117 MFLOPs. All see the same batches and follow the recipe of `pretrain.py` for small data, for 2, 6
and 18 epochs, each from three seeds. `config.compare.runs` has what is compared: a name, and the
keys that make the run different from the others.
"""

from ml_collections import ConfigDict

from vit_jax import config as config_lib

RUNS = {
    "ViT": {
        "model": {"variant": "Nano/8", "depth": 4, "width": 128, "mlp_dim": 512, "num_heads": 4}
    },
    "ResNet": {"model": {"variant": "R50x1", "layers": (1, 1)}},
    "hybrid": {
        "model": {
            "variant": "R50+B/16",
            "stem": (1,),
            "patch_size": 2,
            "depth": 3,
            "width": 96,
            "mlp_dim": 384,
            "num_heads": 3,
        }
    },
}


def get_config(argument="rendered_flowers"):
    """Returns the configuration for DATASET."""
    config = config_lib.default()
    config.job = "compare"
    config.data.name = argument
    config.data.image_size, config.data.crop_fraction = 64, 1.0
    config.data.crop, config.data.crop_area = "torchvision", 0.25
    config.batch_size = config.eval_batch_size = 64
    config.optim.name = "adam"
    config.optim.lr, config.optim.warmup_steps = 1e-3, 50
    config.optim.weight_decay, config.optim.label_smoothing = 0.1, 0.1
    config.compare.runs = ConfigDict(RUNS)
    config.compare.epochs = (2, 6, 18)
    config.eval_every = 0
    return config
