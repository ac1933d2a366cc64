"""Fine-tunes a model on a task of VTAB-1k with the paper's one setting (B.1.1, table 4).

    python -m vit_jax.main --config=configs/vtab.py:B/16,clevr_count --workdir=runs/clevr_count \\
        --config.init_from=B/16

Time and result: not measured here. In the paper, L/16 of ImageNet-21k has a VTAB score of 72.7 %.

The argument is VARIANT,TASK: a variant of `vit_jax.models.VARIANTS`, and a task of
`vit_jax/data/builders/vtab.py`. VARIANT,all runs all 19 tasks and makes a table; the VTAB score is
the mean of its accuracies. The data sets are tfds's. Those of cifar100, flowers102 and pets are
downloaded and prepared by the run. The others need TensorFlow once, to be prepared, see
docs/your_data.md: `python -m vit_jax.data prepare clevr`.

The model is trained on 1,000 examples and tested on the test split. To choose other settings, use
the 200 of these examples that are meant for validation, with the task's split `val200`:

    --config.data.train='train[:800]' --config.data.test='train[63000:63200]'
"""

from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import models
from vit_jax.data.builders import vtab

# Pre-processing is BiT's (arXiv 1912.11370, supplement F): resize to 448, crop 384 at random, flip.
# These tasks do without one or the other, because it would change their labels.
_NO_FLIP = ("dspr_loc", "dspr_ori", "snorb_azim")
_NO_CROP = ("clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dspr_loc")


def get_config(argument="B/16,cifar100"):
    """Returns the configuration for "VARIANT,TASK"."""
    variant, _, name = argument.partition(",")

    config = config_lib.default()
    config.model.variant = models.canonical(variant)
    config.data.image_size = 384
    config.data.crop, config.data.eval_crop = "resize", "whole"
    if name == "all":
        config.job, config.compare.seeds = "compare", 1
        config.compare.runs = ConfigDict({task: {"data": _data(task)} for task in vtab.TASKS})
    else:
        config.data.update(_data(name))
    config.batch_size = 512
    config.total_steps = 2_500
    config.optim.name = "sgd"
    config.optim.lr = 0.01
    config.init_expected = True
    config.eval_every = 0  # the test split only at the end
    return config


def _data(name):
    task = vtab.task(name)
    return {
        "name": f"vtab/{name}",
        "train": task.train800val200,
        "test": task.test,
        "crop_fraction": 1.0 if name in _NO_CROP else 384 / 448,
        "flip": name not in _NO_FLIP,
    }
