"""Each sharding strategy, against the step of one device with the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, IMAGE, random_params, tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.config.defaults import default
from vit_jax.evaluation import fewshot
from vit_jax.jobs.train import train
from vit_jax.training import optim, parallel
from vit_jax.training.classification import classification
from vit_jax.training.mixup import Mixing
from vit_jax.training.step import TrainState, make_update

SMALLEST = 64  # elements: shards most of a tiny model's parameters
FSDP = [1, 4, None]


def sharded(fsdp, **options):
    """The strategy, which also shards the small arrays of a tiny model."""
    return parallel.sharded(fsdp=fsdp, min_elements=SMALLEST, **options)


def state_of(optimizer, polyak=False):
    params = random_params(tiny())
    average = jax.tree.map(jnp.copy, params) if polyak else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), average)


def assert_close(found, expected, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), found, expected
    )


@pytest.mark.parametrize(
    ("shape", "devices", "expected"),
    [
        ((3, 8, 64), 8, (None, None, "fsdp")),  # the longest that eight devices divide
        ((64, 8), 8, ("fsdp",)),
        ((96, 100), 8, ("fsdp",)),  # eight doesn't divide 100
        ((5, 7, 13), 8, ()),
        ((15,), 1, ()),
        ((8,), 8, ()),  # too small
        ((), 8, ()),
    ],
)
def test_the_longest_axis_that_the_devices_divide_is_sharded(shape, devices, expected):
    assert parallel.partition(shape, devices, min_elements=16) == PartitionSpec(*expected)


@pytest.mark.parametrize("accumulate_steps", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("fsdp", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, None))])
def test_a_sharded_state_takes_the_steps_of_one_device(batch, fsdp, accumulate_steps):
    objective, optimizer = classification(tiny()), optax.sgd(0.1, momentum=0.9)
    update = make_update(
        objective, optimizer, lambda count: 0.1, polyak=0.9, accumulate_steps=accumulate_steps
    )
    key, expected = jax.random.key(7), state_of(optimizer, polyak=True)
    program = sharded(fsdp, update=update, key=key)
    state = program.place(expected)
    single = jax.jit(update)
    for _ in range(3):
        expected, metrics = single(expected, batch, key)
        state, found = program.update(state, program.put_batch(batch))
        assert_close(program.gather(state), expected)
        assert_close(program.gather(found), metrics)


@pytest.mark.parametrize(
    ("mixing", "accumulate_steps"), [(Mixing(0.8), 1), (Mixing(0.8), 2), (Mixing(0, 1.0), 2)]
)
def test_all_devices_and_micro_batches_have_one_share_of_mixup(batch, mixing, accumulate_steps):
    """Each mixes the images of its part by the share or the box that is drawn for the step."""
    objective, optimizer = classification(tiny(), mixing=mixing), optax.sgd(0.1)
    update = make_update(objective, optimizer, lambda count: 0.1, accumulate_steps=accumulate_steps)
    key, state = jax.random.key(7), state_of(optimizer)
    batch = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), batch)  # four images a device
    program = parallel.pmap(update=update, key=key)
    shared_key = jax.random.fold_in(key, state.step)
    losses = [
        objective.loss(
            state.params, {k: x[part] for k, x in batch.items()}, shared_key, shared_key
        )[0]
        for stretch in np.split(np.arange(32), 8)
        for part in stretch.reshape(-1, accumulate_steps).T
    ]
    _, metrics = program.update(program.place(state), program.put_batch(batch))
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_muon_takes_the_same_steps_with_sharded_matrices(rng):
    """Of random gradients: of a step's, some are 0 but for rounding, and Adam makes them large."""
    settings = default().optim
    settings.name = "muon"
    rule = optim.optimizer(settings, lambda count: 0.1)
    whole = jax.tree.map(jnp.asarray, random_params(tiny()))
    params = {"head": whole["head"], **whole["Transformer"]["encoderblock_0"]["MlpBlock_0"]}
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    mesh = Mesh(jax.devices()[:4], ("fsdp",))

    def place(x):
        spec = parallel.partition(x.shape, 4, min_elements=SMALLEST)
        return jax.device_put(x, NamedSharding(mesh, spec))

    arguments = grads, rule.init(params), params
    found, _ = jax.jit(rule.update)(*jax.tree.map(place, arguments))
    expected, _ = jax.jit(rule.update)(*arguments)
    assert not found["Dense_0"]["kernel"].sharding.is_fully_replicated
    assert_close(found, expected)


@pytest.mark.parametrize("fsdp", FSDP)
def test_each_device_holds_its_part_before_and_after_a_step(batch, fsdp):
    optimizer = optax.adam(1e-3)
    update = make_update(classification(tiny()), optimizer, lambda count: 0.1)
    program = sharded(fsdp, update=update, key=jax.random.key(0))
    state = program.place(state_of(optimizer))
    updated, _ = program.update(state, program.put_batch(batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))  # its buffers were reused
    again, _ = program.update(updated, program.put_batch(batch))
    arrays = jax.tree.leaves((again.params, again.opt_state))
    total = sum(x.nbytes for x in arrays)
    held = sum(x.addressable_shards[0].data.nbytes for x in arrays)
    share = total / (fsdp or 8)
    assert share <= held < 1.5 * share  # small arrays are replicated


@pytest.mark.parametrize("name", ["pmap", "sharded"])
def test_every_strategy_evaluates_and_extracts_features_of_all_examples(batch, name):
    params = random_params(tiny())
    objective = classification(tiny())
    extract_features = fewshot.feature_extractor(tiny())
    program = parallel.STRATEGIES[name](
        evaluate=objective.evaluate, extract_features=extract_features
    )
    placed = program.place(params)
    sums = program.gather(program.evaluate(placed, program.put_batch(batch)))
    assert_close(sums, jax.jit(objective.evaluate)(params, batch))
    found = program.gather(program.extract_features(placed, program.put_batch(batch)))
    assert_close(found, jax.jit(extract_features)(params, batch), atol=1e-5)  # they are about 1


def test_devices_that_cannot_share_evenly():
    with pytest.raises(ValueError, match=r"fsdp=3 doesn't divide the 8 devices"):
        sharded(3)


@pytest.mark.slow
@pytest.mark.parametrize(("saved_by", "read_by"), [("pmap", "sharded"), ("sharded", "pmap")])
def test_a_checkpoint_of_one_strategy_is_read_by_another(tmp_path, saved_by, read_by):
    settings = default()
    strategies = {"pmap": parallel.pmap, "sharded": lambda: sharded(4)}
    optimizer = optax.adam(1e-3)
    expected = state_of(optimizer)
    store = CheckpointManager(tmp_path, keep=1)
    store.save(strategies[saved_by]().place(expected), settings, CLASSES * ("a",))
    store.close()
    program = strategies[read_by]()
    empty = program.place(jax.tree.map(jnp.zeros_like, expected))
    found, _ = CheckpointManager(tmp_path, keep=1).restore(empty)
    jax.tree.map(np.testing.assert_array_equal, program.gather(found), jax.device_get(expected))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(empty), strict=True):
        assert x.sharding == y.sharding


@pytest.mark.slow
def test_a_run_with_a_sharded_state_has_the_losses_of_pmap(image_folder, tmp_path):
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "sharded"])
def test_a_lowered_update_is_the_update(batch, name):
    """Of shapes alone; compiled, it takes the state and batch that the update takes."""
    optimizer = optax.sgd(0.1)
    update = make_update(classification(tiny()), optimizer, lambda count: 0.1)
    strategies = {"pmap": parallel.pmap, "sharded": lambda **options: sharded(4, **options)}
    program = strategies[name](update=update, key=jax.random.key(0), devices=jax.devices())
    start = state_of(optimizer)
    shapes = jax.eval_shape(lambda: (start, jax.tree.map(jnp.asarray, batch)))
    lowered = program.lower(*shapes).compile()
    found = lowered(program.place(start), program.put_batch(batch))
    expected = program.update(program.place(start), program.put_batch(batch))
    jax.tree.map(np.testing.assert_array_equal, program.gather(found), program.gather(expected))


class Lazy:
    """What is read from a file when it is needed: an array only for `np.asarray`."""

    def __init__(self, array):
        self.shape, self.dtype, self._array = array.shape, array.dtype, np.asarray(array)

    def __array__(self, dtype=None, copy=None):
        return self._array


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, Lazy])
@pytest.mark.parametrize("name", ["pmap", "sharded"])
def test_what_is_placed_lies_as_what_is_initialised(name, kind):
    """And its values stay, whether it comes from the host, from a device, or from a file."""
    strategies = {"pmap": parallel.pmap, "sharded": lambda: sharded(4)}
    program = strategies[name]()
    params = random_params(tiny())
    expected = program.init(lambda: params)
    found = program.place(jax.tree.map(kind, params))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.sharding == y.sharding
        np.testing.assert_array_equal(x, y)
