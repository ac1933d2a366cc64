"""Fitting parameters to another grid, head and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy import ndimage

from vit_jax import models
from vit_jax.models.params import parameter_shapes
from vit_jax.models.positions import resize, resize_positions
from vit_jax.weights import surgery

TINY = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)


def tiny_params(seed=0, image=(16, 16), num_classes=3, **overrides):
    """A tiny ViT's parameters, every one random."""
    model = models.build("Ti/16", num_classes=num_classes, **{**TINY, **overrides})
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(model, image)
    return model, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def head_of(params):
    return {name: params[name] for name in surgery.HEAD if name in params}


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (12, 12)), ((6, 4), (3, 9)), ((2, 2), (5, 3))])
@pytest.mark.parametrize("tokens", [0, 1])
def test_positions_resize_like_corner_aligned_interpolation(rng, old, new, tokens):
    """Against interpolation by hand, and the public loader's call."""
    table = rng.normal(size=(1, tokens + old[0] * old[1], 5)).astype(np.float32)
    resized = resize_positions(table, old, new)
    np.testing.assert_array_equal(resized[:, :tokens], table[:, :tokens])
    grid, result = table[0, tokens:].reshape(*old, 5), resized[0, tokens:].reshape(*new, 5)
    for r in range(new[0]):
        for c in range(new[1]):
            y, x = r * (old[0] - 1) / (new[0] - 1), c * (old[1] - 1) / (new[1] - 1)
            top, left = min(int(y), old[0] - 2), min(int(x), old[1] - 2)
            fy, fx = y - top, x - left
            square = grid[top : top + 2, left : left + 2]
            expected = np.einsum("y,x,yxd->d", [1 - fy, fy], [1 - fx, fx], square)
            np.testing.assert_allclose(result[r, c], expected, atol=1e-5)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    np.testing.assert_array_equal(result, ndimage.zoom(grid, zoom, order=1))


def corner_aligned(table, length):
    """Linear interpolation of the first axis in float64."""
    at = np.linspace(0, len(table) - 1, length)
    return np.stack([np.interp(at, np.arange(len(table)), x) for x in table.T], axis=-1)


PUBLISHED_PAIRS = [(14, 24), (7, 12), (14, 32), (16, 37), (24, 14)]  # of patches of 16, 32 and 14


def test_no_pair_of_sizes_loses_its_edge(rng):
    """The public loader makes the last row and column zero for 196 of these pairs."""
    lost = 0
    for old in range(2, 61):
        tables = rng.normal(1, 0.1, (old, 2)).astype(np.float32)
        tall, wide = (np.repeat(tables[None], 3, 0), np.repeat(tables[:, None], 3, 1))
        for new in range(2, 121):
            expected = corner_aligned(tables.astype(np.float64), new)
            np.testing.assert_allclose(resize(tables, (new, 2)), expected, atol=2e-5)
            if (old + new) % 7 and (old, new) not in PUBLISHED_PAIRS:
                continue  # tables of 2-D grids are resized by the same function
            flat = resize_positions(tall.reshape(1, -1, 2), (3, old), (2, new))
            np.testing.assert_allclose(flat.reshape(2, new, 2)[1], expected, atol=2e-5)
            flat = resize_positions(wide.reshape(1, -1, 2), (old, 3), (new, 2))
            np.testing.assert_allclose(flat.reshape(new, 2, 2)[:, 1], expected, atol=2e-5)
            public = ndimage.zoom(tables, (new / old, 1), order=1)
            lost += not public[-1].any()
            if public[-1].any():
                np.testing.assert_array_equal(resize(tables, (new, 2)), public)
            else:
                assert (old, new) not in PUBLISHED_PAIRS
    assert lost > 20


def test_other_ways_to_resize_are_refused(rng):
    table = rng.normal(size=(1, 5, 3)).astype(np.float32)
    with pytest.raises(ValueError, match="no way to resize called 'nearest': linear or cubic"):
        resize_positions(table, (2, 2), (3, 3), "nearest")


def test_a_linear_ramp_stays_a_ramp():
    """Corners keep their values: position embeddings at the border stay border embeddings."""
    ramp = np.linspace(0, 1, 4)[None, :, None] * np.ones((3, 1, 1))
    resized = resize_positions(ramp.reshape(1, 12, 1), (3, 4), (3, 8))
    np.testing.assert_allclose(resized.reshape(3, 8), np.tile(np.linspace(0, 1, 8), (3, 1)))


def adapt(params, wanted, old_grid=(2, 2), new_grid=(4, 3), **kwargs):
    return surgery.adapt_params(
        params, wanted, old_grid=old_grid, new_grid=new_grid, where="the old run", **kwargs
    )


def test_adapting_takes_everything_but_the_head():
    _, old = tiny_params(pre_logits=True)
    model, _ = tiny_params(num_classes=9)
    fresh = model.init(jax.random.key(1), jnp.zeros((1, 32, 24, 3)))["params"]
    adapted = adapt(old, fresh, head=head_of(fresh))
    assert jax.tree.map(np.shape, adapted) == jax.tree.map(np.shape, dict(fresh))
    assert not adapted["head"]["kernel"].any()
    assert_equal(adapted["embedding"], old["embedding"])
    assert_equal(adapted["Transformer"]["encoderblock_0"], old["Transformer"]["encoderblock_0"])


def test_adapting_names_what_does_not_fit():
    (_, old), (_, fresh) = tiny_params(), tiny_params(width=48)
    with pytest.raises(ValueError, match=r"the old run doesn't.*cls has the shape \(1, 1, 24\)"):
        adapt(old, fresh, new_grid=(2, 2), head=head_of(fresh))


def test_without_a_new_head_the_old_one_stays():
    (_, old), (_, wanted) = tiny_params(pre_logits=True), tiny_params(1, (32, 24), pre_logits=True)
    adapted = adapt(old, wanted)
    assert_equal(head_of(adapted), head_of(old))


def test_every_layers_table_is_resized():
    options = dict(positions_at="layers", depth=3)
    (_, old), (_, wanted) = tiny_params(**options), tiny_params(1, (32, 24), **options)
    adapted = adapt(old, wanted)["Transformer"]
    for i in range(3):
        expected = resize_positions(
            old["Transformer"][f"posembed_{i}"]["pos_embedding"], (2, 2), (4, 3)
        )
        assert_equal(adapted[f"posembed_{i}"]["pos_embedding"], expected)


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_two_dimensional_tables_resize_as_the_table_they_stand_for(method):
    """X and Y tables resized one by one, against the whole grid resized at once."""
    options = dict(positions="2d", pool="gap")
    (_, old), (_, wanted) = tiny_params(0, (16, 24), **options), tiny_params(1, (40, 32), **options)

    def table(params):
        p = params["Transformer"]["posembed_input"]
        return np.array(
            [[np.concatenate([x, y]) for x in p["x_embedding"]] for y in p["y_embedding"]]
        )

    adapted = adapt(old, wanted, (2, 3), (5, 4), method=method)
    whole = resize_positions(table(old).reshape(1, 6, 24), (2, 3), (5, 4), method)
    np.testing.assert_allclose(table(adapted).reshape(1, 20, 24), whole, atol=1e-5)


@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_a_class_token_is_dropped_or_added_with_its_position(rng, positions):
    """Without the token, patches see what they saw; with it, it starts as nothing."""
    options = dict(positions=positions)
    (_, old), (model, wanted) = tiny_params(**options), tiny_params(1, pool="gap", **options)
    dropped = adapt(old, wanted, new_grid=(2, 2))
    encoder = old["Transformer"]["posembed_input"]
    expected = (
        {"pos_embedding": encoder["pos_embedding"][:, 1:]}
        if positions == "1d"
        else {k: v for k, v in encoder.items() if k != "token_embedding"}
    )
    assert_equal(dropped["Transformer"]["posembed_input"], expected)
    logits = model.apply({"params": dropped}, rng.normal(size=(2, 16, 16, 3)))
    assert np.isfinite(logits).all()

    again = adapt(dropped, old, new_grid=(2, 2))
    flat, before = flatten_dict(again, sep="/"), flatten_dict(old, sep="/")
    assert not flat["cls"].any()
    for name in flat:
        if "posembed" not in name and name != "cls":
            assert_equal(flat[name], before[name])
        elif name.endswith("token_embedding"):
            assert not flat[name].any()
        elif name.endswith("pos_embedding"):
            assert not flat[name][:, 0].any()
            assert_equal(flat[name][:, 1:], before[name][:, 1:])


def test_a_token_is_dropped_before_positions_are_resized():
    (_, old), (_, wanted) = tiny_params(), tiny_params(1, (32, 24), pool="gap")
    found = adapt(old, wanted)["Transformer"]["posembed_input"]["pos_embedding"]
    table = old["Transformer"]["posembed_input"]["pos_embedding"]
    assert_equal(found, resize_positions(table[:, 1:], (2, 2), (4, 3)))


def test_the_same_number_of_patches_in_another_arrangement_is_resized():
    (_, old), (_, wanted) = tiny_params(0, (16, 48)), tiny_params(1, (32, 24))
    found = adapt(old, wanted, (2, 6), (4, 3))["Transformer"]["posembed_input"]["pos_embedding"]
    table = old["Transformer"]["posembed_input"]["pos_embedding"]
    assert found.shape == table.shape and (found != table).any()
    assert_equal(found, resize_positions(table, (2, 6), (4, 3)))


def test_relative_positions_and_unknown_grids_can_not_be_resized():
    options = dict(positions="relative")
    (_, old), (_, wanted) = tiny_params(**options), tiny_params(1, (32, 24), **options)
    with pytest.raises(ValueError, match="offset_embedding has embeddings of 9 offsets, the model"):
        adapt(old, wanted)
    (_, old), (_, wanted) = tiny_params(0, (16, 24)), tiny_params(1, (32, 24))
    with pytest.raises(ValueError, match="has 7 rows, of patches in a grid that is not square"):
        adapt(old, wanted, old_grid=None)
