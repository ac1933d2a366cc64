"""The view of evaluation: that of the weights, unless the command says otherwise."""

import contextlib
import math
import runpy

import jax
import numpy as np
import pytest
from conftest import random_checkpoint
from etils import epath
from PIL import Image

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.config.defaults import default
from vit_jax.data.transforms import View, view_of
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.exporter import export
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.resume import find_start, with_view
from vit_jax.jobs.runs import result_changes
from vit_jax.jobs.train import train
from vit_jax.weights.api import adapt, load, save

SMALL = dict(width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=16)
CLASSES = ("a", "b", "c")
VIEWS = (
    View("central", 0.6, "bicubic_antialias"),
    View("squash", 0.8, "lanczos_antialias"),
    View("whole", 0.875, "box_antialias"),
    View("central", 1.0, "bilinear"),
    View("central", 1.0, "bilinear", "scaled", (0, 90, 255)),
)


def small_checkpoint(view):
    checkpoint = random_checkpoint("Ti/16", **SMALL)._replace(class_names=CLASSES)
    checkpoint.config.data.update(view._asdict())
    return checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three classes of pictures of several shapes: JPEG files, and lossless ones."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in CLASSES:
        (folder / name).mkdir()
        for i, (height, width) in enumerate([(90, 140), (140, 90), (40, 300)]):
            noise = rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
            picture = Image.fromarray(noise).resize((width, height))
            picture.putalpha(Image.fromarray(noise[..., 0]).resize((width, height)))
            picture.save(folder / name / f"{i}.png")
            large = picture.convert("RGB").resize((3 * width, 3 * height))
            large.save(folder / name / f"{i}.jpg", exif=exif, subsampling=0)
    return folder


def evaluation(checkpoint, folder, **data):
    """The configuration of `job=evaluate` of a checkpoint on a folder."""
    config = default()
    config.job, config.init_from, config.eval_batch_size = "evaluate", str(checkpoint), 16
    config.data.update(name=str(folder), test="train", **data)
    return config


def loss_by_classifier(classifier, folder):
    """The mean of -log of the probability of each picture's class, by `predict`."""
    paths = sorted(folder.glob("*/*.*"))
    answers = classifier.predict(paths, top=3)
    shares = [
        {best.label: best.probability for best in answer}[path.parent.name]
        for path, answer in zip(paths, answers, strict=True)
    ]
    return -np.log(shares).mean()


def test_predict_evaluate_and_export_see_the_same(pictures, tmp_path, caplog):
    losses = []
    for number, view in enumerate(VIEWS):
        weights = tmp_path / f"weights{number}"
        save(small_checkpoint(view), weights, format="orbax")
        predicted = loss_by_classifier(Classifier(weights), pictures)
        caplog.clear()
        with caplog.at_level("INFO", logger="vit_jax.jobs"):
            summary = evaluate(evaluation(weights, pictures), tmp_path / f"out{number}")
        assert f"Images are seen with {view}. " in caplog.text
        assert f" is as {weights} says." in caplog.text
        assert math.isclose(summary["test_loss"], predicted, rel_tol=1e-4)
        losses.append(predicted)
    assert len({round(loss, 5) for loss in losses}) == len(VIEWS)  # what is seen matters

    paths = sorted(pictures.glob("*/*.*"))
    for number in (0, len(VIEWS) - 1):
        description = export(load(tmp_path / f"weights{number}"), tmp_path / f"{number}.stablehlo")
        assert view_of(description) == VIEWS[number]
        classify = runpy.run_path(str(tmp_path / f"{number}.py"))["classify"]
        shares = [dict(classify(path))[path.parent.name] for path in paths]
        assert math.isclose(-np.log(shares).mean(), losses[number], rel_tol=1e-4)


def test_the_command_has_priority_and_few_shot_sees_the_same(pictures, tmp_path, caplog):
    weights, other = VIEWS[0], VIEWS[1]
    save(small_checkpoint(weights), tmp_path / "weights", format="orbax")
    save(small_checkpoint(other), tmp_path / "other", format="orbax")
    wanted = evaluate(evaluation(tmp_path / "other", pictures), tmp_path / "wanted")
    caplog.clear()
    with caplog.at_level("INFO", logger="vit_jax.jobs"):
        config = evaluation(tmp_path / "weights", pictures, **other._asdict())
        found = evaluate(config, tmp_path / "found")
    assert found["test_loss"] == wanted["test_loss"]
    assert "Images are seen" not in caplog.text

    caplog.clear()
    config = evaluation(tmp_path / "weights", pictures, eval_crop="whole")
    config.job = "fewshot"
    config.fewshot.update(name=str(pictures), train="train", test="train", shots=(1,), seeds=1)
    with caplog.at_level("INFO", logger="vit_jax.jobs"):
        few_shot(config, tmp_path / "probe")
    told = "Images are seen with data.eval_crop='whole', data.eval_resize='bicubic_antialias'."
    assert told in caplog.text


@pytest.mark.parametrize("name", ["file.npz", "file.safetensors", "folder"])
@pytest.mark.parametrize("view", VIEWS[:3], ids=str)
def test_a_written_file_opens_with_its_view(view, name, tmp_path, caplog):
    save(small_checkpoint(view), tmp_path / name)
    assert view_of(load(tmp_path / name).config.data) == view
    with caplog.at_level("INFO", logger="vit_jax"):
        classifier = Classifier(tmp_path / name)
    assert f"Images are seen as {tmp_path / name} says: {view}." in caplog.text
    assert view_of(classifier.checkpoint.config.data) == view


def test_weights_of_an_early_version_are_seen_as_before(pictures, tmp_path):
    """Their configuration has no `eval_resize`."""
    checkpoint = small_checkpoint(View("central", 0.9, "bilinear"))
    save(checkpoint, tmp_path / "new", format="orbax")
    with checkpoint.config.unlocked():
        del checkpoint.config.data["eval_resize"]
    save(checkpoint, tmp_path / "old", format="orbax")
    old, new = (
        evaluate(evaluation(tmp_path / x, pictures), tmp_path / f"{x}-out") for x in ("old", "new")
    )
    assert "eval_resize" not in read_checkpoint(tmp_path / "old").config.data
    assert old["test_loss"] == new["test_loss"]


def test_a_run_has_a_view_of_its_own_and_keeps_it(settings, tmp_path):
    """From weights, too. When it is resumed, the keys that are None stay what they were."""
    own = View("whole", 0.875, "box_antialias")
    settings.model.update(SMALL, dropout=None)
    settings.data.update(eval_crop="whole", eval_resize="box_antialias")
    weights = small_checkpoint(own)._replace(step=1)
    saved = weights._replace(config=with_view(settings))
    save(saved, tmp_path / "run" / "checkpoints" / "1", format="orbax")
    save(weights, tmp_path / "weights", format="orbax")

    def view_at_start(workdir):
        with contextlib.closing((start := find_start(settings, workdir)).checkpoints):
            return View(*(start.config.data[key] for key in View._fields))

    settings.init_from = str(tmp_path / "weights")
    settings.data.update(eval_crop=None, eval_resize=None)
    assert view_at_start(epath.Path(tmp_path / "run")) == own  # is resumed
    assert view_at_start(epath.Path(tmp_path / "new")) == View(decode="scaled")
    settings.init_from = None
    assert view_at_start(epath.Path(tmp_path / "new")) == View(decode="scaled")
    settings.data.decode = "scaled"  # the saved run decoded images whole
    with pytest.raises(ValueError, match=r"data\.decode was 'whole', is 'scaled'"):
        find_start(settings, epath.Path(tmp_path / "run"))
    settings.data.update(decode=None, background=(0, 0, 0))
    with pytest.raises(ValueError, match=r"data\.background was \(255, 255, 255\), is \(0, 0, 0\)"):
        find_start(settings, epath.Path(tmp_path / "run"))
    settings.data.update(background=None)
    settings.data.crop_fraction = 0.5  # crops of training may depend on it
    with pytest.raises(ValueError, match=r"data\.crop_fraction was 0\.875, is 0\.5"):
        find_start(settings, epath.Path(tmp_path / "run"))


def test_a_run_may_test_at_another_size_than_it_trains(settings, tmp_path, caplog):
    """As if its checkpoint had been resized for that size. Training doesn't depend on it."""
    size = (24, 40)
    settings.model.positions = "sincos"
    settings.fewshot.update(every=6, shots=(1,), seeds=1)
    at_own = train(settings, tmp_path / "own")
    settings.data.eval_image_size = size
    found = train(settings, tmp_path / "other")
    runs = [read_checkpoint(tmp_path / name) for name in ("own", "other")]
    jax.tree.map(np.testing.assert_array_equal, *(run.params for run in runs))
    assert [run.image_shape for run in runs] == [(16, 16), size]
    save(adapt(runs[0], image_size=size), tmp_path / "resized", format="orbax")

    def tested(name):
        config = evaluation(tmp_path / name, settings.data.name)
        config.data.test = "train[85%:]"
        return evaluate(config, tmp_path / f"{name}-out")["test_loss"]

    with caplog.at_level("INFO", logger="vit_jax.jobs"):
        expected = tested("resized")
    message = f"Images have the 24 x 40 pixels (height x width) that {tmp_path / 'resized'}"
    assert message in caplog.text and "data.image_size=224 is not read" in caplog.text
    assert math.isclose(expected, found["test_loss"], rel_tol=1e-6)
    assert math.isclose(expected, tested("other"), rel_tol=1e-6)
    assert not math.isclose(expected, at_own["test_loss"], rel_tol=1e-4)
    assert not math.isclose(expected, tested("own"), rel_tol=1e-4)
    assert (
        found["fewshot_1"] is not None
        and Classifier(tmp_path / "other").checkpoint.image_shape == size
    )


def test_values_that_were_defaults_once_are_no_change(settings):
    early = settings.copy_and_resolve_references()
    early.data.update(eval_crop="central", crop_fraction=0.875)
    with early.unlocked():
        del early.data["eval_resize"]
    assert result_changes(settings, early) == []
    settings.data.eval_resize = "box_antialias"
    (change,) = result_changes(settings, early)
    assert change == "data.eval_resize was 'bilinear', is 'box_antialias'"
