"""The files that `job=evaluate` writes, against scikit-learn and predictions one by one."""

import base64
import html
import io
import re

import numpy as np
import pytest
from conftest import TINY, DrawnImages, random_checkpoint, rows_of, write_jpegs
from PIL import Image
from sklearn import metrics as sklearn_metrics

from vit_jax.config.defaults import default
from vit_jax.inference.classifier import Classifier
from vit_jax.jobs.evaluate import evaluate
from vit_jax.weights.api import load, save

NAMES = ("a <b>", "b", "c")  # those of `random_checkpoint`


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "random"
    save(random_checkpoint(**TINY), folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """19 images of three classes; the names of a class and of a file hold HTML."""
    folder = write_jpegs(tmp_path_factory.mktemp("photos"), {"a <b>": 9, "b": 6, "c": 4})
    (folder / "b" / "0.jpg").rename(folder / "b" / "<i>0.jpg")
    return folder


def evaluated(weights, name, folder, **keys):
    config = default()
    config.update(job="evaluate", init_from=str(weights), eval_batch_size=8, **keys)
    config.data.name = str(name)
    return evaluate(config, folder)


def predictions(weights, photos):
    """(paths, labels, predicted classes, confidences) of all images, one by one."""
    paths = sorted(photos.glob("*/*.jpg"))
    answers = Classifier(load(weights)).predict([str(path) for path in paths], top=1)
    labels = np.array([NAMES.index(path.parent.name) for path in paths])
    predicted = np.array([NAMES.index(best.label) for (best,) in answers])
    return paths, labels, predicted, np.array([best.probability for (best,) in answers])


@pytest.mark.parametrize("parallel", ["pmap", "sharded"])
def test_the_files_say_what_predictions_one_by_one_do(weights, photos, tmp_path, parallel):
    paths, labels, predicted, confidences = predictions(weights, photos)
    assert 0 < (labels == predicted).sum() < len(labels)
    result = evaluated(weights, photos, tmp_path, parallel=parallel)
    with np.errstate(all="ignore"):
        theirs = sklearn_metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(3), zero_division=np.nan
        )
    for i, row in enumerate(rows_of(result["class_metrics"])):
        assert row["class"] == NAMES[i] and int(row["images"]) == theirs[3][i]
        for column, values in zip(("precision", "recall", "f1"), theirs, strict=False):
            found = float(row[column]) if row[column] else np.nan
            assert found == pytest.approx(values[i], abs=5e-5, nan_ok=True)
    balanced = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert result["test_balanced_accuracy"] == pytest.approx(balanced)
    assert result["test_accuracy"] == pytest.approx((labels == predicted).mean())
    bins = np.ceil(confidences * 15)
    gaps = [
        abs((labels == predicted)[bins == m].sum() - confidences[bins == m].sum())
        for m in range(1, 16)
    ]
    error = sum(gaps) / len(labels)
    assert result["test_expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    assert sum(int(row["images"]) for row in rows_of(result["reliability"])) == len(labels)
    page = (tmp_path / "mistakes.html").read_text()
    wrong = sorted(np.flatnonzero(labels != predicted), key=lambda i: -confidences[i])
    shown = re.findall(r'base64,([^"]*)">', page)
    captions = re.findall(r"<figcaption><b>(.*?)</b><br>(.*?)</figcaption>", page)
    assert len(captions) == len(shown) == len(wrong)
    for i, (name, caption), encoded in zip(wrong, captions, shown, strict=True):
        assert html.unescape(name) == paths[i].name
        assert html.unescape(caption) == (
            f"Predicted: {NAMES[predicted[i]]}, {100 * confidences[i]:.1f} %. "
            f"True class: {NAMES[labels[i]]}. {paths[i]}"
        )
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        original = np.asarray(Image.open(paths[i]), float)
        assert abs(np.asarray(image, float).mean((0, 1)) - original.mean((0, 1))).max() < 3


def test_one_page_shows_it_all_and_escapes_names(weights, photos, tmp_path):
    result = evaluated(weights, photos, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert result["page"] == str(tmp_path / "index.html")
    assert "<script" not in page and "<i>0" not in page and "a <b>" not in page
    assert "a &lt;b&gt;" in page
    low, high = (f"{100 * result[f'test_accuracy_{x}']:.1f}" for x in ("low", "high"))
    assert f"({low} to {high})" in page
    for name in ("confusion_matrix.png", "reliability.png"):
        content = (tmp_path / name).read_bytes()
        assert base64.b64encode(content).decode() in page
        assert Image.open(io.BytesIO(content)).format == "PNG"
    errors = 19 - round(19 * result["test_accuracy"])
    assert f"{errors} of 19 predictions are wrong." in page
    assert page.count("data:image/jpeg;base64,") == min(12, errors)


class Arrays(DrawnImages):
    class_names = NAMES


def all_probabilities(weights, count):
    """The probabilities (n, 3) of the first images of `Arrays`, float64."""
    images = [Arrays([0] * count)[i].image for i in range(count)]
    found = Classifier(load(weights)).predict(images, top=3)
    shares = [{x.label: x.probability for x in answer} for answer in found]
    return np.array([[x[name] for name in NAMES] for x in shares], np.float64)


def test_images_without_files_and_no_mistakes(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("vit_jax.data.sources.open_dataset", lambda *_: Arrays([0, 1, 2] * 4))
    evaluated(weights, "some_images", tmp_path / "a")
    assert "some_images-test.array_record__" in (tmp_path / "a" / "mistakes.html").read_text()
    same = all_probabilities(weights, 12).argmax(-1).tolist()
    monkeypatch.setattr("vit_jax.data.sources.open_dataset", lambda *_: Arrays(same))
    result = evaluated(weights, "some_images", tmp_path / "b")
    assert result["test_accuracy"] == result["test_balanced_accuracy"] == 1
    assert "0 of 12 predictions are wrong." in (tmp_path / "b" / "index.html").read_text()


def test_the_calibrated_checkpoint_has_the_smallest_loss_of_all_temperatures(
    weights, tmp_path, monkeypatch
):
    """A quarter of the answers are wrong. The calibrated checkpoint gives the same ones."""
    shares = all_probabilities(weights, 12)
    labels = shares.argmax(-1)
    labels[::4] = (labels[::4] + 1) % 3
    monkeypatch.setattr("vit_jax.data.sources.open_dataset", lambda *_: Arrays(labels.tolist()))
    before = evaluated(weights, "some_images", tmp_path / "a", calibrate=True)
    after = evaluated(before["calibrated_checkpoint"], "some_images", tmp_path / "b")
    assert before["test_accuracy"] == after["test_accuracy"] == 0.75
    assert after["test_loss"] == pytest.approx(before["calibrated_loss"], rel=1e-5)
    error = "expected_calibration_error"
    assert after[f"test_{error}"] == pytest.approx(before[f"calibrated_{error}"], abs=1e-5)
    losses = {}
    for temperature in before["temperature"] * np.array([0.8, 0.95, 1, 1.05, 1.25]):
        scaled = shares ** (1 / temperature)
        own = scaled[np.arange(12), labels] / scaled.sum(-1)
        losses[temperature] = -np.log(own).mean()
    assert min(losses, key=losses.get) == before["temperature"]
    assert losses[before["temperature"]] == pytest.approx(after["test_loss"], rel=1e-4)
    assert after["test_loss"] < before["test_loss"]
    (row,) = rows_of(before["table"])
    assert float(row["temperature"]) == before["temperature"]
    again = evaluated(weights, "some_images", tmp_path / "a", calibrate=True)
    assert again["temperature"] == before["temperature"]
    with pytest.raises(FileExistsError, match="or the one that is evaluated"):
        evaluated(tmp_path / "a" / "calibrated", "some_images", tmp_path / "a", calibrate=True)
