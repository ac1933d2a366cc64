"""Keys that are said not to be read: the results don't change with them."""

import re

import pytest
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.train import train
from vit_jax.jobs.unread_keys import log_unread_keys

# Other values than the tests' settings have, for keys of which a job may read some.
OTHERS = {
    "seed": 7,
    "model.variant": "S/16",
    "model.width": 192,
    "model.depth": 3,
    "model.implementation": "custom_vjp",
    "data.train": "train[:50%]",
    "data.crop": "resize",
    "data.crop_area": 0.9,
    "data.flip": False,
    "data.mixup": 0.5,
    "data.cutmix": 1.0,
    "data.three_augment": True,
    "data.colour_jitter": 0.3,
    "data.erase": 0.5,
    "data.class_weights": "balanced",
    "data.sampling": "balanced",
    "data.cutmix_probability": 0.25,
    "data.randaugment": 2,
    "data.randaugment_magnitude": 3.0,
    "batch_size": 24,
    "total_steps": 99,
    "epochs": 7.0,
    "optim.name": "adam",
    "optim.lr": 9.0,
    "optim.polyak": 0.5,
    "masked.fraction": 0.25,
    "sweep.lr": (0.5,),
    "compare.seeds": 9,
    "checkpoint.every": 1,
    "log_every": 1,
    "eval_every": 1,
    "loggers": (),
    "on_nonfinite": "skip",
    "init_resize": "cubic",
    "init_head": "new",
}


def unread(config, keys, caplog):
    """The keys that are named in warnings."""
    caplog.clear()
    log_unread_keys(config, keys)
    listed = [re.fullmatch(r"Not read: (.*), because .*\.", text)[1] for text in caplog.messages]
    return {key for keys in listed for key in keys.split(", ")}


@pytest.mark.parametrize(("job", "run"), [("evaluate", evaluate), ("fewshot", few_shot)])
def test_what_is_not_read_changes_nothing(settings, tmp_path, caplog, job, run):
    settings.fewshot.update(shots=(1,), seeds=1)
    train(settings, tmp_path / "run")
    settings.update(job=job, init_from=str(tmp_path / "run"))
    expected = run(settings, tmp_path / "out")
    found = unread(settings, OTHERS, caplog)
    read = {"model.width", "model.depth"}  # of weights of other code
    read |= {"data.train"} if job == "fewshot" else set()
    assert found == set(OTHERS) - read
    settings.update_from_flattened_dict({key: OTHERS[key] for key in found})
    again = run(settings, tmp_path / "out")
    for result in (expected, again):
        result.pop("images_per_second", None)
    assert again == expected


def test_a_run_with_defaults_reads_all_keys_of_training(caplog):
    config = default()
    config.objective, config.init_from = "classification", "x"
    config.update(total_steps=3, on_nonfinite="skip", init_head="keep")
    config.fewshot.every, config.data.randaugment = 5, 2
    config.data.mixup, config.data.cutmix = 0.2, 1.0
    found = unread(config, all_keys(config), caplog)
    sections = {key for key in found if key.split(".")[0] in ("sweep", "compare", "masked")}
    others = {"epochs", "optim.beta1", "optim.beta2", "calibrate", "model.lora_alpha"}
    assert found - sections == others
    assert {"sweep", "sweep.lr", "compare.runs", "masked.target"} <= sections


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"job": "sweep"}, "optim.lr", "job='sweep' tries the rates of sweep.lr"),
        ({"total_steps": 5, "epochs": 2.0}, "epochs", "total_steps is set, too"),
        ({}, "fewshot.seeds", "fewshot.every is 0"),
        ({}, "calibrate", "job is not 'evaluate'"),
        ({"job": "evaluate"}, "early_stopping.patience", "the job trains nothing"),
        ({"optim.name": "adam"}, "optim.momentum", "optim.name is 'adam'"),
        ({"optim.name": "sgd"}, "optim.beta1", "optim.name is 'sgd'"),
        ({"data.crop": "resize"}, "data.crop_area", "data.crop is 'resize'"),
        ({"data.eval_crop": "whole"}, "data.crop_fraction", "neither data.crop is 'resize' nor"),
        ({"objective": "masked_patches"}, "data.mixup", "objective is not 'classification'"),
        ({"objective": "masked_patches"}, "optim.head_lr", "objective is not 'classification'"),
        ({"optim.freeze": "encoder"}, "optim.layer_decay", "only the head is trained"),
        ({"model.lora_alpha": 8.0}, "model.lora_alpha", "because model.lora_rank is not set"),
        ({"objective": "masked_patches"}, "data.cutmix", "objective is not 'classification'"),
        ({"objective": "masked_patches"}, "data.class_weights", "objective is not"),
        ({"data.cutmix": 1.0}, "data.cutmix_probability", "data.mixup or data.cutmix is 0"),
        ({"job": "evaluate"}, "init_average", "tests the average, if there is one"),
        ({}, "data.class_map", "only job='evaluate' and init_head='keep' pair classes"),
        ({}, "init_head", "init_from is None"),
        ({"job": "fewshot", "fewshot.name": "x"}, "data.name", "fewshot.name names the data"),
    ],
)
def test_the_reason_is_said_in_one_line(changes, key, reason, caplog):
    config = default()
    config.update_from_flattened_dict(changes)
    log_unread_keys(config, [key, "batch_size" if config.job in ("train", "sweep") else "job"])
    (message,) = caplog.messages
    assert message.startswith(f"Not read: {key}, because ") and reason in message


@pytest.mark.parametrize(
    ("shared", "runs", "key", "is_read"),
    [
        ("sgd", {"a": {"optim": {"name": "sgd"}}, "b": {"optim": {"name": "adam"}}}, "beta1", True),
        ("sgd", {"a": {"optim": {"name": "sgd"}}, "b": {}}, "beta1", False),
        ("sgd", {"a": {"optim": {"name": "adam"}}}, "momentum", False),
        ("adam", {"a": {"optim": {"name": "sgd"}}, "b": {}}, "momentum", True),
        ("muon", {"a": {}}, "momentum", True),
        ("muon", {"a": {}}, "beta1", True),
    ],
)
def test_a_key_that_one_run_to_compare_reads_is_read(shared, runs, key, is_read, caplog):
    config = default()
    config.job, config.optim.name = "compare", shared
    config.compare.runs = ConfigDict(runs)
    keys = [f"optim.{key}", "compare.seeds", "sweep.lr"]
    expected = {"sweep.lr"} if is_read else {"sweep.lr", keys[0]}
    assert unread(config, keys, caplog) == expected


def test_what_each_run_to_compare_sets_itself_is_not_read(caplog):
    config = default()
    config.job = "compare"
    config.compare.runs = ConfigDict(
        {"a": {"model": {"variant": "B/16", "depth": 3}}, "b": {"model": {"variant": "R50x1"}}}
    )
    assert unread(config, ["model.variant", "model.depth", "seed"], caplog) == {"model.variant"}
    assert "each of compare.runs sets it" in caplog.text
