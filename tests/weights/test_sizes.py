"""Sizes are read from the arrays; what no array shows is asked for, or assumed and said."""

import logging

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from tiny_weights import assert_same, random_params

from vit_jax import models
from vit_jax.models.params import parameter_shapes
from vit_jax.weights.api import load, load_params, save_params
from vit_jax.weights.shapes import attributes_of
from vit_jax.weights.summary import describe

ODD = dict(width=128, depth=3, mlp_dim=100, num_heads=2, patch_size=(4, 8))


def without_record(path):
    """Leaves nothing in a safetensors file but its arrays."""
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)


@pytest.fixture
def odd(tmp_path):
    params = random_params("B/16", (16, 32), **ODD)
    save_params(params, tmp_path / "x.safetensors", variant="B/16", image_size=(16, 32), **ODD)
    save_params(params, tmp_path / "x.npz", variant="B/16", image_size=(16, 32), **ODD)
    without_record(tmp_path / "x.safetensors")
    with np.load(tmp_path / "x.npz") as file:
        np.savez(tmp_path / "x.npz", **file)
    return tmp_path, params


@pytest.mark.parametrize("ending", ["x.npz", "x.safetensors"])
def test_sizes_of_no_variant_are_those_of_the_arrays(odd, ending):
    folder, params = odd
    found = load(folder / ending)
    assert_same(load_params(folder / ending), params)
    model = found.model()
    assert {name: getattr(model, name) for name in ODD} == ODD
    for name in ("width=128", "depth=3", "mlp_dim=100", "patch_size=(4, 8)"):
        assert name in describe(found)


def test_the_usual_number_of_heads_is_said(odd, caplog):
    folder, _ = odd
    with caplog.at_level(logging.WARNING):
        assert load(folder / "x.safetensors").model().num_heads == 2
    (text,) = [r.getMessage() for r in caplog.records]
    assert str(folder / "x.safetensors") in text
    assert "attention heads" in text and "2 heads" in text and "mean" in text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load(folder / "x.npz")  # its arrays show the heads, and its images are in [-1, 1]
    assert not caplog.records


def test_heads_can_be_given(odd):
    folder, _ = odd
    assert load(folder / "x.safetensors", num_heads=4).model().num_heads == 4
    with pytest.raises(ValueError, match="num_heads=3"):
        load(folder / "x.safetensors", num_heads=3)


def test_heads_that_nothing_says_are_asked_for(tmp_path):
    sizes = dict(ODD, width=24)
    params = random_params("B/16", (16, 32), **sizes)
    save_params(params, tmp_path / "x.safetensors", variant="B/16", image_size=(16, 32), **sizes)
    without_record(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="width of 24: give num_heads"):
        load(tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors", num_heads=2).model().num_heads == 2


def test_a_variant_is_a_check(odd):
    folder, _ = odd
    with pytest.raises(ValueError, match="isn't a B/16"):
        load(folder / "x.npz", variant="B/16")


def test_a_file_with_fewer_blocks_says_so(tmp_path):
    params = random_params("Ti/16", num_classes=0)
    del params["Transformer"]["encoderblock_11"]
    np.savez(tmp_path / "x.npz", **flatten_dict(params, sep="/"))
    assert "Ti/16 with depth=11" in describe(load(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="token", class_tokens=2),
        dict(pool="gap", class_tokens=2),
        dict(pool="token+gap", class_tokens=1),
        dict(pool="token+gap", class_tokens=2, final_norm="after_pool", projection=7),
        dict(pool="gap", class_tokens=1, final_norm="after_pool"),
        dict(pool="map", class_tokens=1),
    ],
    ids=str,
)
def test_the_pooling_is_seen_in_what_reads_its_result(options):
    model = models.build("Ti/16", num_classes=3, depth=1, **options)
    tree = flatten_dict(parameter_shapes(model, 32), sep="/")
    found = attributes_of({name: x.shape for name, x in tree.items()})
    assert {"class_tokens": 1, **found}["class_tokens"] == options["class_tokens"]
    assert found["pool"] == options["pool"]
