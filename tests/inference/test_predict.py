"""The classifier and its command, against evaluation's own batches and a forward pass."""

import csv
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import IMAGE, REPOSITORY, random_params, tiny, write_jpegs
from PIL import Image

import vit_jax
from vit_jax.config.defaults import default
from vit_jax.data import pipeline, sources, transforms
from vit_jax.data.builders import rendered_flowers
from vit_jax.inference.classifier import Classifier, Prediction, read_image, view_image
from vit_jax.models.patches import to_float
from vit_jax.weights.api import adapt, load, save, save_params

NAMES = tuple("abcdefg")
SIZES = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
QUICKSTART = REPOSITORY / "checkpoints" / "quickstart"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a tiny model with random parameters."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_params(
        random_params(tiny()),
        path,
        variant="Ti/16",
        format="orbax",
        image_size=IMAGE,
        class_names=NAMES,
        **SIZES,
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """21 images in two folders, of which eight devices get no equal share."""
    return write_jpegs(tmp_path_factory.mktemp("photos"), {"one": 11, "two": 10})


@pytest.fixture(scope="module")
def expected(folder):
    """{path: probabilities (c,)} from evaluation's batches."""
    options = default().data
    options.image_size = IMAGE
    _, source = sources.open_source(sources.open_dataset(str(folder)), "train", "train")
    (batch,) = pipeline.eval_batches(source, options, num_classes=2, batch_size=len(source))
    images = to_float(batch["image"])
    logits = tiny().apply({"params": random_params(tiny())}, images, train=False)
    rows = np.asarray(jax.nn.softmax(logits))
    assert rows.std(0).min() > 1e-6  # no two images are alike
    return {source[i].id: row for i, row in enumerate(rows)}


def run(*arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "vit_jax.predict", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        input=stdin,
    )


def check(predictions, row):
    """They are the likeliest classes of a row of probabilities."""
    best = np.argsort(-row)[: len(predictions)]
    assert [p.label for p in predictions] == [NAMES[i] for i in best]
    np.testing.assert_allclose([p.probability for p in predictions], row[best], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_predictions_are_the_models_in_the_order_of_the_images(saved, folder, expected, batch_size):
    classifier = vit_jax.Classifier.restore(saved, batch_size=batch_size)
    files = sorted(expected)[::-1]
    found = classifier.predict(files, top=3)
    assert len(found) == 21
    for file, predictions in zip(files, found, strict=True):
        check(predictions, expected[file])
    (everything,) = classifier.predict(files[:1], top=100)
    assert len(everything) == 7
    assert sum(p.probability for p in everything) == pytest.approx(1, abs=1e-5)


def test_an_image_may_be_a_path_bytes_an_array_or_pillows(saved, expected):
    file, row = next(iter(expected.items()))
    with open(file, "rb") as opened:
        encoded = opened.read()
    array = transforms.decode(encoded)
    forms = [file, encoded, array, Image.fromarray(array)]
    for found in vit_jax.Classifier.restore(saved).predict(forms, top=7):
        check(found, row)
    for found in vit_jax.Classifier.restore(saved).predict(np.stack([array, array]), top=2):
        check(found, row)


def test_weights_of_others_and_another_size(saved, tmp_path, expected):
    """A file without class names, in the published layout, at twice the size of its positions."""
    save(load(saved), tmp_path / "tiny.npz", format="npz")
    resized = adapt(load(saved), image_size=2 * IMAGE)
    params = jax.tree.map(np.asarray, resized.params)
    classifier = Classifier(load(tmp_path / "tiny.npz", **SIZES), image_size=2 * IMAGE)
    file = next(iter(expected))
    (found,) = classifier.predict([file], top=1)
    image = view_image(read_image(file), resized)
    logits = resized.model().apply({"params": params}, to_float(image[None]))
    assert found[0].label == f"class {np.argmax(logits)}"
    assert found[0].probability == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-4)


def test_what_cannot_classify_or_be_classified(saved, tmp_path):
    headless = adapt(load(saved), num_classes=0)
    with pytest.raises(ValueError, match="has no head to classify with"):
        Classifier(headless)
    unsized = load(saved)
    unsized.config.data.image_size = None
    with pytest.raises(ValueError, match="doesn't tell the size of its images: give image_size"):
        Classifier(unsized)
    classifier = vit_jax.Classifier.restore(saved)
    with pytest.raises(ValueError, match="put a single one into a list"):
        classifier.predict("photo.jpg")
    with pytest.raises(ValueError, match=r"nowhere\.jpg: No such file"):
        classifier.predict(["nowhere.jpg"])
    with pytest.raises(ValueError, match=r"An array must be uint8 \(h, w, 3\), not float32"):
        classifier.predict([np.zeros((8, 8, 3), np.float32)])
    assert classifier.predict([]) == []
    with pytest.raises(AttributeError, match="no attribute 'Klassifier'"):
        vit_jax.Klassifier  # noqa: B018


def test_unreadable_files_are_reported_at_the_end(saved, folder, expected, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    whole = next(iter(expected))
    with open(whole, "rb") as opened:
        (tmp_path / "cut.jpg").write_bytes(opened.read()[:200])
    (tmp_path / "empty.jpg").touch()
    bad = [tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "empty.jpg", "gone.jpg"]
    done = run(saved, *bad[:2], whole, *bad[2:], "--json")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["image"] == whole
    first, *reasons = done.stderr.splitlines()
    assert first == "These images could not be read:"
    assert len(reasons) == 4 and "Traceback" not in done.stderr
    for path, reason in zip(bad, reasons, strict=True):
        assert reason.startswith(f"{path}: ")


def test_the_command_takes_folders_globs_and_lists(saved, folder, expected):
    listed = f"{folder}/two/0.jpg\n\n{folder}/two/1.jpg\n"
    done = run(saved, folder / "one", f"{folder}/*/1*.jpg", "-", "--csv", "--top=2", stdin=listed)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    files = [row["image"] for row in rows[::2]]
    one = sorted(str(p) for p in (folder / "one").iterdir())
    ones = [str(folder / "one" / name) for name in ("1.jpg", "10.jpg")]
    assert files == [*one, *ones, f"{folder}/two/1.jpg", *listed.split()]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["rank"], second["rank"]) == ("1", "2")
        found = [Prediction(r["label"], float(r["probability"])) for r in (first, second)]
        check(found, expected[first["image"]])


def test_the_table_names_classes_and_probabilities(saved, expected):
    file, row = next(iter(expected.items()))
    done = run(saved, file, "--top=2")
    best = np.argsort(-row)[:2]
    cells = [f"{NAMES[i]} {100 * row[i]:.1f} %" for i in best]
    assert done.stdout == f"{file}  {cells[0]}  {cells[1]}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x.jpg"], "nowhere"),
        (["{}", "{}/params"], "There are no images in"),
        (["{}", "x*.jpg"], r"There are no images in x*.jpg"),
        (["{}", "docs/flowers", "--image_size=20"], "20x20 pixels can't be cut into patches"),
    ],
)
def test_errors_are_one_line(saved, arguments, message):
    done = run(*(argument.replace("{}", str(saved)) for argument in arguments))
    assert done.returncode == 1 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_shipped_checkpoint_is_small_and_knows_flowers():
    """It has to open in every later version; the flowers are none it was trained on."""
    size = sum(p.stat().st_size for p in QUICKSTART.rglob("*") if p.is_file())
    assert size <= 2_000_000
    rng = np.random.default_rng(1)
    kinds = rendered_flowers.KINDS * 20
    drawn = [rendered_flowers.render(kind, rng) for kind in kinds]
    found = vit_jax.Classifier.restore(QUICKSTART).predict(drawn, top=1)
    right = [predictions[0].label == kind for predictions, kind in zip(found, kinds, strict=True)]
    assert np.mean(right) > 0.85
    named = vit_jax.Classifier.restore(os.path.relpath(QUICKSTART)).predict(
        sorted((REPOSITORY / "docs" / "flowers").glob("*.png")), top=1
    )
    assert [p[0].label for p in named] == sorted(rendered_flowers.KINDS)
