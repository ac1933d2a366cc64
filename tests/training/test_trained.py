"""Frozen parameters, layer decay and the head's rate, against gradients and steps by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASSES, IMAGE, random_params, tiny
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.analysis.planning import plan
from vit_jax.config.defaults import default
from vit_jax.models.lora import merge_lora
from vit_jax.models.params import parameter_shapes
from vit_jax.training import optim, parallel
from vit_jax.training.classification import classification
from vit_jax.training.masked_patches import masked_patches
from vit_jax.training.step import TrainState, make_update
from vit_jax.training.trained import join_params, rate_factors, split_params

BLOCK_0, BLOCK_1 = "Transformer/encoderblock_0", "Transformer/encoderblock_1"
STEM = ("embedding", "cls", "Transformer/posembed_input")
LAST = ("Transformer/encoder_norm", "head")
# What is trained of a model with two blocks, by the value of config.optim.freeze.
TRAINED = {
    "none": (*STEM, BLOCK_0, BLOCK_1, *LAST),
    0: (BLOCK_0, BLOCK_1, *LAST),
    1: (BLOCK_1, *LAST),
    2: LAST,
    "encoder": ("head",),
}


def flat(tree):
    return flatten_dict(tree, sep="/")


def optim_config(**changes):
    settings = default().optim
    settings.update(lr=0.5, decay="constant", **changes)
    return settings


@functools.cache
def random_model(lora_rank=0):
    return random_params(tiny(depth=2, lora_rank=lora_rank))


def update_of(settings, lora_rank=0, **options):
    """The update of a model with two blocks, and a state whose every parameter is random."""
    model, params = tiny(depth=2, lora_rank=lora_rank), random_model(lora_rank)
    rate = optim.learning_rate_schedule(settings, 10)
    rule = optim.optimizer(settings, rate)
    state = TrainState(
        jnp.int32(0),
        params,
        rule.init(split_params(params, settings.freeze)[0]),
        jax.tree.map(jnp.copy, params) if options.get("polyak") else None,
    )
    update = make_update(classification(model), rule, rate, freeze=settings.freeze, **options)
    return update, state


@functools.cache
def whole_gradient():
    """The function (params, batch) -> the gradient of every parameter, by the definition."""
    model = tiny(depth=2)

    def loss(params, batch):
        images = batch["image"].astype(jnp.float32) / 127.5 - 1
        log_p = jax.nn.log_softmax(model.apply({"params": params}, images))
        return -log_p[jnp.arange(16), batch["label"]].mean()

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
    ("freeze", "accumulate_steps"),
    [(0, 2), pytest.param(1, 1, marks=pytest.mark.slow), ("encoder", 1)],
)
def test_trained_parameters_move_by_their_own_clipped_gradient(batch, freeze, accumulate_steps):
    """SGD without momentum: two updates and their Polyak average, in float64."""
    settings = optim_config(
        momentum=0.0, clip_norm=0.05, weight_decay=0.1, freeze=freeze, head_lr=None
    )
    update, state = update_of(settings, polyak=0.8, accumulate_steps=accumulate_steps)
    update = jax.jit(update)
    history = [flat(state.params)]
    for _ in range(2):
        grads = flat(whole_gradient()(state.params, batch))
        trained = [name for name in grads if name.startswith(TRAINED[freeze])]
        norm = np.sqrt(sum((np.float64(grads[name]) ** 2).sum() for name in trained))
        before = flat(state.params)
        state, metrics = update(state, batch, jax.random.key(0))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        assert norm > 0.05
        after = flat(state.params)
        for name, x in before.items():
            if name in trained:
                decay = 0.1 * np.float64(x) * name.endswith("kernel")
                expected = x - 0.5 * (grads[name] * 0.05 / norm + decay)
                np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-6)
            else:
                np.testing.assert_array_equal(after[name], x)
        history.append(after)
    for name, average in flat(state.average).items():
        if name in trained:
            expected = (0.8 * np.float64(history[1][name]) + history[2][name]) / 1.8
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(average, history[0][name])


@pytest.mark.parametrize("freeze", ["none", 1])
def test_lora_and_the_head_move_by_their_own_gradient(batch, freeze):
    """SGD without momentum, with another rate for the head, against automatic differentiation.

    The gradients of A and B are those of W + A B, which is the kernel of a model without LoRA.
    """
    settings = optim_config(
        momentum=0.0, clip_norm=0.0, weight_decay=0.1, freeze=freeze, layer_decay=0.5, head_lr=0.25
    )
    update, state = update_of(settings, lora_rank=2)
    before = flat(state.params)
    after = flat(jax.jit(update)(state, batch, jax.random.key(0))[0].params)
    grads = flat(whole_gradient()(merge_lora(state.params), batch))
    rates = {BLOCK_0: 0.125, BLOCK_1: 0.25, "head": 0.25}
    moved = set()
    for name, x in before.items():
        where, _, kind = name.rpartition("/")
        is_frozen = freeze == 1 and name.startswith(BLOCK_0)
        if where != "head" and (is_frozen or kind not in ("lora_a", "lora_b")):
            np.testing.assert_array_equal(after[name], x)
            continue
        moved.add(name)
        g = np.float64(grads[name if where == "head" else f"{where}/kernel"])
        if kind == "lora_a":
            b = np.float64(before[f"{where}/lora_b"])
            g = g.reshape(len(g), -1) @ b.reshape(len(b), -1).T
        elif kind == "lora_b":
            g = np.einsum("d...,dr->r...", g, np.float64(before[f"{where}/lora_a"]))
        [rate] = [rate for part, rate in rates.items() if name.startswith(part)]
        expected = x - rate * (g + 0.1 * np.float64(x) * (kind != "bias"))
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(moved) == 2 + 2 * 4 * (2 if freeze == "none" else 1)


@pytest.mark.parametrize("name", ["sgd", "adam", "muon"])
def test_frozen_parameters_have_no_optimizer_state(name):
    for freeze, prefixes in TRAINED.items():
        settings = optim_config(name=name, freeze=freeze)
        state = jax.eval_shape(lambda settings=settings: update_of(settings)[1])
        held = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
        sizes = {k: x.size for k, x in flat(state.params).items() if k.startswith(prefixes)}
        moments = {"sgd": 1, "adam": 2, "muon": 2}[name] * sum(sizes.values())
        if name == "muon":  # of matrices in the blocks, only the momentum; and 3 coefficients
            moments += 3 - sum(
                size for k, size in sizes.items() if "block" in k and k.endswith("kernel")
            )
        assert held == moments


def test_a_plan_shows_that_frozen_parameters_have_no_gradient_and_no_state():
    """A backward pass takes two forward passes: half of them for half of the blocks."""

    def planned(freeze):
        config = default()
        config.model.update(
            variant="Ti/16", width=64, depth=2, mlp_dim=256, num_heads=2, patch_size=8
        )
        config.update(batch_size=8, total_steps=10)
        config.data.image_size = 32
        if freeze == "lora":
            config.model.lora_rank = 1
        else:
            config.optim.freeze = freeze
        return plan(config, "local", num_classes=5, images=None)

    whole, half, probe, lora = (planned(x) for x in ("none", 1, "encoder", "lora"))
    for report, share in ((half, 2 / 3), (probe, 1 / 3), (lora, 2 / 3)):
        flops = report["compiled_flops_per_step"] / whole["compiled_flops_per_step"]
        assert flops == pytest.approx(share, abs=0.03)
    state = 4 * whole["parameters"]  # bytes; of SGD's momentum, too, if everything is trained
    for report in (probe, lora):
        saved = whole["arguments_bytes"] - report["arguments_bytes"]
        assert saved == pytest.approx(state, rel=0.05 if report is lora else 0.02)
    assert probe["temporaries_bytes"] < half["temporaries_bytes"] < whole["temporaries_bytes"]


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_both_strategies_take_the_same_steps(batch, lora_rank):
    settings = optim_config(freeze=1, layer_decay=0.5, head_lr=0.2)
    update, state = update_of(settings, lora_rank, polyak=0.8)
    one_device, expected = jax.jit(update), state
    for _ in range(2):
        expected, _ = one_device(expected, batch, jax.random.key(0))
    for strategy in (parallel.pmap, functools.partial(parallel.sharded, min_elements=64)):
        program = strategy(update=update, key=jax.random.key(0))
        found = program.place(state)
        for _ in range(2):
            found, _ = program.update(found, program.put_batch(batch))
        found = program.gather(found)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            (found.params, found.average, found.opt_state),
            (expected.params, expected.average, expected.opt_state),
        )


@pytest.mark.parametrize("freeze", ["none", 1])
def test_layer_decay_scales_the_whole_update_of_adamw(freeze):
    """Each parameter alone, by AdamW of a rate of its own in float64, as BEiT's groups do."""
    settings = optim_config(
        name="adam", weight_decay=0.3, clip_norm=0.0, layer_decay=0.5, head_lr=2.0, freeze=freeze
    )
    rule = optim.optimizer(settings, lambda count: 0.5)
    rng = np.random.default_rng(0)
    params, _ = split_params(random_model(), freeze)
    state, found = rule.init(params), params
    values = {name: [np.float64(x), 0.0, 0.0] for name, x in flat(params).items()}
    # MAE's num_layers - layer_id, by the beginning of the name; the head has its own rate.
    exponents = {
        **dict.fromkeys(STEM, 3),
        BLOCK_0: 2,
        BLOCK_1: 1,
        "Transformer/encoder_norm": 0,
    }
    for t in (1, 2):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        updates, state = rule.update(grads, state, found)
        found = jax.tree.map(jnp.add, found, updates)
        for name, g in flat(grads).items():
            x, m, v = values[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.float64(g) ** 2
            direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            [rate] = [0.5 * 0.5**k for part, k in exponents.items() if name.startswith(part)] or [2]
            x = x - rate * (direction + 0.3 * x * name.endswith("kernel"))
            values[name] = [x, m, v]
    for name, x in flat(found).items():
        np.testing.assert_allclose(x, values[name][0], rtol=1e-4, atol=1e-5)


@pytest.mark.peers
def test_layer_decay_is_timms():
    """But timm counts the last norm to the last block; BEiT and MAE don't."""
    pytest.importorskip("peers")
    timm_optim = pytest.importorskip("timm.optim")
    from timm.models.vision_transformer import VisionTransformer

    sizes = dict(embed_dim=24, depth=3, num_heads=2, mlp_ratio=2, img_size=16, patch_size=8)
    model = VisionTransformer(num_classes=CLASSES, **sizes)
    scales = {
        id(x): group["lr_scale"]
        for group in timm_optim.param_groups_layer_decay(model, layer_decay=0.75)
        for x in group["params"]
    }
    theirs = {name: scales[id(x)] for name, x in model.named_parameters()}
    shapes = parameter_shapes(tiny(depth=3), IMAGE)
    settings = optim_config(layer_decay=0.75)
    ours = flat(rate_factors(shapes, settings))
    names = {
        "cls": "cls_token",
        "Transformer/posembed_input": "pos_embed",
        "embedding": "patch_embed",
        **{f"Transformer/encoderblock_{i}": f"blocks.{i}" for i in range(3)},
        "head": "head",
    }
    for name, factor in ours.items():
        if not name.startswith("Transformer/encoder_norm"):
            [other] = [names[part] for part in names if name.startswith(part)]
            found = {x for key, x in theirs.items() if key.startswith(other)}
            assert found and all(x == pytest.approx(factor) for x in found)
    assert ours["Transformer/encoder_norm/scale"] == 1


@pytest.mark.parametrize(
    ("variant", "attributes", "layers"),
    [
        (
            "Ti/16",
            dict(pool="map", registers=2, pre_norm=True, projection=8),
            {
                0: {"embedding", "posembed_input", "registers", "pre_norm"},
                3: {"encoder_norm", "MAPHead_0", "projection", "head"},
            },
        ),
        (
            "Ti/16",
            dict(positions_at="layers", patch_norm=True, pre_logits=True),
            {
                0: {"embedding", "cls", "patch_norm"},
                1: {"posembed_0"},
                2: {"posembed_1"},
                3: {"encoder_norm", "pre_logits", "head"},
            },
        ),
        (
            "Ti/16",
            dict(pool="gap", final_norm="after_pool", positions="relative"),
            {0: {"embedding"}, 3: {"fc_norm", "head"}},
        ),
        (
            "R26+S/32",
            dict(stem=(1,)),
            {
                0: {"embedding", "cls", "posembed_input", "conv_root", "gn_root", "block1"},
                3: {"encoder_norm", "head"},
            },
        ),
    ],
)
def test_every_parameter_has_its_layer(variant, attributes, layers):
    """A decay of 1/2 shows the layers; and what is frozen by a number is up to that layer."""
    shapes = parameter_shapes(models.build(variant, num_classes=3, depth=2, **attributes), 64)
    factors = rate_factors(shapes, optim_config(layer_decay=0.5))
    found = {}
    for path, factor in flatten_dict(factors).items():
        part = path[1] if path[0] == "Transformer" else path[0]
        found.setdefault(3 + round(np.log2(factor)), set()).add(part)
    expected = {layer: set(layers.get(layer, ())) for layer in range(4)}
    expected[1] |= {"encoderblock_0"}
    expected[2] |= {"encoderblock_1"}
    assert found == expected
    for freeze in range(3):
        trained, frozen = split_params(shapes, freeze)
        frozen_parts = {x for layer in range(freeze + 1) for x in found[layer]}
        assert {key for tree in (frozen, frozen.get("Transformer", {})) for key in tree} - {
            "Transformer"
        } == frozen_parts
        assert join_params(trained, frozen) == shapes


def test_masked_patches_decay_as_the_stem_and_the_head():
    predictor = masked_patches(tiny(num_classes=0, depth=2)).model
    factors = rate_factors(parameter_shapes(predictor, IMAGE), optim_config(layer_decay=0.5))
    assert factors["mask_token"] == 1 / 8
    assert set(factors["patch_head"].values()) == {1}


def test_the_encoder_of_a_resnet_is_all_but_its_head():
    shapes = parameter_shapes(models.build("R50x1", num_classes=3, layers=(1, 1)), 32)
    trained, frozen = split_params(shapes, "encoder")
    assert set(trained) == {"head"} and set(trained) | set(frozen) == set(shapes)
    factors = rate_factors(shapes, optim_config(head_lr=5.0))
    assert {name: set(jax.tree.leaves(tree)) for name, tree in factors.items()} == {
        **{name: {1.0} for name in frozen},
        "head": {10.0},
    }
