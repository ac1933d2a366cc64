"""The list of published checkpoints: its numbers, its names, and how it is shown."""

import csv
import functools
import importlib
import itertools

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from vit_jax import models
from vit_jax.convert import main
from vit_jax.data.resizing import EVAL_CROPS, EVAL_RESIZES
from vit_jax.models.params import parameter_shapes
from vit_jax.weights import architectures, catalogue
from vit_jax.weights.api import load, save_params
from vit_jax.weights.listing import list_published

PUBLISHED = catalogue.published()
OURS = {name: row for name, row in PUBLISHED.items() if row.variant}


@functools.cache
def count(variant, resolution, num_classes, **attributes):
    model = models.build(variant, num_classes=num_classes, **attributes)
    shapes = jax.tree.leaves(parameter_shapes(model, resolution))
    return sum(int(np.prod(x.shape)) for x in shapes)


@pytest.mark.slow
def test_sizes_are_those_of_the_variants():
    """The parameters that a variant needs in float32, with the head of the data; of every third."""
    assert len(OURS) == 70
    for row in list(OURS.values())[::3]:
        on_hub = row.url.startswith("hf://")
        classes = 1000 if row.data.endswith("imagenet2012") else 0 if on_hub else 21843
        attributes = dict(row.attributes)
        if row.name.startswith(("imagenet21k/", "big_vision/")) or (on_hub and not classes):
            attributes["pre_logits"] = True
        if row.name.startswith(("gsam/", "big_vision/")):
            attributes["pool"] = "gap"
        expected = count(row.variant, row.resolution, classes, **attributes)
        assert row.parameters == expected, row.name
        assert row.mebibytes == pytest.approx(4 * expected / 2**20, abs=1), row.name


def test_the_rows_are_well_formed():
    with open(REPOSITORY / "checkpoints" / "published.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(PUBLISHED) == 527  # no name twice
    for row in PUBLISHED.values():
        assert bool(row.variant) + bool(row.architecture) >= 1, row.name
        assert row.variant in (*models.VARIANTS, "")
        assert row.url.startswith(("gs://vit_models/", "gs://bit_models/", "gs://big_vision/")) or (
            row.url.startswith("hf://")
        )
        assert (row.mean is None) == (row.std is None)
        if row.view:
            assert row.view["eval_crop"] in EVAL_CROPS and row.view["eval_resize"] in EVAL_RESIZES
            assert 0 < row.view["crop_fraction"] <= 1
        assert row.parameters * 4 / 2**20 < row.mebibytes + 1


def test_what_is_fine_tuned_by_the_public_code_sees_the_whole_image():
    """Both as the public code of ViT and BiT has it: resized, without antialiasing."""
    tuned = [x for x in OURS.values() if x.url.startswith("gs:") and x.data.count("+")]
    assert len(tuned) == 23
    for row in tuned:
        assert row.view["eval_crop"] == "whole" and row.view["eval_resize"] == "bilinear"
        assert row.mean == row.std == (0.5, 0.5, 0.5)


def test_every_augreg_name_is_the_recommended_file():
    """(Public README of the checkpoints.) Pre-trained and tuned ones belong together."""
    rows = {n: r for n, r in PUBLISHED.items() if n.startswith("augreg/") and "B_8" not in n}
    assert len(rows) == 18
    for name, row in rows.items():
        if name.endswith("-i21k"):
            tuned = rows[name.removesuffix("i21k") + "imagenet2012-384"]
            assert tuned.url.startswith(row.url.removesuffix(".npz") + "--imagenet2012-steps_20k")


def test_a_name_of_timm_has_a_row():
    row = catalogue.timm_row("vit_base_patch16_clip_224.openai")
    assert row == catalogue.timm_row("timm/vit_base_patch16_clip_224.openai")
    assert row.mean == (0.48145466, 0.4578275, 0.40821073)
    assert row.std == (0.26862954, 0.26130258, 0.27577711)
    assert row.view == dict(eval_crop="central", crop_fraction=0.9, eval_resize="bicubic_antialias")
    for unknown in ("", "timm/", "vit_base_patch16_clip_224.nobody", "resnet50", "B/16"):
        assert catalogue.timm_row(unknown) is None


def test_without_a_tag_only_what_all_weights_share_is_known():
    """vit_base_patch16_224 was trained by AugReg, DINO and MAE: with two means."""
    row = catalogue.timm_row("vit_base_patch16_224")
    assert (row.mean, row.std, row.view) == (None, None, {})
    row = catalogue.timm_row("deit_base_patch16_224")
    assert row.mean == (0.485, 0.456, 0.406) and row.view["crop_fraction"] == 0.9
    row = catalogue.timm_row("deit3_base_patch16_224")  # 0.9 and 1.0 of the image
    assert row.mean == (0.485, 0.456, 0.406) and row.view == {}


def test_a_checkpoint_is_known_by_name_address_and_download(tmp_path, monkeypatch):
    name, url = "sam/ViT-B_16", "gs://vit_models/sam/ViT-B_16.npz"
    for source in (name, url, "downloads/vit_models/sam/ViT-B_16.npz"):
        assert catalogue.published_row(source) is PUBLISHED[name] or (
            catalogue.published_row(source) == PUBLISHED[name]
        )
    for source in ("ViT-B_16.npz", "B/16", "hf://org/x", "gs://bucket/x.npz"):
        assert catalogue.published_row(source) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam").mkdir()
    (tmp_path / "sam" / "ViT-B_16").touch()  # a file of the user's own
    assert catalogue.published_row(name) is None


def test_sincos_files_open_as_what_they_are(tmp_path, monkeypatch):
    """They have no table of positions; their row says how positions are computed."""
    monkeypatch.setattr(catalogue, "CHECKPOINTS", tmp_path)
    row = PUBLISHED["big_vision/vit_s16_i1k_90ep"]
    small = dict(depth=1, width=16, mlp_dim=16, num_heads=2)
    model = models.build("S/16", num_classes=5, pool="gap", positions="sincos", **small)
    params = jax.tree.map(
        lambda x: np.ones(x.shape, np.float32), parameter_shapes(model, row.resolution)
    )
    path = tmp_path / "big_vision" / "vit_s16_i1k_90ep.npz"
    path.parent.mkdir()
    bare = {"pool": "gap", "positions": "none", **small}
    save_params(params, tmp_path / "x.npz", variant="S/16", **bare)
    with np.load(tmp_path / "x.npz") as arrays:
        np.savez(path, **arrays)  # without our record
    for source in (row.name, row.url, path):
        found = load(source, num_heads=2)
        assert found.config.model.positions == "sincos" and found.config.model.pool == "gap"
        assert found.config.data.eval_resize == "box_antialias"


# ------------------------------------------------------------------------------------ as text


def test_the_list_is_readable():
    lines = list_published(PUBLISHED.values()).splitlines()
    assert max(map(len, lines)) <= 100 and lines[-1] == "527 checkpoints."
    (place,) = (i for i, x in enumerate(lines) if x.startswith("facebook/dinov2-base "))
    assert lines[place].split() == ["facebook/dinov2-base", "lvd142m"]
    expected = "87M 518px 330MiB ImageNet 0.875 bicubic apache-2.0 Dinov2Model"
    assert lines[place + 1].split() == expected.split()


def test_a_pattern_filters_the_list(capsys):
    main(["--list=DeiT*distilled"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "8 checkpoints."
    assert "facebook/deit-tiny-distilled-patch16-224" in str(lines)
    main(["--list", "cc-by-nc"])
    assert "timm/vit_base_patch16_224.mae" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"published\.csv has nothing with 'no such'"):
        main(["--list=no such"])
    with pytest.raises(SystemExit):
        main([])
    assert "a source is needed, or --list" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- peers


@pytest.mark.peers
def test_timms_rows_are_what_the_installed_timm_says():
    """`benchmarks.list_timm` writes them. Another timm may have more of them."""
    pytest.importorskip("peers")
    timm = pytest.importorskip("timm")
    list_timm = importlib.import_module("benchmarks.list_timm")
    with open(REPOSITORY / "checkpoints" / "published.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file) if row["name"][:5] == "timm/"}
    found = {row["name"]: row for row in list_timm.rows()}
    assert len(rows.keys() & found.keys()) > 300
    for name in rows.keys() & found.keys():
        for column, value in found[name].items():
            assert rows[name][column] == str(value), (name, column)
    for name in itertools.islice(sorted(rows.keys() & found.keys()), 5, None, 60):
        num_classes = timm.get_pretrained_cfg(name.removeprefix("timm/")).num_classes
        counted = list_timm.parameters(rows[name]["architecture"], num_classes)
        assert int(rows[name]["parameters"]) == counted, name


def test_every_architecture_of_timm_is_known_or_refused():
    for row in PUBLISHED.values():
        if row.name.startswith("timm/"):
            assert architectures.attributes_of(row.architecture) is not None, row.name
