"""When a run goes on in a workdir of an earlier configuration."""

import json
import logging

import pytest
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys
from vit_jax.data.transforms import View
from vit_jax.jobs.resume import changes, check_same_run


@pytest.fixture
def config():
    config = default()
    config.total_steps = 10
    return config


# The keys that training depends on.
COUNTED = {
    "": ("objective", "seed", "dtype", "batch_size"),
    "model": (
        "variant",
        "dropout",
        "stochastic_depth",
        "head_bias",
        "pool",
        "pre_logits",
        "positions",
        "positions_at",
        "patch_size",
        "width",
        "depth",
        "mlp_dim",
        "num_heads",
        "stem",
        "conv_stem",
        "axial",
        "class_tokens",
        "registers",
        "projection",
        "patch_norm",
        "pre_norm",
        "final_norm",
        "norm",
        "mlp",
        "gelu",
        "norm_epsilon",
        "kernel_epsilon",
        "crop_to_patches",
        "residual_dtype",
        "lora_rank",
        "lora_alpha",
        "layers",
        "width_factor",
    ),
    "data": (
        "name",
        "train",
        "image_size",
        "crop",
        "crop_area",
        "crop_fraction",
        "decode",
        "background",
        "flip",
        "randaugment",
        "randaugment_magnitude",
        "mixup",
        "cutmix",
        "cutmix_probability",
        "three_augment",
        "colour_jitter",
        "erase",
        "class_weights",
        "sampling",
    ),
    "optim": (
        "name",
        "lr",
        "lr_end",
        "warmup_steps",
        "decay",
        "momentum",
        "beta1",
        "beta2",
        "weight_decay",
        "clip_norm",
        "loss",
        "label_smoothing",
        "momentum_dtype",
        "polyak",
        "freeze",
        "layer_decay",
        "head_lr",
    ),
    "masked": ("target", "fraction"),
}


DEFAULT = default()
KEYS = [key for key in all_keys(DEFAULT) if not isinstance(DEFAULT[key], ConfigDict)]


def saved(config):
    """A configuration as a checkpoint has it."""
    return ConfigDict(json.loads(config.to_json()))


OTHER_VIEW = {
    "data.eval_crop": "whole",
    "data.crop_fraction": 0.5,
    "data.eval_resize": "box_antialias",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_is_listed_if_training_depends_on_it(config, key):
    where, _, name = key.rpartition(".")
    section = config[where] if where else config
    old = section[name]
    with section.ignore_type():
        section[name] = {bool: not old, str: "other", tuple: (7,)}.get(type(old), 7)
        if key in OTHER_VIEW:
            old, section[name] = getattr(View(), name), OTHER_VIEW[key]
    found = changes(config, saved(default()))
    old, new = ((224, 224), (7, 7)) if name == "image_size" else (old, section[name])
    assert found == ([f"{key} was {old!r}, is {new!r}"] if name in COUNTED.get(where, ()) else [])


def test_values_that_mean_the_same_are_no_change(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    config.data.update(name="images", image_size=32)
    config.model.update(variant="R50x1", layers=(1, 2))
    config.optim.clip_norm = 1.0
    before = saved(config)
    before.optim.clip_norm, before.extinct, before.optim.extinct = 1, True, 3
    del before.data.randaugment, before.masked
    config.data.update(name=str(tmp_path / "images"), image_size=(32, 32))
    assert changes(config, before) == []
    config.data.name = "elsewhere"
    config.data.randaugment = 1
    assert changes(config, before) == [
        f"data.name was {str(tmp_path / 'images')!r}, is 'elsewhere'",
        "data.randaugment was 0, is 1",
    ]


def test_a_workdir_of_another_configuration_is_refused(config, caplog):
    before = saved(config)
    check_same_run(config, before, "WORKDIR/checkpoints/4")
    config.optim.lr, config.seed = 0.03, 1
    with pytest.raises(ValueError) as error:
        check_same_run(config, before, "WORKDIR/checkpoints/4")
    assert str(error.value).splitlines() == [
        "WORKDIR/checkpoints/4 was trained with another configuration:",
        "- optim.lr was 0.01, is 0.03",
        "- seed was 0, is 1",
        "Take the run's own values, or another --workdir, or go on with these: "
        "--config.checkpoint.other_config=true.",
    ]
    config.checkpoint.other_config = True
    with caplog.at_level(logging.INFO, logger="vit_jax"):
        check_same_run(config, before, "WORKDIR/checkpoints/4")
    assert "optim.lr was 0.01, is 0.03" in caplog.text


def test_another_rank_of_lora_is_refused_whatever_other_config_says(config):
    config.model.lora_rank = 0
    before = saved(config)
    config.model.lora_rank = None  # means the same
    check_same_run(config, before, "WORKDIR/checkpoints/4")
    config.model.lora_rank = 4
    for config.checkpoint.other_config in (False, True):
        with pytest.raises(ValueError, match="can't be changed in the middle of a run") as error:
            check_same_run(config, before, "WORKDIR/checkpoints/4")
        assert "other_config=true" not in str(error.value)
