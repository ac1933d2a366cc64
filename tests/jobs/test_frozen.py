"""Runs that train a part of a model: what they start from, leave as it is, and go on with."""

import logging

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.jobs.notices import log_notices
from vit_jax.jobs.resume import Start
from vit_jax.jobs.train import train


@pytest.fixture
def settings(settings):
    settings.optim.update(decay="constant", name="adam", lr=0.01, weight_decay=0.1)
    settings.model.dropout = 0.0
    return settings


def leaves(source):
    return jax.tree.leaves_with_path(vit_jax.load(source).params)


def test_a_linear_probe_keeps_the_pretrained_encoder_and_goes_on(settings, tmp_path, caplog):
    settings.total_steps = 2
    train(settings, tmp_path / "pretrained")
    settings.init_from = str(tmp_path / "pretrained")
    settings.init_head = "new"
    settings.checkpoint.every = 0
    settings.optim.freeze = "encoder"
    with caplog.at_level(logging.WARNING):
        for settings.total_steps in (2, 4):
            train(settings, tmp_path / "probe")
    assert "keeps random parameters" not in caplog.text
    before, after = (leaves(tmp_path / x) for x in ("pretrained", "probe"))
    for (path, old), (_, new) in zip(before, after, strict=True):
        assert np.array_equal(old, new) != (path[0].key == "head"), path

    settings.update(total_steps=6)
    settings.optim.freeze = 0
    with pytest.raises(ValueError, match=r"optim\.freeze was 'encoder', is 0"):
        train(settings, tmp_path / "probe")
    settings.checkpoint.other_config = True
    with pytest.raises(ValueError, match=r"another optimizer: optim\.name and optim\.freeze can't"):
        train(settings, tmp_path / "probe")
    settings.optim.update(freeze="encoder", name="sgd")
    with pytest.raises(ValueError, match=r"probe.*/4 has the state of another optimizer"):
        train(settings, tmp_path / "probe")


def test_freezing_random_parameters_is_warned_of(settings, caplog):
    settings.optim.freeze = 1
    log_notices(settings, Start(settings, None), images=80)
    assert "optim.freeze=1 keeps random parameters as they are, because init_from" in caplog.text
    caplog.clear()
    settings.optim.freeze, settings.model.lora_rank = "none", 2
    log_notices(settings, Start(settings, None), images=80)
    assert "model.lora_rank=2 keeps random parameters as they are" in caplog.text
    caplog.clear()
    settings.model.lora_rank = 0
    log_notices(settings, Start(settings, None), images=80)
    assert not caplog.text
