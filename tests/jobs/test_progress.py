"""The bar and the speed of a run, how far it runs ahead of the devices, and when it is saved."""

import types

import jax
import numpy as np
import pytest
from conftest import rows

from vit_jax.checkpoints.checkpoint import steps_in
from vit_jax.jobs import progress, saving
from vit_jax.jobs import train as train_file
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.saving import SaveTimes
from vit_jax.jobs.train import train


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for `clock.now`, in seconds."""
    clock = types.SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(saving, "time", clock)
    return clock


@pytest.mark.parametrize("done", [0, 7])
def test_steps_count_when_they_are_finished(clock, monkeypatch, capsys, done):
    """The first step takes 40 s, most of them the compiler's; others take 2 s each."""
    devices = types.SimpleNamespace(finished=done)

    def wait(step):
        clock.now += (2 if step > done + 1 else 40) * (step - devices.finished)
        devices.finished = step

    monkeypatch.setattr(progress.jax, "block_until_ready", wait)
    shown = Progress(done, done + 10, 32, active=True)
    shown.advance(done + 1)
    assert shown.pause() == {} and shown.summary() == {}  # nothing to measure
    shown.show({"step": done + 1, "train_loss": 1.5})
    assert f"{done + 1}/{done + 10} [" in capsys.readouterr().err
    shown.resume()
    for step in range(done + 2, done + 6):
        shown.advance(step)
        assert devices.finished == step - 1  # at most two are on the devices before it waits
    row = shown.pause()
    assert devices.finished == done + 5
    assert row == {"images_per_second": 4 * 32 / 8}
    clock.now += 100  # an evaluation
    shown.resume()
    shown.advance(done + 6)
    shown.wait()
    clock.now += 2  # nothing new comes from the data
    assert shown.pause() == {"images_per_second": 32 / 4}
    assert shown.summary() == {"images_per_second": round(5 * 32 / 12, 1)}
    shown.close()
    assert capsys.readouterr().err.rstrip().rpartition("\r")[2].count(f"{done + 6}/{done + 10} [")


def test_at_most_two_steps_are_on_the_devices(settings, tmp_path, monkeypatch):
    """And a batch is sent while a step is computed."""
    settings.update(total_steps=6, log_every=100, eval_every=0)
    settings.checkpoint.every = 0
    events, numbers = [], {}

    def recording(*args, **kwargs):
        program = make_program(*args, **kwargs)

        def update(state, batch):
            state, metrics = program.update(state, batch)
            numbers[id(metrics["loss"])] = len(numbers) + 1
            kept.append(metrics)
            events.append(("sent", len(numbers)))
            return state, metrics

        def put_batch(batch):
            events.append(("batch", sum(kind == "batch" for kind, _ in events) + 1))
            return program.put_batch(batch)

        return program._replace(update=update, put_batch=put_batch)

    def block_until_ready(tree):
        if isinstance(tree, dict) and id(tree.get("loss")) in numbers:
            events.append(("finished", numbers[id(tree["loss"])]))
        return wait(tree)

    kept = []
    make_program, wait = train_file.make_program, jax.block_until_ready
    monkeypatch.setattr(train_file, "make_program", recording)
    monkeypatch.setattr(jax, "block_until_ready", block_until_ready)
    train(settings, tmp_path)
    of_steps = events[: events.index(("sent", 6)) + 1]
    finished = 0
    for (kind, number), following in zip(of_steps, [*of_steps[1:], None], strict=True):
        if kind == "sent":
            assert number - finished <= 2
            assert following in (None, ("batch", number + 1))
        elif kind == "finished":
            finished = number
    assert finished == 4


def test_a_finished_run_says_so_and_shows_no_bar(settings, tmp_path, capsys, caplog):
    settings.update(total_steps=2, log_every=1)
    first = train(settings, tmp_path)
    assert [bool(row["images_per_second"]) for row in rows(tmp_path)] == [False, True]
    capsys.readouterr()
    with caplog.at_level("INFO", "vit_jax"):
        again = train(settings, tmp_path)
    assert "step 2 of 2: finished; evaluating" in caplog.text
    assert "step/s" not in capsys.readouterr().err
    assert first.pop("images_per_second") > 0
    assert again == first


# ----------------------------------------------------------------------------------- checkpoints


def saved_after(times, clock, *, has_row, seconds=10, steps=40):
    """The steps, of ten seconds each, after which a run is saved."""
    due = []
    for step in range(1, steps + 1):
        clock.now += seconds
        if times.is_due(step, has_row=has_row(step)):
            due.append(step)
    return due


@pytest.mark.parametrize(
    ("every", "is_saved", "expected"),
    [
        (15, False, [14, 15, 30]),
        (10, False, [10, 20, 30, 40]),
        (15, True, [15, 30]),
        (0, False, []),
    ],
)
def test_the_first_checkpoint_comes_after_two_minutes(clock, every, is_saved, expected):
    times = SaveTimes(every, is_saved=is_saved)
    clock.now += 1000  # the first step is compiled
    assert saved_after(times, clock, has_row=lambda step: False) == expected


@pytest.mark.parametrize(("main_is_late", "expected"), [(True, [4, 30]), (False, [30])])
def test_several_processes_do_as_the_first_one_after_a_row(
    clock, monkeypatch, main_is_late, expected
):
    asked = []

    def from_main(own):
        asked.append(bool(own))
        return np.bool_(main_is_late)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(saving.multihost_utils, "broadcast_one_to_all", from_main)
    times = SaveTimes(30, is_saved=False)
    assert saved_after(times, clock, has_row=lambda step: step % 4 == 0) == expected
    assert len(asked) == (1 if main_is_late else 7)


def test_an_early_checkpoint_changes_nothing_else(settings, tmp_path, monkeypatch):
    settings.checkpoint.every = 500
    train(settings, tmp_path / "late")
    monkeypatch.setattr(saving, "_FIRST", -1)
    train(settings, tmp_path / "early")
    assert steps_in(tmp_path / "late" / "checkpoints") == [6]
    assert steps_in(tmp_path / "early" / "checkpoints") == [1, 6]
    early, late = (
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(folder)]
        for folder in (tmp_path / "early", tmp_path / "late")
    )
    assert early == late
