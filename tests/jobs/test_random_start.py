"""Fine-tuning that starts from random parameters is warned of; training from scratch is not."""

import runpy

import pytest
from conftest import REPOSITORY, TINY
from etils import epath

from vit_jax.config.defaults import default
from vit_jax.jobs.resume import find_start
from vit_jax.jobs.train import train


def configuration(file, argument):
    return runpy.run_path(str(REPOSITORY / "configs" / file))["get_config"](argument)


@pytest.mark.parametrize(
    ("file", "argument", "suggested"),
    [
        ("finetune.py", "B/16,x", "weights of B/16, add for example --config.init_from=B/16."),
        ("sweep.py", "H/14,x", "for example --config.init_from=imagenet21k/ViT-H_14."),
        ("vtab.py", "L/16,all", "for example --config.init_from=L/16."),
        ("finetune.py", "Nano/8,x", "for example --config.init_from=WORKDIR."),  # not published
    ],
)
def test_fine_tuning_without_weights_is_warned_of(file, argument, suggested, tmp_path, caplog):
    find_start(configuration(file, argument), epath.Path(tmp_path))
    (message,) = caplog.messages
    assert message.startswith("Fine-tuning starts from random parameters, because init_from is N")
    assert suggested in message and "hf://" in message


@pytest.mark.parametrize("file", ["pretrain.py", "masked.py"])
def test_training_from_scratch_is_not(file, tmp_path, caplog):
    find_start(configuration(file, "Nano/8,x"), epath.Path(tmp_path))
    assert not caplog.messages


@pytest.mark.slow
def test_a_run_that_has_weights_or_goes_on_is_not(settings, tmp_path, caplog):
    settings.update(total_steps=1, checkpoint={"every": 0})
    train(settings, tmp_path / "run")
    tuned = default()
    tuned.update(init_from=str(tmp_path / "run"), init_expected=True)
    tuned.model.update(TINY)
    find_start(tuned, epath.Path(tmp_path / "new"))
    settings.init_expected = True
    find_start(settings, epath.Path(tmp_path / "run"))
    assert "random parameters" not in caplog.text
