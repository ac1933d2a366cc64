"""Both ways to spread a step over devices, against the step of one device with the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, IMAGE, random_params, tiny
from jax.sharding import PartitionSpec

from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.config.defaults import default
from vit_jax.evaluation import fewshot
from vit_jax.jobs.train import train
from vit_jax.training import parallel
from vit_jax.training.classification import classification
from vit_jax.training.step import TrainState, identity, make_update

SMALLEST = 64  # elements: divides most of a tiny model's parameters
FSDP = [1, 4, None]


def made(fsdp, **options):
    return parallel.sharded(fsdp=fsdp, smallest=SMALLEST, **options)


def state_of(optimizer, polyak=False):
    params = random_params(tiny())
    average = jax.tree.map(jnp.copy, params) if polyak else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), average)


def assert_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize(
    ("shape", "devices", "expected"),
    [
        ((3, 8, 64), 8, (None, None, "fsdp")),  # the longest that eight divide
        ((64, 8), 8, ("fsdp",)),
        ((96, 100), 8, ("fsdp",)),  # eight don't divide 100
        ((5, 7, 13), 8, ()),
        ((15,), 1, ()),
        ((8,), 8, ()),  # too small
        ((), 8, ()),
    ],
)
def test_the_longest_axis_that_can_be_is_divided(shape, devices, expected):
    assert parallel.partition(shape, devices, smallest=16) == PartitionSpec(*expected)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("fsdp", FSDP)
def test_a_divided_state_takes_the_steps_of_a_whole_one(batch, fsdp, accumulate_steps):
    objective, optimizer = classification(tiny()), optax.sgd(0.1, momentum=0.9)
    update = make_update(
        objective, optimizer, lambda count: 0.1, polyak=0.9, accumulate_steps=accumulate_steps
    )
    key, expected = jax.random.key(7), state_of(optimizer, polyak=True)
    program = made(fsdp, update=update, key=key)
    state = program.init(identity, expected)
    single = jax.jit(update)
    for _ in range(3):
        expected, metrics = single(expected, batch, key)
        state, found = program.update(state, program.put_batch(batch))
        assert_close(program.gather(state), expected)
        assert_close(program.gather(found), metrics)


@pytest.mark.parametrize("fsdp", FSDP)
def test_each_device_holds_its_part_before_and_after_a_step(batch, fsdp):
    optimizer = optax.adam(1e-3)
    update = make_update(classification(tiny()), optimizer, lambda count: 0.1)
    program = made(fsdp, update=update, key=jax.random.key(0))
    state = program.init(identity, state_of(optimizer))
    updated, _ = program.update(state, program.put_batch(batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))  # its buffers were reused
    again, _ = program.update(updated, program.put_batch(batch))
    arrays = jax.tree.leaves((again.params, again.opt_state))
    whole = sum(x.nbytes for x in arrays)
    held = sum(x.addressable_shards[0].data.nbytes for x in arrays)
    share = whole / (fsdp or 8)
    assert share <= held < 1.5 * share  # small arrays stay whole


@pytest.mark.parametrize("name", ["pmap", "sharded"])
def test_both_evaluate_and_represent_all_examples(batch, name):
    params = random_params(tiny())
    objective, represent = classification(tiny(), confusion=True), fewshot.feature_extractor(tiny())
    program = parallel.STRATEGIES[name](objective.evaluate, represent=represent)
    placed = program.init(identity, params)
    sums = program.gather(program.evaluate(placed, program.put_batch(batch)))
    assert_close(sums, jax.jit(objective.evaluate)(params, batch))
    found = program.gather(program.represent(placed, program.put_batch(batch)))
    assert_close(found, jax.jit(represent)(params, batch))


def test_devices_that_cannot_share_evenly():
    with pytest.raises(ValueError, match=r"fsdp=3 doesn't divide the 8 devices"):
        made(3)


@pytest.mark.parametrize(("saved_by", "read_by"), [("pmap", "sharded"), ("sharded", "pmap")])
def test_a_checkpoint_of_one_is_read_by_the_other(tmp_path, saved_by, read_by):
    settings = default()
    bodies = {"pmap": parallel.pmap, "sharded": lambda: made(4)}
    optimizer = optax.adam(1e-3)
    expected = state_of(optimizer)
    store = CheckpointManager(tmp_path, keep=1)
    store.save(bodies[saved_by]().init(identity, expected), settings, CLASSES * ("a",))
    store.close()
    program = bodies[read_by]()
    empty = program.init(identity, jax.tree.map(jnp.zeros_like, expected))
    found, _ = CheckpointManager(tmp_path, keep=1).restore(empty)
    jax.tree.map(np.testing.assert_array_equal, program.gather(found), jax.device_get(expected))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(empty), strict=True):
        assert x.sharding == y.sharding


def test_a_run_with_a_divided_state_has_the_losses_of_pmap(image_folder, tmp_path):
    losses = {}
    for name, fsdp in (("pmap", None), ("sharded", None), ("sharded", 2)):
        settings = default()
        settings.model.update(
            variant="Ti/16", width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8
        )
        settings.data.update(name=str(image_folder), image_size=IMAGE)
        settings.update(
            batch_size=16,
            eval_batch_size=16,
            total_steps=4,
            log_every=1,
            eval_every=4,
            parallel=name,
            fsdp=fsdp,
        )
        settings.optim.update(name="sgd", lr=0.1)
        summary = train(settings, tmp_path / f"{name}-{fsdp}")
        table = (tmp_path / f"{name}-{fsdp}" / "metrics.csv").read_text().splitlines()
        column = table[0].split(",").index("train_loss")
        losses[name, fsdp] = [float(row.split(",")[column]) for row in table[1:]]
        losses[name, fsdp].append(summary["test_loss"])
    assert len(set(losses["pmap", None])) == 5
    for found in losses.values():
        np.testing.assert_allclose(found, losses["pmap", None], rtol=1e-5)


@pytest.mark.parametrize("name", ["pmap", "sharded"])
def test_a_lowered_update_is_the_update(batch, name):
    """Of shapes alone; compiled, it takes the state and batch that the update takes."""
    optimizer = optax.sgd(0.1)
    update = make_update(classification(tiny()), optimizer, lambda count: 0.1)
    bodies = {"pmap": parallel.pmap, "sharded": lambda **options: made(4, **options)}
    program = bodies[name](update=update, key=jax.random.key(0), devices=jax.devices())
    start = state_of(optimizer)
    shapes = jax.eval_shape(lambda: (start, jax.tree.map(jnp.asarray, batch)))
    lowered = program.lower(*shapes).compile()
    found = lowered(program.init(identity, start), program.put_batch(batch))
    expected = program.update(program.init(identity, start), program.put_batch(batch))
    jax.tree.map(np.testing.assert_array_equal, program.gather(found), program.gather(expected))
