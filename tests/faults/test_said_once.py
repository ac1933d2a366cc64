"""What a run says in one line before its first step, where its settings are easily misread."""

import csv
import logging

import jax
import numpy as np
import pytest
from conftest import TINY, write_jpegs

from vit_jax.config.defaults import default
from vit_jax.jobs.notices import images_mixed, log_notices
from vit_jax.jobs.resume import Start
from vit_jax.jobs.train import train
from vit_jax.training import classification, mixup
from vit_jax.training.parallel import make_program
from vit_jax.training.setup import set_up


def tiny(**changes):
    """The configuration of a run of the smallest model on eight devices."""
    config = default()
    config.model.update(TINY)
    config.data.update(image_size=16)
    config.update(batch_size=8, eval_batch_size=8, total_steps=4, log_every=1, eval_every=0)
    config.update_from_flattened_dict(changes)
    return config


def lines(caplog, word):
    records = (record for record in caplog.records if record.name.startswith("vit_jax"))
    return [text for record in records if word in (text := record.getMessage())]


def said(config, caplog, *, step=0, saved=None, images=80):
    """The lines of `log_notices`."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    start = Start(config, None, latest=step or None, saved=saved)
    log_notices(config, start, images)
    return [record.getMessage() for record in caplog.records]


# ------------------------------------------------------------------------------------- mixup


MIXING = {  # settings, and how many images are blended with each other
    "one a device": (dict(batch_size=8), 1),
    "one a micro-batch": (dict(batch_size=16, accumulate_steps=2), 1),
    "two a device": (dict(batch_size=16), 2),
    "sharded": (dict(batch_size=8, parallel="sharded"), 8),
    "sharded, one a micro-batch": (
        dict(batch_size=8, parallel="sharded", accumulate_steps=8),
        1,
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixup_that_changes_nothing_is_said(name, caplog, monkeypatch):
    """The number of images is that which the step passes to `mix_images`."""
    settings, count = MIXING[name]
    config, passed = tiny(**settings, **{"data.mixup": 0.8}), []

    def mix_images(images, *arguments):
        passed.append(len(images))
        return mixup.mix_images(images, *arguments)

    monkeypatch.setattr(classification, "mix_images", mix_images)
    setup = set_up(config, num_classes=3, total_steps=2)
    program = make_program(
        config, evaluate=setup.objective.evaluate, update=setup.update, key=setup.key
    )
    size, integers = config.batch_size, jax.numpy.int32
    batch = {
        "image": jax.ShapeDtypeStruct((size, 16, 16, 3), jax.numpy.uint8),
        "label": jax.ShapeDtypeStruct((size,), integers),
        "mask": jax.ShapeDtypeStruct((size,), bool),
    }
    program.lower(jax.eval_shape(setup.init_state, setup.init_key), batch)
    assert set(passed) == {count} == {images_mixed(config)}
    text = "\n".join(said(config, caplog))
    assert (count == 1) == ("data.mixup=0.8 changes nothing" in text)


@pytest.mark.parametrize("mixing", [mixup.Mixing(0.8), mixup.Mixing(cutmix=1.0)])
def test_an_image_is_mixed_with_itself_alone(rng, mixing):
    """What the line says: one image stays the same, and two don't."""
    images = rng.random((2, 4, 4, 3)).astype(np.float32)
    labels = np.arange(2)
    for count in (1, 2):
        given = images[:count], labels[:count]
        mixed, first, second, _ = mixup.mix_images(*given, jax.random.key(0), mixing)
        assert np.allclose(mixed, given[0], atol=1e-6) == (count == 1)
        assert np.array_equal(first, second) == (count == 1)


def test_the_line_on_mixup_names_what_leaves_images_alone(caplog):
    config = tiny(batch_size=8, parallel="sharded", accumulate_steps=8)
    assert not said(config, caplog)
    config.data.mixup = 0.2
    (line,) = said(config, caplog)
    assert "batch_size=8 on 8 x cpu and accumulate_steps=8" in line
    config.data.cutmix = 1.0
    assert said(config, caplog)[0] == line
    assert "data.cutmix=1 changes nothing" in said(config, caplog)[1]
    config.data.mixup = 0.0
    (line,) = said(config, caplog)
    assert "set data.cutmix=0" in line
    config.objective = "masked_patches"  # doesn't mix
    assert not said(config, caplog)


# ----------------------------------------------------------------------------- learning rate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_jpegs(tmp_path_factory.mktemp("images"), {"a": 20, "b": 20})


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The workdir of a finished run of four steps."""
    workdir = tmp_path_factory.mktemp("run")
    train(tiny(**{"data.name": str(folder)}), workdir)
    return workdir


def test_a_finished_run_made_longer_says_that_the_rate_jumps(run, folder, caplog):
    """It says the rates that metrics.csv has."""
    caplog.set_level(logging.INFO)
    train(tiny(**{"data.name": str(folder), "total_steps": 8}), run)
    with open(run / "metrics.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    (line,) = lines(caplog, "learning rate")
    assert rates[4] > 2 * rates[3]
    assert line == (
        f"The learning rate is {rates[4]:.3g} in step 5, and would have been 0: its schedule was "
        f"for a run of 4 steps, and is now for one of 8."
    )


@pytest.mark.parametrize(
    ("before", "now", "step", "jumps"),
    [
        (dict(total_steps=10), dict(total_steps=20), 10, True),
        (dict(total_steps=10), dict(total_steps=20), 5, True),
        (dict(total_steps=20), dict(total_steps=10), 5, True),
        (dict(total_steps=10), dict(total_steps=10), 5, False),
        (dict(epochs=2.0), dict(epochs=2.0), 5, False),
        (dict(epochs=1.0), dict(epochs=2.0), 10, True),  # 80 images in batches of 8
        (dict(epochs=1.0), dict(total_steps=10), 5, False),
        (dict(total_steps=20), dict(total_steps=10), 15, False),  # no step is left
        (
            {"total_steps": 10, "optim.decay": "constant"},
            {"total_steps": 20, "optim.decay": "constant"},
            10,
            False,
        ),
        (
            {"total_steps": 10, "optim.decay": "linear"},
            {"total_steps": 20, "optim.decay": "linear"},
            10,
            True,
        ),
        (
            {"total_steps": 30, "optim.warmup_steps": 9},
            {"total_steps": 90, "optim.warmup_steps": 9},
            5,  # the warm-up is the same
            False,
        ),
        (dict(total_steps=10), {"total_steps": 10, "optim.lr": 0.5}, 5, True),
    ],
)
def test_the_rate_is_told_when_it_is_another(before, now, step, jumps, caplog):
    given = {"total_steps": None, "epochs": None}
    found = said(tiny(**given | now), caplog, step=step, saved=tiny(**given | before))
    assert ["rate" in line for line in found] == [True] * jumps
    for line in found:
        shown = line.split()
        assert shown[4] != shown[12]  # what it is, and what it would have been
        changed = "optim.lr" in now
        assert line.endswith("keys of optim were changed.") == changed
        assert (", and is now for one of " in line) != changed


def test_a_usual_run_says_nothing(caplog):
    assert jax.device_count() == 8 and not said(tiny(), caplog)
