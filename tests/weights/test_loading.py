"""The lines that `convert` prints, run on a photo: by timm, transformers and this package."""

import jax
import numpy as np
import peers
import pytest
from PIL import Image

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.convert import main
from vit_jax.data.transforms import view_of
from vit_jax.inference.classifier import view_image
from vit_jax.models.patches import to_float
from vit_jax.weights import recognise
from vit_jax.weights.api import load, save
from vit_jax.weights.formats import FORMATS
from vit_jax.weights.loading import loading_lines

pytestmark = pytest.mark.peers

SMALL = dict(width=24, depth=2, mlp_dim=40, num_heads=2)
TIMM = dict(gelu="exact", kernel_epsilon=1e-8)  # what timm's hybrids are for
KINDS = {
    "tanh": ("Ti/16", dict(patch_size=8, **SMALL)),
    "exact": ("Nano/8", dict(gelu="exact", norm_epsilon=1e-3)),
    "gap": ("S/32", dict(patch_size=16, pool="gap", width=44, num_heads=2, mlp_dim=49)),
    "root": ("R+Ti/16", dict(**SMALL, **TIMM)),
    "stem": ("R50+B/32", dict(**SMALL, **TIMM)),
    "resnet": ("R50x1", dict(layers=(1, 2), width_factor=2)),
}
TINY = dict(SMALL, patch_size=16, gelu="exact", mlp_dim=48)
FAMILIES = {  # of timm and transformers, beyond the paper's ViT
    "registers": ("S/16", dict(registers=4, **TINY)),
    "gated": ("S/16", dict(mlp="swiglu", **TINY)),
    "no class token": ("S/16", dict(pool="gap", **TINY)),
    "clip": ("S/16", dict(pre_norm=True, **{**TINY, "gelu": "quick"})),
    "clip's mean": ("S/16", dict(pool="gap", class_tokens=1, final_norm="after_pool", **TINY)),
    "no norm": ("S/16", dict(pool="gap", final_norm="none", **TINY)),
    "siglip": ("S/16", dict(pool="map", **{**TINY, "gelu": "tanh"})),
    "distilled": ("S/16", dict(class_tokens=2, **TINY)),
}
KINDS |= FAMILIES


def make(kind, num_classes=7, image_size=(64, 64), **data):
    """A checkpoint whose parameters are all random."""
    variant, attributes = KINDS[kind]
    model = models.build(variant, num_classes=num_classes, **attributes)
    config = recognise.config_for(variant, image_size, **attributes)
    config.data.update({"crop_fraction": 0.5, **data})
    names = tuple("abcdefg")[:num_classes]
    return Checkpoint("random", peers.random_params(model, image_size), config, names, 0)


def write_photo(checkpoint):
    """Writes PHOTO.jpg, a PNG without losses, of a size that the crop leaves as it is.

    Returns what the model is to see.
    """
    data, (height, width) = view_of(checkpoint.config.data), checkpoint.image_shape
    fraction = 1 if data.eval_crop == "whole" else data.crop_fraction
    size = (round(height / fraction), round(width / fraction), 3)
    photo = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(photo).save("PHOTO.jpg", "PNG")
    if data.eval_resize != "bilinear":  # which timm computes as we do, whatever the size
        photo = np.random.default_rng(0).integers(0, 256, (90, 171, 3)).astype(np.uint8)
        Image.fromarray(photo).save("PHOTO.jpg", "PNG")
    view = view_image(photo, checkpoint)
    assert fraction == 1 or view.shape != photo.shape
    return view


def run(checkpoint, path, format):
    """Saves a checkpoint and runs the lines that load it; returns their variables."""
    save(checkpoint, path, format=format)
    names = {}
    exec(loading_lines(checkpoint, path, format), names)
    return names


def outputs(checkpoint, view):
    found = peers.our_logits(checkpoint.model(), checkpoint.params, to_float(view[None]))
    return found.astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in KINDS),
        ("tanh", dict(image_size=(64, 96))),
        ("tanh", dict(image_size=(224, 224), crop_fraction=0.875)),
        ("tanh", dict(eval_crop="whole")),
        ("tanh", dict(crop_fraction=0.9, eval_resize="bicubic_antialias")),
        ("tanh", dict(eval_crop="squash", crop_fraction=0.9, eval_resize="box_antialias")),
        ("exact", dict(num_classes=0)),
    ],
)
def test_timms_lines_compute_our_logits(kind, options, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    checkpoint = make(kind, **options)
    view = write_photo(checkpoint)
    names = run(checkpoint, "file.safetensors", "timm")
    found = names["logits" if checkpoint.num_classes else "representation"]
    expected = outputs(checkpoint, view)
    assert expected.std() > 0.05 * np.abs(expected).max()
    tolerance = 1e-5 if kind in ("tanh", "exact") else 1e-4  # the two GELUs differ by more
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "kind", ["tanh", "resnet 50x1", *(kind for kind in FAMILIES if kind != "clip")]
)
def test_a_folder_of_timms_hub_computes_our_logits(kind, tmp_path, monkeypatch):
    """Without a suffix, a destination is a folder: its config.json says what the lines don't."""
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    if kind == "resnet 50x1":
        monkeypatch.setitem(KINDS, kind, ("R50x1", dict(kernel_epsilon=1e-8)))
    checkpoint = make(kind, eval_resize="bicubic_antialias", crop_fraction=0.9)
    view = write_photo(checkpoint)
    names = run(checkpoint, "folder", "timm")
    expected = outputs(checkpoint, view)
    assert expected.std() > 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(
        names["logits"], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    found = load("folder")
    assert found.class_names == checkpoint.class_names
    assert found.config.data.eval_resize == "bicubic_antialias"


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("exact", {}, "config.json has no place for norm_epsilon=0.001"),
        ("resnet", {}, "timm has no name for a BiT ResNet of these sizes"),
        ("tanh", dict(pre_logits=True), "timm has no pre_logits any more"),
        ("registers", dict(norm="rms"), "timm's ViTs have no norm='rms'"),
        ("clip", {}, "has no place for a bias of the patch embedding beside pre_norm"),
    ],
)
def test_what_a_folder_of_timms_hub_cannot_say_is_refused(kind, options, reason, tmp_path):
    variant, attributes = KINDS[kind]
    config = recognise.config_for(variant, (64, 64), **{**attributes, **options})
    checkpoint = Checkpoint("random", {}, config, (), 0)
    checkpoint = checkpoint._replace(params=peers.random_params(checkpoint.model(), (64, 64)))
    with pytest.raises(ValueError, match=reason):
        save(checkpoint, tmp_path / "folder", format="timm")
    assert list(tmp_path.iterdir()) == []


def test_where_timm_has_no_such_model_the_lines_say_so():
    for changes, reason in (
        (dict(stem=(1, 1)), "# timm has no model with this stem."),
        (dict(pre_logits=True), "# timm has no pre_logits any more: convert with --num_classes=0"),
    ):
        checkpoint = make("stem")
        checkpoint.config.model.update(changes)
        assert loading_lines(checkpoint, "x.safetensors", "timm").startswith(reason)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tanh", {}),
        ("tanh", dict(eval_crop="whole")),
        ("tanh", dict(num_classes=0)),
        ("distilled", {}),
        *((kind, dict(num_classes=0)) for kind in ("registers", "gated", "clip", "siglip")),
        ("no class token", dict(num_classes=0)),
    ],
)
def test_the_lines_for_transformers_compute_our_logits(kind, options, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    checkpoint = make(kind, **options)
    view = write_photo(checkpoint)
    names = run(checkpoint, "folder", "hf")
    found = names["logits" if checkpoint.num_classes else "representation"]
    expected = outputs(checkpoint, view)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("format", ["npz", "orbax"])
@pytest.mark.parametrize("kind", ["tanh", "exact", "gap", "root"])
def test_the_lines_for_this_package_predict_the_same(kind, format, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = make(kind, image_size=(64, 96))
    view = write_photo(checkpoint)
    (predictions,) = run(checkpoint, "file", format)["predictions"]
    expected = np.sort(jax.nn.softmax(outputs(checkpoint, view))[0])[::-1]
    found = [p.probability for p in predictions]
    np.testing.assert_allclose(found, expected[:5], rtol=1e-4)


def test_the_command_prints_what_it_wrote_and_the_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = make("tanh")
    save(checkpoint, "run", format="orbax")
    for format in FORMATS:
        destination = {"timm": "b.safetensors", "npz": "b.npz"}.get(format, f"b-{format}")
        main(["run", destination, f"--format={format}"])
        first, lines = capsys.readouterr().out.split("\n\n", 1)
        assert f"\nWritten to {destination}: {FORMATS[format].title}." in first
        assert lines == loading_lines(checkpoint, destination, format) + "\n"
