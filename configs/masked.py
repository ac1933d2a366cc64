"""Pre-trains a ViT or a hybrid without labels, by masked patch prediction (paper B.1.2).

    python -m vit_jax.main --config=configs/masked.py:Nano/8,../shared/data/flower_photos \\
        --workdir=runs/masked

Time: 4 minutes on two cores (680 images/s).
Result of one run: the colours of 34 % of the corrupted patches are predicted correctly. Few-shot
accuracy with 25 examples of each class is then 45 %.

The argument is VARIANT,DATASET, as in `pretrain.py`. Images without classes can all be in one
subfolder of the data set. To fine-tune from the result, add `--config.init_from=runs/masked` to a
command of `finetune.py`.

For the data sets of the paper's table 3, this is the paper's recipe: Adam, base learning rate 2e-4,
10,000 warm-up steps, cosine decay, and a million steps of batch 4096, which are 14 epochs of
JFT-300M. Appendix B.1.2 names neither weight decay nor clipping: they are those of table 3. For
others it is our recipe of `pretrain.py`, for 40 epochs. The head then reads the mean of the
patches, because the loss of masked patches doesn't train the class token.
"""

import pathlib
import runpy

_PRETRAIN = runpy.run_path(str(pathlib.Path(__file__).with_name("pretrain.py")))


def get_config(argument="Nano/8,rendered_flowers"):
    """Returns the configuration for "VARIANT,DATASET"."""
    config = _PRETRAIN["get_config"](argument)
    config.objective = "masked_patches"
    if config.model.pre_logits:  # a recipe of table 3, whose head is not needed here
        config.model.pre_logits = config.model.dropout = config.model.head_bias = None
        config.optim.loss, config.optim.label_smoothing = "softmax", 0.0
        config.epochs, config.total_steps = None, 1_000_000
        config.optim.lr, config.optim.decay, config.optim.lr_end = 2e-4, "cosine", 0.0
    else:
        config.model.pool = "gap"
        config.epochs = 40.0
    return config
