"""The best checkpoint of a run, and a run that stops early.

What the tests measure is given, so that it is known which of them is the best.
"""

import pytest
from conftest import rows

from vit_jax import convert
from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.jobs.train import train
from vit_jax.jobs.validation import validate
from vit_jax.weights.api import load

ACCURACIES = (0.3, 0.6, 0.5, 0.4, 0.6, 0.5)  # by step; the second 0.6 is no better


@pytest.fixture
def measured(monkeypatch):
    """A dictionary {step: what the tests of that step measure}; a step without one fails."""
    values = {step: {"test_accuracy": x} for step, x in enumerate(ACCURACIES, 1)}

    def measure(evaluators, state):
        return dict(values[int(state.step)]) if list(evaluators) else {}

    monkeypatch.setattr("vit_jax.jobs.train.measure", measure)
    return values


@pytest.fixture
def settings(settings):
    settings.update(eval_every=1, log_every=1)
    settings.checkpoint.update(every=2, keep=1, best="test_accuracy")
    return settings


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_best_stays_beside_the_newest_and_is_opened_by_name(
    settings, measured, tmp_path, caplog
):
    caplog.set_level("INFO")
    run = tmp_path / "run"
    summary = train(settings, run)
    assert (summary["best_step"], summary["best_test_accuracy"]) == (2, 0.6)
    assert "stopped_early" not in summary
    assert summary["best_checkpoint"] == str(run / "checkpoints" / "2")
    assert "The checkpoint with the highest test_accuracy is kept" in caplog.text
    assert kept(run) == [2, 6]
    assert load(run).step == 6
    for path in (run, run / "checkpoints", run / "checkpoints" / "6"):
        assert load(f"{path}@best").step == 2
    assert load(f"{run}@best/").step == 2
    convert.main([f"{run}@best", str(tmp_path / "best.npz")])
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        load(tmp_path / "nothing@best")
    (run / "checkpoints" / "2").rename(tmp_path / "2")
    with pytest.raises(FileNotFoundError, match=r"2, is gone: test_accuracy was 0\.6 there"):
        load(f"{run}@best")


def test_the_lowest_loss_is_the_best_and_nan_never_is(settings, measured, tmp_path, caplog):
    caplog.set_level("INFO")
    settings.checkpoint.best = "test_loss"
    losses = (float("nan"), 2.0, 1.0, 1.5, float("nan"), 1.2)
    measured.update({step: {"test_loss": x} for step, x in enumerate(losses, 1)})
    summary = train(settings, tmp_path)
    assert (summary["best_step"], summary["best_test_loss"]) == (3, 1.0)
    assert "with the lowest test_loss" in caplog.text
    assert kept(tmp_path) == [3, 6]


def test_a_run_that_was_cut_off_knows_the_best_so_far(settings, measured, tmp_path, caplog):
    later = {step: measured.pop(step) for step in (5, 6)}
    with pytest.raises(KeyError):
        train(settings, tmp_path)
    assert kept(tmp_path) == [2, 4]
    measured.update(later)
    settings.early_stopping.patience = 4  # two of the tests were before it was cut off
    summary = train(settings, tmp_path)
    assert (summary["step"], summary["best_step"], summary["stopped_early"]) == (6, 2, True)
    assert kept(tmp_path) == [2, 6]


@pytest.mark.parametrize("change", ["metric", "test", "none"])
def test_another_metric_or_test_begins_anew(settings, measured, tmp_path, caplog, change):
    caplog.set_level("INFO")
    settings.total_steps = 3
    train(settings, tmp_path)
    measured[4] = {"test_accuracy": 0.4, "test_loss": 1.0}
    settings.total_steps = 4
    if change == "metric":
        settings.checkpoint.best = "test_loss"
    elif change == "test":
        settings.data.test = "train[90%:]"
    else:
        settings.checkpoint.best = None
    summary = train(settings, tmp_path)
    if change == "none":
        assert "best_step" not in summary and kept(tmp_path) == [4]
        with pytest.raises(ValueError, match="names no best checkpoint, because its run had"):
            read_checkpoint(f"{tmp_path}@best")
    else:
        assert summary["best_step"] == 4
        assert "The best so far, test_accuracy 0.6 at step 2, was measured otherwise" in caplog.text


def test_a_run_stops_early_and_says_so_whenever_it_is_started(settings, measured, tmp_path, caplog):
    caplog.set_level("INFO")
    settings.early_stopping.patience = 2
    said = "Stopped early: test_accuracy was best at step 2, 0.6, and the 2 tests since then"
    first = train(settings, tmp_path)
    assert (first["step"], first["best_step"], first["stopped_early"]) == (4, 2, True)
    assert first["checkpoint"] == str(tmp_path / "checkpoints" / "4")
    assert caplog.text.count(said) == 1
    assert kept(tmp_path) == [2, 4]
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
    again = train(settings, tmp_path)
    assert {x: again[x] for x in first if x != "images_per_second"} == {
        x: first[x] for x in first if x != "images_per_second"
    }
    assert caplog.text.count(said) == 2
    assert len(rows(tmp_path)) == 4
    settings.early_stopping.patience = 0
    last = train(settings, tmp_path)
    assert (last["step"], last["best_step"]) == (6, 2)
    assert "stopped_early" not in last


def test_what_is_measured_less_often_is_measured_when_a_run_stops_early(
    settings, tmp_path, image_folder
):
    """And whether a metric is the best is asked only when it was measured."""
    settings.optim.lr = 1e-30  # so nothing is ever better
    settings.update(total_steps=100)
    settings.early_stopping.patience = 1
    settings.fewshot.update(every=50, shots=(1,), seeds=1)
    summary = train(settings, tmp_path)
    assert (summary["step"], summary["best_step"]) == (2, 1)
    assert float(rows(tmp_path)[-1]["fewshot_1"]) == summary["fewshot_1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint.best": "test_acuracy"}, r"measures.*did you mean 'test_accuracy'"),
        ({"checkpoint.best": "fewshot_7", "fewshot.every": 1}, "It measures test_loss"),
        ({"checkpoint.best": "test_top5_accuracy"}, "nothing that this run measures"),  # 3 classes
    ],
)
def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(
    settings, tmp_path, keys, message
):
    settings.fewshot.update(shots=(1,), seeds=1)
    settings.update_from_flattened_dict(keys)
    with pytest.raises(ValueError, match=message):
        train(settings, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint.best": "train_loss"}, "must be a metric of a test"),
        ({"early_stopping.patience": -1}, "must be 0 or more"),
        ({"early_stopping.patience": 3, "checkpoint.best": None}, "needs checkpoint.best"),
        ({"early_stopping.patience": 3, "eval_every": 0}, "eval_every=0 measures nothing"),
        ({"checkpoint.best": "fewshot_5"}, "fewshot.every=0 measures nothing"),
        ({"checkpoint.best": "polyak_test_loss"}, "set optim.polyak"),
    ],
)
def test_settings_that_do_not_go_together(settings, keys, message):
    validate(settings)
    settings.update_from_flattened_dict(keys)
    with pytest.raises(ValueError, match=message):
        validate(settings)
