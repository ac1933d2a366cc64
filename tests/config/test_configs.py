"""The paper's tables 3 and 4, row by row, as numbers and as runs."""

import re
import runpy

import pytest
from conftest import REPOSITORY
from ml_collections import ConfigDict

from vit_jax.config.keys import model_attributes, run_config
from vit_jax.data import sources
from vit_jax.jobs import validation
from vit_jax.jobs.train import train
from vit_jax.models.flops import forward_flops

NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


def load(name):
    return runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"]


# Paper table 3: epochs, base learning rate, decay, weight decay, dropout; ImageNet's clipping.
TABLE_3 = {
    **{(v, "jft_300m"): (7, 8e-4, "linear", 0.1, 0.0) for v in ("B/16", "B/32")},
    ("L/32", "jft_300m"): (7, 6e-4, "linear", 0.1, 0.0),
    ("L/16", "jft_300m"): (7, 4e-4, "linear", 0.1, 0.0),
    ("H/14", "jft_300m"): (14, 3e-4, "linear", 0.1, 0.0),
    **{(v, "jft_300m"): (7, 1e-3, "linear", 0.1, None) for v in ("R50x1", "R50x2")},
    ("R101x1", "jft_300m"): (7, 8e-4, "linear", 0.1, None),
    **{(v, "jft_300m"): (7, 6e-4, "linear", 0.1, None) for v in ("R152x1", "R152x2")},
    **{(v, "jft_300m"): (7, 8e-4, "linear", 0.1, 0.0) for v in ("R50+B/16", "R50+B/32")},
    ("R50+L/32", "jft_300m"): (7, 2e-4, "linear", 0.1, 0.0),
    ("R50+L/16", "jft_300m"): (7, 4e-4, "linear", 0.1, 0.0),
    **{
        (v, "imagenet21k"): (90, 1e-3, "linear", 0.03, 0.1)
        for v in ("B/16", "B/32", "L/16", "L/32")
    },
    **{(v, "imagenet2012"): (300, 3e-3, "cosine", 0.3, 0.1) for v in ("B/16", "L/16")},
}

# Paper table 4: steps, learning rates; B.1.1: the share held out to choose among them. The last
# number is the warm-up in the public code: 500, or 100 for tasks of 500 steps.
TABLE_4 = {
    "imagenet2012": (20_000, (0.003, 0.01, 0.03, 0.06), 0.01, 500),
    "cifar100": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02, 500),
    "cifar10": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02, 500),
    "oxford_iiit_pet": (500, (0.001, 0.003, 0.01, 0.03), 0.1, 100),
    "oxford_flowers102": (500, (0.001, 0.003, 0.01, 0.03), 0.1, 100),
}


@pytest.mark.parametrize(("variant", "dataset"), TABLE_3)
def test_rows_of_table_3(variant, dataset):
    config = load("pretrain")(f"{variant},{dataset}")
    epochs, rate, decay, weight_decay, dropout = TABLE_3[variant, dataset]
    assert (config.epochs, config.optim.lr, config.optim.decay) == (epochs, rate, decay)
    assert (config.optim.weight_decay, config.model.dropout) == (weight_decay, dropout)
    assert config.model.variant == variant
    assert (config.batch_size, config.optim.warmup_steps, config.data.image_size) == (
        4096,
        10_000,
        224,
    )
    assert (config.optim.name, config.optim.beta1, config.optim.beta2) == ("adam", 0.9, 0.999)
    assert config.optim.clip_norm == (1.0 if dataset == "imagenet2012" else 0.0)
    assert config.model.pre_logits == (None if "x" in variant else True)
    assert config.optim.lr_end == (1e-5 if decay == "linear" else 0.0)  # public code, issue 2
    assert config.data.crop == "inception"
    # Answers of the authors in the public repository: issues 2, 34, 89 and 153.
    assert (config.optim.loss, config.model.head_bias) == ("sigmoid", -10.0)
    assert config.optim.label_smoothing == (1e-4 if dataset == "imagenet2012" else 0.0)
    if dataset == "imagenet2012":  # labels of its test split are not public
        assert config.data.test == "validation"
    validation.validate(config, device_count=8)


@pytest.mark.parametrize("dataset", TABLE_4)
def test_rows_of_table_4(dataset):
    steps, rates, held_out, warmup = TABLE_4[dataset]
    for name in ("finetune", "sweep"):
        config = load(name)(f"L/16,{dataset}")
        assert (config.total_steps, config.optim.warmup_steps) == (steps, warmup)
        assert (config.data.crop, config.data.crop_area) == ("inception", 0.05)
        assert (config.sweep.lr, config.sweep.held_out) == (rates, held_out)
        assert config.optim.lr in rates
        assert (config.optim.name, config.optim.momentum, config.optim.decay) == (
            "sgd",
            0.9,
            "cosine",
        )
        assert (config.optim.weight_decay, config.optim.clip_norm) == (0.0, 1.0)
        assert (config.batch_size, config.data.image_size) == (512, 384)
        assert config.job == {"finetune": "train", "sweep": "sweep"}[name]
        validation.validate(config, device_count=8)


@pytest.mark.parametrize(
    ("variant", "dropout"),
    [("L/16", 0.1), ("H/14", 0.1), ("R50+B/16", 0.1), ("B/16", None), ("L/32", None)],
)
def test_dropout_in_fine_tuning_is_that_of_the_public_code(variant, dropout):
    assert load("finetune")(f"{variant},cifar10").model.dropout == dropout


def reduced(config, folder):
    """A configuration at a size that trains in no time; all else stays."""
    config = config.copy_and_resolve_references()
    if "x" in config.model.variant:
        config.model.layers = (1,)
    else:
        hybrid = config.model.variant.startswith("R")
        config.model.update(width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=4)
        if hybrid:
            config.model.stem = (1,)
        if config.model.variant.startswith("Conv"):
            config.model.conv_stem = (4,)
    config.data.update(name=str(folder), train=None, test=None, image_size=16)
    config.update(job="train", batch_size=16, eval_batch_size=16, total_steps=2, epochs=None)
    return config


ROWS = [("pretrain", f"{variant},{dataset}") for variant, dataset in TABLE_3]
ROWS += [("pretrain", "S/16,imagenet2012-90ep")]
ROWS += [("pretrain", "B/16,imagenet2012-deit3"), ("pretrain", "Conv+Nano/16,x")]
ROWS += [("masked", argument) for argument in ("B/16,jft_300m", "R50+B/16,x", "Nano/8,x")]
ROWS += [("finetune", f"B/16,{dataset}") for dataset in TABLE_4]
ROWS += [("vtab", "B/16,cifar100"), ("vtab", "B/16,kitti_dist")]


def kinds(rows):
    """The first of each kind of rows: others are the same at a reduced size, but for numbers."""
    found = {}
    for name, argument in rows:
        config = reduced(load(name)(argument), "x")
        config.optim.update(lr=1.0, weight_decay=0.0, warmup_steps=0)
        variant = config.model.variant
        config.model.variant = "hybrid" if "+" in variant else "ResNet" if "x" in variant else "ViT"
        found.setdefault(config.to_json(sort_keys=True), (name, argument))
    return found.values()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument"), kinds(ROWS))
def test_each_kind_of_row_takes_two_steps_when_reduced(name, argument, image_folder, tmp_path):
    config = load(name)(argument)
    summary = train(reduced(config, image_folder), tmp_path)
    assert summary["step"] == 2
    # With a sigmoid the biases of -10 leave 10 nats for the one label of an image.
    assert 0 < summary["test_loss"] < (10.1 if config.optim.loss == "sigmoid" else 7)


def test_a_row_that_table_3_lacks_is_refused():
    with pytest.raises(ValueError, match=r"table 3 has no S/16 trained on jft_300m, only B/16"):
        load("pretrain")("S/16,jft_300m")


def test_jft_is_for_the_record():
    config = load("pretrain")("B/16,jft_300m")
    with pytest.raises(ValueError, match="JFT-300M is not public"):
        sources.open_dataset(config.data.name)


def test_the_recipe_of_imagenet_from_scratch_in_90_epochs():
    """arXiv 2205.01580: batch 1,024, RandAugment (2, 10), Mixup 0.2, GAP, sin-cos, no dropout."""
    config = load("pretrain")("S/16,imagenet2012-90ep")
    validation.validate(config, device_count=8)
    assert (config.epochs, config.batch_size, config.data.name) == (90, 1024, "imagenet2012")
    assert (config.data.randaugment, config.data.randaugment_magnitude) == (2, 10)
    assert (config.data.mixup, config.data.crop, config.data.flip) == (0.2, "inception", True)
    assert (config.model.pool, config.model.positions) == ("gap", "sincos")
    assert config.model.dropout is None and config.model.stochastic_depth is None
    # Decay there is 1e-4 a step at the peak, here it is times the rate.
    assert config.optim.lr * config.optim.weight_decay == pytest.approx(1e-4)
    assert (config.optim.lr, config.optim.clip_norm) == (1e-3, 1.0)
    assert (config.optim.warmup_steps, config.optim.decay) == (10_000, "cosine")


# Side in pixels and stochastic depth: the commands of the authors' code, README_revenge.md.
DEIT_3 = {"S/16": (224, 0.05), "B/16": (192, 0.2), "L/16": (192, 0.45), "H/14": (160, 0.6)}


@pytest.mark.parametrize("variant", DEIT_3)
def test_the_recipe_of_deit_3(variant):
    """arXiv 2204.07118: 3-Augment, jitter 0.3, Mixup 0.8, CutMix 1, BCE, 2048 x 800 epochs."""
    config = load("pretrain")(f"{variant},imagenet2012-deit3")
    validation.validate(config, device_count=8)
    assert (config.data.image_size, config.model.stochastic_depth) == DEIT_3[variant]
    assert (config.data.name, config.epochs, config.batch_size) == ("imagenet2012", 800, 2048)
    assert (config.data.three_augment, config.data.colour_jitter) == (True, 0.3)
    assert (config.data.mixup, config.data.cutmix, config.data.cutmix_probability) == (0.8, 1, 0.5)
    assert (config.data.erase, config.data.randaugment, config.optim.label_smoothing) == (0, 0, 0)
    assert (config.data.crop, config.data.crop_area) == ("torchvision", 0.08)
    assert (config.data.crop_fraction, config.optim.decay) == (1.0, "cosine")
    assert (config.optim.loss, config.optim.weight_decay) == ("sigmoid", 0.05)
    assert config.optim.warmup_steps * 2048 / 1_281_167 == pytest.approx(5, abs=0.01)
    assert config.optim.lr == 0.002  # of DeiT's AdamW, arXiv 2012.12877: 5e-4 at a batch of 512


# Operations and strength of RandAugment, alpha of mixup: big_vision's vit_i1k.py.
AUGREG = {
    "Ti/16": (2, 0, 0.0),
    "S/32": (2, 10, 0.2),
    **dict.fromkeys(("S/16", "B/32", "B/16", "L/16"), (2, 15, 0.5)),
}


@pytest.mark.parametrize("variant", AUGREG)
def test_the_recipe_of_augreg(variant):
    """arXiv 2106.10270: batch 4096, 300 epochs, 10,000 steps of warm-up, rate 1e-3."""
    config = load("pretrain")(f"{variant},imagenet2012-augreg")
    validation.validate(config, device_count=8)
    data, optim = config.data, config.optim
    assert (data.randaugment, data.randaugment_magnitude, data.mixup) == AUGREG[variant]
    assert (data.name, data.crop, data.image_size) == ("imagenet2012", "inception", 224)
    assert (config.epochs, config.batch_size, optim.loss) == (300, 4096, "softmax")
    assert (optim.lr, optim.warmup_steps, optim.clip_norm) == (1e-3, 10_000, 1.0)
    assert optim.lr * optim.weight_decay == pytest.approx(1e-4)
    assert (config.model.pre_logits, config.model.dropout) == (True, None)


@pytest.mark.parametrize("recipe", ["imagenet2012-deit3", "imagenet2012-augreg"])
def test_a_variant_that_a_recipe_lacks_is_refused(recipe):
    with pytest.raises(ValueError, match=rf"The recipe {recipe} is for .*, not for B/8\."):
        load("pretrain")(f"B/8,{recipe}")


def test_masked_patch_prediction_as_in_the_paper():
    config = load("masked")("B/16,jft_300m")
    validation.validate(config, device_count=8)
    assert (config.optim.name, config.optim.lr, config.optim.decay) == ("adam", 2e-4, "cosine")
    assert (config.optim.warmup_steps, config.batch_size) == (10_000, 4096)
    assert config.total_steps == 1_000_000
    assert (config.masked.fraction, config.masked.target) == (0.5, "mean_colour")


def test_the_compared_models_have_equal_flops():
    config = load("compare")("x")
    assert {"ViT", "ResNet", "hybrid"} == set(config.compare.runs)
    flops = []
    for name in config.compare.runs:
        single = run_config(config, name)
        flops.append(
            forward_flops(
                single.model.variant,
                single.data.image_size,
                num_classes=5,
                **model_attributes(single),
            )
        )
    assert max(flops) / min(flops) < 1.05


def test_all_tasks_of_vtab_are_compared_as_each_by_itself():
    everything = load("vtab")("B/16,all")
    validation.validate(everything, device_count=8)
    assert len(everything.compare.runs) == 19
    for task in everything.compare.runs:
        single = load("vtab")(f"B/16,{task}")
        single.compare.seeds = everything.compare.seeds
        found = run_config(everything, task)
        found.compare = single.compare
        assert found.to_json(sort_keys=True) == single.to_json(sort_keys=True)


def test_the_study_starts_from_what_it_pretrained():
    study = runpy.run_path(str(REPOSITORY / "benchmarks" / "study.py"))
    config = study["few_labels"]("x", {study["SCRATCH"]: "a", study["MASKED"]: "b"})
    validation.validate(config, device_count=8)
    starts = {name: run_config(config, name).init_from for name in config.compare.runs}
    assert starts == {"from scratch": None, "masked patches": "b"}


@pytest.mark.parametrize("name", NAMES)
def test_headers_show_the_command_that_runs_the_file(name):
    text = (REPOSITORY / "configs" / f"{name}.py").read_text()
    command = re.search(r"python -m vit_jax\.main --config=configs/(\w+)\.py", text)
    assert command and command[1] == name
    assert isinstance(load(name)(), ConfigDict)
