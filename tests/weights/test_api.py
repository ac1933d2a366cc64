"""Weights loaded and adapted in one call."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_weights import VIT, assert_same, published, random_params

from vit_jax import models
from vit_jax.models.positions import resize_positions
from vit_jax.weights.api import adapt, load, load_params, save_params
from vit_jax.weights.summary import describe


def test_loading_for_fine_tuning(tmp_path):
    """A new head of zeros, no pre_logits, and position embeddings of another grid."""
    _, params = published(tmp_path, pre_logits=True)
    path, said = tmp_path / "published.npz", dict(variant="B/16", **VIT)
    found = load_params(path, image_size=(48, 40), num_classes=7, **said)
    assert "pre_logits" not in found
    assert found["head"]["kernel"].shape == (24, 7) and not found["head"]["kernel"].any()
    assert not found["head"]["bias"].any()
    table = params["Transformer"]["posembed_input"]["pos_embedding"]
    for method in ("linear", "cubic"):
        found = load_params(path, image_size=(48, 40), resize=method, **said)
        np.testing.assert_array_equal(
            found["Transformer"]["posembed_input"]["pos_embedding"],
            resize_positions(table, (4, 4), (6, 5), method),
        )
        np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
        np.testing.assert_array_equal(found["pre_logits"]["kernel"], params["pre_logits"]["kernel"])
    assert not {"head", "pre_logits"} & set(load_params(path, num_classes=0, **said))


def test_loading_into_a_model_pooled_otherwise(tmp_path):
    _, params = published(tmp_path)
    said = dict(variant="B/16", **VIT)
    found = load_params(tmp_path / "published.npz", pool="gap", **said)
    table = params["Transformer"]["posembed_input"]["pos_embedding"]
    assert "cls" not in found
    np.testing.assert_array_equal(
        found["Transformer"]["posembed_input"]["pos_embedding"], table[:, 1:]
    )
    save_params(found, tmp_path / "gap.npz", variant="B/16", format="npz", **VIT)
    again = load_params(tmp_path / "gap.npz", pool="token", **said)
    assert not again["cls"].any()
    assert not again["Transformer"]["posembed_input"]["pos_embedding"][:, 0].any()


def test_positions_of_an_unknown_grid(tmp_path):
    """A table of 4 x 6 patches may be of other grids, too: it is taken as it is or not at all."""
    params = random_params("B/16", (32, 48), **VIT)
    save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    said = dict(variant="B/16", **VIT)
    assert load(tmp_path / "x.npz", **said).image_shape is None
    assert_same(load_params(tmp_path / "x.npz", image_size=(48, 32), **said), params)
    without_head = {k: v for k, v in params.items() if k != "head"}
    assert_same(load_params(tmp_path / "x.npz", num_classes=0, **said), without_head)
    with pytest.raises(ValueError, match=r"25 rows, of patches in a grid .*not square.*48x48"):
        load_params(tmp_path / "x.npz", image_size=384, **said)
    with pytest.raises(ValueError, match="the image size is not known"):
        save_params(params, tmp_path / "hf", variant="B/16", format="hf", **VIT)
    save_params(params, tmp_path / "hf", variant="B/16", format="hf", image_size=(32, 48), **VIT)
    assert load(tmp_path / "hf").image_shape == (32, 48)


@pytest.mark.slow
def test_names_are_nested_as_linen_nests_them(tmp_path):
    _, params = published(tmp_path)
    found = load_params(tmp_path / "published.npz", variant="B/16", **VIT)
    model = models.build("B/16", num_classes=3, **VIT)
    images = np.zeros((1, 32, 32, 3), np.float32)
    fresh = model.init(jax.random.key(0), images)["params"]
    assert jax.tree.structure(found) == jax.tree.structure(unflatten_dict(flatten_dict(fresh)))
    logits = model.apply({"params": found}, images)
    np.testing.assert_array_equal(logits, model.apply({"params": params}, images))


def test_load_adapts_as_adapt_does(tmp_path):
    published(tmp_path, pre_logits=True)
    path, said = tmp_path / "published.npz", dict(variant="B/16", **VIT)
    changes = dict(image_size=(48, 40), num_classes=7, pool="gap", resize="cubic")
    found, expected = load(path, **said, **changes), adapt(load(path, **said), **changes)
    assert (found.num_classes, found.image_shape, found.grid) == (7, (48, 40), (6, 5))
    assert found.config.to_json() == expected.config.to_json()
    assert_same(*(jax.tree.map(np.asarray, x.params) for x in (found, expected)))


def test_the_pooling_decides_where_the_table_of_positions_does_not_show_it(tmp_path):
    """A table of 24 rows without a class token: of 4 x 6 patches, or its token is missing."""
    params = random_params("B/16", (32, 48), pool="gap", **VIT)
    np.savez(tmp_path / "x.npz", **flatten_dict(params, sep="/"))
    said = dict(variant="B/16", **VIT)
    with pytest.raises(ValueError, match="cls is missing"):
        load(tmp_path / "x.npz", **said)
    assert_same(load_params(tmp_path / "x.npz", pool="gap", **said), params)


def test_parameters_are_read_when_they_are_needed(tmp_path):
    """So a file can be described without reading it."""
    published(tmp_path)
    found = load(tmp_path / "published.npz", variant="B/16", **VIT)
    (tmp_path / "published.npz").unlink()
    assert describe(found).startswith("B/16 with depth=2 and ")
    assert ", 32 x 32 pixels, 3 classes: " in describe(found)
    assert "head/kernel  " in describe(found, parameters=True)
    with pytest.raises(ValueError, match=r"is damaged: .*No such file"):
        np.asarray(found.params["head"]["kernel"])
