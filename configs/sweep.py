"""Fine-tunes with the learning rate that is best on a held-out part of the training split.

    python -m vit_jax.main --config=configs/sweep.py:B/16,oxford_flowers102 \\
        --workdir=runs/flowers102 --config.init_from=imagenet21k/ViT-B_16

Time and result: not measured here. Five runs of `finetune.py`, and a table of them.
Source: paper B.1.1 and table 4.

The learning rates of table 4 are tried on all but 10 % (Pets, Flowers-102, others), 2 % (CIFAR) or
1 % (ImageNet) of the training split. The best one trains on all of the split, and that model is
tested once. The argument and all keys are those of `finetune.py`;
`--config.sweep.lr='(0.003, 0.01)'` tries other learning rates.
"""

import pathlib
import runpy

_FINETUNE = runpy.run_path(str(pathlib.Path(__file__).with_name("finetune.py")))


def get_config(argument="B/16,tf_flowers"):
    """Returns the configuration for "VARIANT,DATASET"."""
    config = _FINETUNE["get_config"](argument)
    config.job = "sweep"
    return config
