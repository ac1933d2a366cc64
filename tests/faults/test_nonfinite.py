"""Losses and gradients that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, random_params, rows, tiny

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.train import train
from vit_jax.training import parallel, setup
from vit_jax.training.classification import classification
from vit_jax.training.step import TrainState, make_update


def spoiled(objective, bad):
    """The objective with a loss of NaN for the batches that `bad` picks."""

    def loss(params, batch, *keys):
        value, metrics = objective.loss(params, batch, *keys)
        value = jnp.where(bad(batch), jnp.nan, value)
        return value, metrics | {"loss": value}

    return objective._replace(loss=loss)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture
def start(batch):
    """Objective, momentum and its state; a batch, and one whose labels are all 0: it is spoiled."""
    model = tiny()
    optimizer = optax.sgd(lambda count: 0.1 / (1 + count), momentum=0.9)
    params = random_params(model)
    zeros = jnp.zeros((), jnp.int32)
    state = TrainState(zeros, params, optimizer.init(params), params, zeros, zeros)
    bad = {**batch, "label": np.zeros_like(batch["label"])}
    objective = spoiled(classification(model), lambda batch: jnp.all(batch["label"] == 0))
    return objective, optimizer, state, batch, bad


def update_of(objective, optimizer, max_skipped):
    update = make_update(
        objective, optimizer, lambda count: 0.1, polyak=0.9, max_skipped=max_skipped
    )
    return jax.jit(lambda state, batch: update(state, batch, jax.random.key(0)))


def test_a_refused_update_leaves_all_but_the_counts_of_steps(start):
    """The next one goes on as if the schedule had only counted the step."""
    objective, optimizer, state, batch, bad = start
    update = update_of(objective, optimizer, max_skipped=2)
    first, _ = update(state, batch)
    skipped, metrics = update(first, bad)
    assert np.isnan(metrics["loss"])
    assert (metrics["nonfinite"], metrics["skipped"], skipped.step) == (1, 1, 2)
    assert_equal(skipped.params, first.params)
    (momentum, schedule), (momentum_before, schedule_before) = skipped.opt_state, first.opt_state
    assert_equal(momentum, momentum_before)
    assert (schedule.count, schedule_before.count) == (2, 1)

    third, metrics = update(skipped, batch)
    assert (metrics["nonfinite"], metrics["skipped"], third.step) == (0, 1, 3)
    keys = jax.random.split(jax.random.key(0))
    gradient = jax.grad(lambda params: objective.loss(params, batch, *keys)[0])
    expected = jax.tree.map(
        lambda param, trace, grad: param - 0.1 / 3 * (0.9 * trace + grad),
        first.params,
        momentum_before.trace,
        gradient(first.params),
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), third.params, expected
    )


@pytest.mark.parametrize("max_skipped", [0, 2])
def test_one_too_many_in_a_row_stops_everything(start, max_skipped):
    """Whatever batches come after it, the state of before is there."""
    objective, optimizer, state, batch, bad = start
    update = update_of(objective, optimizer, max_skipped)
    state, _ = update(state, batch)
    for _ in range(max_skipped):
        state, _ = update(state, bad)
    stopped = state
    for number, following in enumerate((bad, batch, bad, batch), 1):
        stopped, metrics = update(stopped, following)
        assert metrics["nonfinite"] == max_skipped + number
        for name in ("step", "params", "opt_state", "average"):
            assert_equal(getattr(stopped, name), getattr(state, name))


@pytest.mark.parametrize("body", [parallel.pmap, parallel.sharded])
def test_one_device_of_eight_is_enough(batch, body):
    """NaN comes from the part of the batch that a single device has."""
    model, optimizer = tiny(), optax.sgd(0.1)
    objective = spoiled(classification(model), lambda batch: jnp.any(batch["label"] == CLASSES))
    update = make_update(objective, optimizer, lambda count: 0.1, max_skipped=1)
    program = body(update=update, key=jax.random.key(0))
    batch["label"][5] = CLASSES
    params = random_params(model)
    zeros = jnp.zeros((), jnp.int32)
    state = TrainState(zeros, params, optimizer.init(params), None, zeros, zeros)
    state = program.place(state)
    state, metrics = program.update(state, program.put_batch(batch))
    assert (int(metrics["nonfinite"]), int(state.step)) == (1, 1)
    assert_equal(program.gather(state.params), params)


def test_a_run_stops_and_says_where(settings, tmp_path):
    """A learning rate that overflows float32; what was good stays, and the state is kept apart."""
    settings.optim.update(lr=1e38, clip_norm=0.0, decay="constant", polyak=0.9)
    settings.update(total_steps=50, log_every=7, eval_every=0)
    settings.checkpoint.every = 1
    with pytest.raises(FloatingPointError) as error:
        train(settings, tmp_path)
    message = str(error.value)
    last = read_checkpoint(tmp_path).step
    number = last + 1
    assert message.startswith(f"At step {number} the loss is ")
    assert "at a learning rate of 1e+38." in message and "gradient's norm" in message
    folder = tmp_path / "nonfinite" / f"step_{number}"
    kept = read_checkpoint(folder)
    assert kept.step == last
    assert_equal(kept.params, read_checkpoint(tmp_path).params)
    assert_equal(kept.average, read_checkpoint(tmp_path).average)

    names = (folder / "batch.txt").read_text().splitlines()
    assert len(names) == settings.batch_size and names[0] in message
    assert all(name.endswith(".jpg") for name in names)
    with pytest.raises(FloatingPointError, match=f"At step {number} the loss"):
        train(settings, tmp_path)


@pytest.fixture
def sometimes_bad(monkeypatch):
    """A batch has a loss of NaN when both images of one of the eight devices are red."""

    def make(model, **options):
        return spoiled(
            objectives_classification(model, **options),
            lambda batch: jnp.sum(batch["label"] == 2) > 1,
        )

    objectives_classification = classification
    monkeypatch.setattr(setup, "classification", make)


def test_skipped_updates_are_counted_and_resumed(settings, tmp_path, sometimes_bad, monkeypatch):
    settings.update(on_nonfinite="skip", total_steps=12, log_every=5, eval_every=0)
    settings.data.crop_area = 1.0
    settings.model.dropout = 0.0
    settings.checkpoint.every = 1
    summary = train(settings, tmp_path / "whole")
    assert 0 < summary["skipped_updates"] < 12
    counts = [int(row["skipped_updates"]) for row in rows(tmp_path / "whole")]
    assert counts[-1] == summary["skipped_updates"] and counts == sorted(counts)
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "whole")]
    were_all_skipped = np.diff([0, *counts]) == (5, 5, 2)  # of the steps of a row
    assert np.isfinite(losses).tolist() == (~were_all_skipped).tolist()
    assert not were_all_skipped.all()

    def stop(progress, metrics):
        raise RuntimeError

    for _ in range(3):  # ends after the first step each time, whose predecessor is saved
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "advance", stop)
            with pytest.raises(RuntimeError):
                train(settings, tmp_path / "stopped")
    again = train(settings, tmp_path / "stopped")
    assert again["skipped_updates"] == summary["skipped_updates"]
    one, other = (read_checkpoint(tmp_path / name) for name in ("whole", "stopped"))
    assert_equal(one.params, other.params)


def test_too_many_skipped_in_a_row_stop_the_run(settings, tmp_path):
    settings.optim.update(lr=1e38, clip_norm=0.0, decay="constant")
    settings.update(total_steps=50, on_nonfinite="skip", max_skipped_updates=3)
    with pytest.raises(FloatingPointError, match="and 3 in a row before it were skipped"):
        train(settings, tmp_path)
