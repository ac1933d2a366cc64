"""The encoder: dropout, stochastic depth, recomputation and the loop over blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import assert_same, forward_and_gradients, random_params, tiny
from flax import linen as nn


@pytest.fixture
def images(rng):
    return rng.uniform(-1, 1, (2, 12, 8, 3)).astype(np.float32)


def test_dropout_comes_after_positions_and_every_dense_layer_but_query_key_value(images):
    """The order of the modules that run, as their paths."""
    model = tiny(depth=1, dropout=0.5)
    params = random_params(model, images)
    calls = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        calls.append("/".join(context.module.path))
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
    dropped = [calls[i - 1] for i, path in enumerate(calls) if "Dropout" in path]
    block = "Transformer/encoderblock_0"
    assert dropped == [
        "Transformer/posembed_input",
        f"{block}/MultiHeadDotProductAttention_0",
        f"{block}/MlpBlock_0/Dense_0",
        f"{block}/MlpBlock_0/Dense_1",
    ]


def test_dropout_works_in_training_only_and_repeats_with_its_key(images):
    model, params = tiny(dropout=0.5), random_params(tiny(), images)

    def run(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply({"params": params}, images, train=train, rngs=rngs))

    plain = np.asarray(tiny().apply({"params": params}, images))
    np.testing.assert_array_equal(run(0, False), plain)
    np.testing.assert_array_equal(run(0, True), run(0, True))
    assert (run(0, True) != run(1, True)).any() and (run(0, True) != plain).any()


@pytest.mark.parametrize("registers", [1, 3])
def test_the_encoder_reads_registers_and_leaves_them_out(images, registers):
    """Nobody else can tell a register from a class token whose position is zero."""
    with_registers = tiny(depth=1, registers=registers)
    with_tokens = tiny(depth=1, class_tokens=1 + registers)
    params = random_params(with_registers, images)
    encoder = params["Transformer"]
    table = encoder["posembed_input"]["pos_embedding"]
    zeros = np.zeros((1, registers, table.shape[-1]), np.float32)
    same = {
        **params,
        "cls": np.concatenate([params["cls"], encoder["registers"]], axis=1),
        "Transformer": {
            **{name: x for name, x in encoder.items() if name != "registers"},
            "posembed_input": {
                "pos_embedding": np.concatenate([table[:, :1], zeros, table[:, 1:]], axis=1)
            },
        },
    }
    found = with_registers.clone(num_classes=0).apply({"params": params}, images)
    expected = with_tokens.clone(num_classes=0).apply({"params": same}, images)
    expected = expected[:, : table.shape[-1]]  # the first class token's
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_stochastic_depth_drops_whole_branches_more_often_deeper():
    """Each branch adds a power of 4 to every number, so that the sum shows which were kept."""
    images, rates = np.zeros((2000, 4, 4, 3), np.float32), (0.0, 0.25, 0.5)
    model = tiny(depth=3, stochastic_depth=0.5, positions="none")
    params = jax.tree.map(np.zeros_like, random_params(model, images[:1]))
    added = []
    for i, rate in enumerate(rates):
        block = params["Transformer"][f"encoderblock_{i}"]
        biases = (block["MultiHeadDotProductAttention_0"]["out"], block["MlpBlock_0"]["Dense_1"])
        for j, branch in enumerate(biases):
            branch["bias"] += 4.0 ** (2 * i + j)
            added.append(4.0 ** (2 * i + j) / (1 - rate))
    streams = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name == "encoderblock_2":
            streams.append(np.asarray(result))
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)})
        model.apply({"params": params}, images[:1], train=False)
    training, evaluation = streams
    assert (training == training[:, :1, :1]).all()  # all of an example alike
    choices = np.array(list(itertools.product([0, 1], repeat=6)))
    distance = np.abs(training[:, 0, :1] - choices @ added)
    kept = choices[distance.argmin(1)]
    assert distance.min(1).max() < 1e-2
    np.testing.assert_allclose(kept.mean(0), np.repeat(1 - np.array(rates), 2), atol=0.04)
    assert 0.4 < (kept[:, 4] == kept[:, 5]).mean() < 0.6  # each branch for itself
    assert evaluation[0, 0, 0] == sum(4**i for i in range(6))


@pytest.mark.slow
def test_remat_keeps_less_and_changes_neither_parameters_nor_gradients(rng):
    """The same with dropout, whose masks are drawn again."""
    images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    params = random_params(tiny(depth=3), images)
    gradients, kept = {}, {}
    for remat in ("none", "dots", "full"):
        model = tiny(depth=3, dropout=0.3, remat=remat)

        def loss(params, model=model):
            rngs = {"dropout": jax.random.key(3)}
            return jnp.square(model.apply({"params": params}, images, train=True, rngs=rngs)).sum()

        backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
        gradients[remat] = jax.jit(jax.grad(loss))(params)
    assert kept["full"] < kept["dots"] < kept["none"]
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            gradients[remat],
            gradients["none"],
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(remat="full", positions="relative"),
        dict(axial=True, pool="gap"),
        dict(registers=2, pre_norm=True, mlp="swiglu", norm="rms"),
    ],
    ids=str,
)
def test_a_loop_over_layers_changes_neither_parameters_nor_gradients(images, options):
    model = tiny(depth=3, **options)
    params = random_params(model, images)
    scanned = model.clone(scan=True)
    assert jax.tree.structure(
        scanned.init(jax.random.key(0), images)["params"]
    ) == jax.tree.structure(params)
    found, expected = (forward_and_gradients(m, params, images) for m in (scanned, model))
    assert_same(found, expected, 1e-5)
    text = (
        jax.jit(scanned.apply, static_argnames="train")
        .lower({"params": params}, images, train=True)
        .as_text()
    )
    assert text.count("stablehlo.while") == 1


def test_layers_of_a_loop_drop_different_units(images):
    """Every layer adds 1 to all units that it doesn't drop: with one mask, there'd be two sums."""
    model = tiny(num_classes=0, depth=6, dropout=0.5, scan=True)
    params = jax.tree.map(np.zeros_like, random_params(model, images))
    params["Transformer"]["encoder_norm"]["scale"] += 1
    for i in range(6):
        params["Transformer"][f"encoderblock_{i}"]["MlpBlock_0"]["Dense_1"]["bias"] += 1
    rngs = {"dropout": jax.random.key(0)}
    (units, _) = model.apply({"params": params}, images, train=True, rngs=rngs)
    assert len(np.unique(np.round(units, 3))) > 3
