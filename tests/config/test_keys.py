"""Types and names of keys, and what is derived from their values."""

import math
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.config.keys import (
    all_keys,
    image_shape,
    is_folder,
    look_up,
    model_attributes,
    no_such_key,
    overlap,
    run_config,
    short_repr,
    type_problem,
    what_fits,
)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("optim.rl", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("optim.epochs", "epochs"),
        ("image_size", "data.image_size"),
        ("data.batch_size", "batch_size"),
        ("checkpoints", "checkpoint"),
    ],
)
def test_the_nearest_key_is_looked_for_in_all_sections(key, nearest):
    assert no_such_key(key) == f"there is no key {key}; did you mean {nearest}?"
    assert no_such_key(nearest) == ""


def test_a_key_unlike_all_others_has_no_nearest():
    assert no_such_key("xylophone") == "there is no key xylophone."


def test_what_fits_a_key_can_be_asked_for():
    assert what_fits("optim.lr") == "a finite number"
    assert what_fits("sweep.lr").startswith("finite numbers, such as (0.001,")
    assert what_fits("data.flip") == "True or False"
    assert what_fits("optim") == "a section, a ConfigDict"


@pytest.mark.parametrize("key", list(all_keys(default())))
def test_every_default_is_of_its_own_type(key):
    assert type_problem(key, default()[key]) == ""


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("optim.lr", 1, True),
        ("optim.lr", math.nan, False),
        ("optim.lr", True, False),
        ("optim.lr", None, False),
        ("epochs", None, True),
        ("batch_size", 2.0, False),
        ("seed", 2**31 - 1, True),
        ("seed", 2**31, False),
        ("data.image_size", [32, 48], True),
        ("data.image_size", (32,), False),
        ("sweep.lr", (1, 0.5), True),
        ("fewshot.shots", (1, 0.5), False),
        ("model.stem", (1,) * 101, False),
        ("optim.freeze", 3, True),
        ("optim.freeze", "encoder", True),
        ("optim.freeze", 1.5, False),
        ("optim.freeze", None, False),
        ("compare.runs", ConfigDict(), True),
        ("compare.runs", {}, False),
    ],
)
def test_a_value_is_of_a_keys_type_or_refused(key, value, fits):
    problem = type_problem(key, value)
    if fits:
        assert problem == ""
    else:
        assert problem.startswith(f"{key}={short_repr(value)} must be {what_fits(key)}")


def test_long_values_are_cut():
    assert short_repr((1, 2)) == "(1, 2)"
    assert short_repr("x" * 200) == f"'{'x' * 99}…"
    assert short_repr(10**5000) == "<int>"


def test_all_keys_come_in_full_with_their_sections():
    config = ConfigDict({"a": {"b": {"c": 1}}, "compare": {"runs": {"x": {"a": 1}}}, "d": 2})
    assert set(all_keys(config)) == {"a", "a.b", "a.b.c", "compare", "compare.runs", "d"}


def test_keys_overlap_where_one_holds_the_other():
    assert overlap("optim", "optim.lr") and overlap("optim.lr", "optim") and overlap("seed", "seed")
    assert not overlap("optim.lr", "optim.lrr") and not overlap("optim.lr", "optim.beta1")


def test_a_key_that_is_missing_is_looked_up_as_the_other_value():
    config = ConfigDict({"a": {"b": 1}})
    assert (look_up(config, "a.b", 5), look_up(config, "a.c", 5), look_up(config, "a.b.c", 5)) == (
        1,
        5,
        5,
    )


def test_an_image_size_is_one_side_or_two():
    assert image_shape(224) == (224, 224)
    assert image_shape((32, 48)) == image_shape([32, 48]) == (32, 48)


def test_attributes_of_the_model_are_those_that_are_set():
    config = default()
    assert model_attributes(config) == {}
    config.model.depth, config.model.dropout = 2, 0.0
    assert model_attributes(config) == {"depth": 2, "dropout": 0.0}


def test_folders_and_names_of_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "cifar10").write_text("a file, not a folder")
    for name in ("photos", "photos/", "/no/such/folder", "./photos", "..", "~/photos", "~nobody"):
        assert is_folder(name)
    for name in ("cifar10", "vtab/cifar100", "", "no", "x" * 100_000, "null\0", "\ud800"):
        assert not is_folder(name)


def test_a_run_to_compare_has_its_own_keys_and_else_those_that_all_share():
    config, expected = default(), default()
    config.job, config.batch_size, config.compare.seeds = "compare", 8, 7
    config.compare.runs = ConfigDict({"a": {"optim": {"lr": 0.5}}, "b": {"optim": {"lrr": 1}}})
    expected.batch_size, expected.optim.lr = 8, 0.5
    assert run_config(config, "a") == expected
    with pytest.raises(KeyError, match="lrr"):
        run_config(config, "b")


def test_config_imports_no_other_room_and_not_jax():
    """Configuration files and the command line are read before anything heavy is imported."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from vit_jax import config; config.default(); config.no_such_key('x'); "
            "print(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    modules = done.stdout.split()
    rooms = {name.split(".")[1] for name in modules if name.startswith("vit_jax.")}
    assert rooms <= {"common", "config"}
    heavy = {"jax", "flax", "grain", "tensorflow_datasets", "cv2", "orbax", "matplotlib"}
    assert not heavy & {name.split(".")[0] for name in modules}
