"""Every format: written and read again, noted, warned of, and never written over something."""

import os

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY
from tiny_weights import ENDINGS, STEM, VIT, assert_same, random_params

from vit_jax import models
from vit_jax.weights import safetensors as state_dicts
from vit_jax.weights.api import FORMATS, load, load_params, save, save_params
from vit_jax.weights.formats import format_of
from vit_jax.weights.loading import loading_lines

MODELS = {
    "vit": ("B/16", VIT),
    "headless": ("B/16", dict(VIT, num_classes=0)),
    "pre_logits": ("B/16", dict(VIT, pre_logits=True)),
    "pooler": ("B/16", dict(VIT, pre_logits=True, num_classes=0)),
    "gap": ("B/16", dict(VIT, pool="gap")),
    "layers": ("B/16", dict(VIT, positions_at="layers")),
    "2d": ("B/16", dict(VIT, positions="2d", image=(32, 48))),
    "relative": ("B/16", dict(VIT, positions="relative")),
    "none": ("B/16", dict(VIT, positions="none")),
    "axial": ("Axial-B/16", VIT),
    "hybrid": ("R50+B/16", dict(STEM, stem=(1, 2))),
    "root": ("R+Ti/16", dict(STEM, stem=(), patch_size=4)),
    "bit": ("R50x1", dict(layers=(2, 1))),
    "axial-resnet": ("AxialResNet50", dict(layers=(1, 1))),
}


SLOW = pytest.mark.slow
# What a format has no place for.
IMPOSSIBLE = {
    "npz": (),
    "orbax": (),
    "timm": ("layers", "2d", "relative", "axial", "axial-resnet"),
    "hf": (
        "pre_logits",
        "layers",
        "2d",
        "relative",
        "none",
        "axial",
        "hybrid",
        "root",
        "bit",
        "axial-resnet",
    ),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "relative",
        *(pytest.param(n, marks=SLOW) for n in MODELS if n not in ("vit", "relative")),
    ],
)
def test_written_and_read_again_every_bit_is_the_same(tmp_path, name, format):
    variant, options = MODELS[name]
    params = random_params(variant, **options)
    path = tmp_path / ENDINGS[format]
    options = {k: v for k, v in options.items() if k not in ("image", "num_classes")}
    if name in IMPOSSIBLE[format]:
        with pytest.raises(ValueError, match=r"has no place for|no class of transformers"):
            save_params(params, path, variant=variant, format=format, **options)
        assert not list(tmp_path.iterdir())
        return
    save_params(params, path, variant=variant, format=format, **options)
    said = options if format == "npz" else {}  # the other formats note sizes that no variant has
    found = load(path, variant=variant if said else None, **said)
    assert_same(load_params(path, variant=variant if said else None, **said), params)
    model, expected = found.model(), models.build(variant, num_classes=0, **options)
    for key in ("pool", "pre_logits", "positions", "positions_at", "stem", "axial", "layers"):
        assert getattr(model, key, None) == getattr(expected, key, None)
    assert_same(jax.tree.map(np.asarray, found.params), params)


@pytest.mark.parametrize("format", ["timm", "orbax", "hf"])
def test_what_weights_are_computed_with_is_noted(tmp_path, format):
    params = random_params("B/16", **VIT)
    mathematics = dict(gelu="exact", norm_epsilon=1e-3)
    save_params(
        params,
        tmp_path / ENDINGS[format],
        variant="B/16",
        format=format,
        **VIT,
        **mathematics,
        class_names=("a", "b", "c"),
    )
    found = load(tmp_path / ENDINGS[format])
    assert {key: getattr(found.model(), key) for key in mathematics} == mathematics
    assert found.class_names == ("a", "b", "c") and found.image_shape == (32, 32)


def test_formats_that_can_not_tell_are_warned_of(tmp_path, caplog):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    assert not caplog.text
    save_params(params, tmp_path / "y.npz", variant="B/16", format="npz", **VIT, gelu="exact")
    assert "y.npz: the file can't say that its model has gelu=exact" in caplog.text


@pytest.mark.parametrize(
    ("variant", "options", "text"),
    [
        ("R50x1", dict(layers=(1,)), "has kernel_epsilon=1e-10, which"),
        ("R50x1", dict(layers=(1,), kernel_epsilon=0.5), "has kernel_epsilon=0.5, which"),
        ("R50+B/16", dict(STEM, stem=(1, 2), gelu="exact"), "has 1e-05 added to the deviation of"),
    ],
)
def test_the_epsilon_in_effect_is_named(tmp_path, caplog, variant, options, text):
    """None stands for a number, which other readers don't know."""
    params = random_params(variant, **options)
    save_params(params, tmp_path / "x.safetensors", variant=variant, format="timm", **options)
    assert text in caplog.text and "None" not in caplog.text
    if variant == "R50x1":
        lines = loading_lines(load(tmp_path / "x.safetensors"), "x.safetensors", "timm")
        assert f"StdConv2d, eps={options.get('kernel_epsilon', 1e-10)})" in lines


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a\udce9.npz", "npz"),
        ("a\udce9.safetensors", "timm"),
        pytest.param("a\udce9.pth", "timm", marks=pytest.mark.peers),
        ("a\udce9", "hf"),
    ],
)
def test_names_that_are_not_utf8_are_written_and_read(tmp_path, name, format):
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / name, variant="B/16", format=format, **VIT)
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]
    assert_same(load_params(tmp_path / name), params)


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_a_state_dict_is_opened_once(tmp_path, monkeypatch, format):
    """A pickled one is read whole each time."""
    save_params(random_params("B/16", **VIT), tmp_path / "x", variant="B/16", format=format, **VIT)
    path = tmp_path / "x" / "model.safetensors"
    opened, open_one = [], state_dicts._open_safetensors
    monkeypatch.setattr(
        state_dicts, "_open_safetensors", lambda path: opened.append(path) or open_one(path)
    )
    load(path)
    assert opened == [path]


def test_orbax_says_that_it_takes_unicode_alone(tmp_path):
    params = random_params("B/16", **VIT)
    with pytest.raises(ValueError, match=r"a\\xe9 has bytes in its name that are not UTF-8"):
        save_params(params, tmp_path / "a\udce9", variant="B/16", format="orbax", **VIT)
    assert not list(tmp_path.iterdir())


def test_positions_shared_by_layers_are_for_orbax_alone(tmp_path):
    """Their names are those of positions added once, so other formats would lose them silently."""
    options = dict(VIT, positions_at="shared")
    params = random_params("B/16", **options)
    for format in ("npz", "timm", "hf"):
        with pytest.raises(ValueError, match="which only Orbax can record"):
            save_params(params, tmp_path / "x", variant="B/16", format=format, **options)
    save_params(params, tmp_path / "x", variant="B/16", format="orbax", **options)
    assert load(tmp_path / "x").model().positions_at == "shared"


def test_sincos_positions_become_a_table_in_other_formats(tmp_path):
    """Which gives the same logits."""
    options = dict(VIT, positions="sincos")
    params = random_params("B/16", **options)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    expected = models.build("B/16", num_classes=3, **options).apply({"params": params}, image)
    for format in ("npz", "timm", "hf"):
        path = tmp_path / ENDINGS[format]
        save_params(params, path, variant="B/16", format=format, image_size=32, **options)
        found = load(path, variant="B/16", **VIT)
        assert found.model().positions == "1d"
        table = jax.tree.map(np.asarray, found.params)
        logits = found.model().apply({"params": table}, image)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="positions='sincos': give its image_size"):
        save_params(params, tmp_path / "y.npz", variant="B/16", format="npz", **options)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_that_exists_is_overwritten(tmp_path, format):
    path = tmp_path / ENDINGS[format]
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="left as it is"):
        params = random_params("B/16", **VIT)
        save_params(params, path, variant="B/16", format=format, **VIT)
    assert path.read_text() == "mine"


def test_saving_checks_names_shapes_and_values(tmp_path):
    params = random_params("B/16", **VIT)
    with pytest.raises(ValueError, match=r"isn't a B/16.*embedding/kernel has the shape"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="npz")
    params["head"]["kernel"] = np.full_like(params["head"]["kernel"], np.nan)
    with pytest.raises(ValueError, match="72 of the 72 values of head/kernel are NaN"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="npz", **VIT)
    with pytest.raises(ValueError, match="only Orbax checkpoints are written to a bucket"):
        save_params(params, "gs://bucket/x.npz", variant="B/16", format="npz", **VIT)
    with pytest.raises(ValueError, match="no format 'tar': hf, timm, npz, orbax"):
        save_params(params, tmp_path / "x.npz", variant="B/16", format="tar", **VIT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["npz", "timm"])
def test_a_file_is_recognised_without_its_suffix(tmp_path, format):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / ENDINGS[format], variant="B/16", format=format, **VIT)
    (tmp_path / ENDINGS[format]).rename(tmp_path / "blob")
    assert_same(load_params(tmp_path / "blob", variant="B/16", **VIT), params)
    (tmp_path / "blob").write_text("something else")
    with pytest.raises(ValueError, match="blob is not a file of weights"):
        load_params(tmp_path / "blob")


def test_a_hugging_face_file_alone_is_not_enough(tmp_path):
    params = random_params("B/16", **VIT)
    save_params(params, tmp_path / "hf", variant="B/16", format="hf", **VIT)
    file = tmp_path / "hf" / "model.safetensors"
    assert_same(load_params(file), params)  # its config.json is beside it
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json beside it, which records its GELU"):
        load_params(file)


@pytest.mark.parametrize(
    ("destination", "format"),
    [
        ("x.npz", "npz"),
        ("x.safetensors", "timm"),
        ("x.pth", "timm"),
        ("x.bin", "timm"),
        ("x", "orbax"),
        ("checkpoints/run.1", "orbax"),
    ],
)
def test_formats_go_by_the_suffix(destination, format):
    assert format_of(destination) == format


def test_the_suffix_decides_what_is_written(tmp_path):
    params = random_params("B/16", **VIT)
    for name in ("x.npz", "x.safetensors", "folder"):
        save_params(params, tmp_path / name, variant="B/16", **VIT)
    with np.load(tmp_path / "x.npz") as file:
        assert "head/kernel" in file
    assert "head.weight" in safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert (tmp_path / "folder" / "params").is_dir()
    for name in ("x.safetensors", "folder"):
        assert_same(load_params(tmp_path / name), params)


def test_formats_keep_what_evaluation_needs(tmp_path, caplog):
    """The crop of evaluation, and the names of the classes."""
    checkpoint = load(REPOSITORY / "checkpoints" / "quickstart")
    checkpoint.config.data.crop_fraction = 0.9
    for name in ("a.npz", "a.safetensors", "a"):
        save(checkpoint, tmp_path / name)
        assert load(tmp_path / name).config.data.crop_fraction == 0.9
    assert "no place" not in caplog.text
    for name in ("a.npz", "a.safetensors"):
        assert load(tmp_path / name).class_names == checkpoint.class_names
