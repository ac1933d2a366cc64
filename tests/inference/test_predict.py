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
from conftest import IMAGE, REPOSITORY, random_checkpoint, random_params, tiny, write_jpegs
from PIL import Image

import vit_jax
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.data import pipeline, sources, transforms
from vit_jax.data.builders import rendered_flowers
from vit_jax.inference.classifier import Classifier, Prediction, read_image, view_image
from vit_jax.models.patches import to_float
from vit_jax.weights import recognise
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
    classifier = vit_jax.Classifier(saved, batch_size=batch_size)
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
    for found in vit_jax.Classifier(saved).predict(forms, top=7):
        check(found, row)
    for arrays in (np.stack([array, array]), [array / 255, array.astype(int)]):
        for found in vit_jax.Classifier(saved).predict(arrays, top=2):
            check(found, row)


def test_grey_arrays_are_grey_images(saved, rng):
    grey = rng.integers(0, 256, (2, 20, 24)).astype(np.uint8)
    classifier = vit_jax.Classifier(saved)
    expected = classifier.predict([Image.fromarray(image) for image in grey])
    assert classifier.predict(grey) == classifier.predict(grey[..., None]) == expected


def test_weights_of_others_and_another_size(saved, tmp_path, expected):
    """A file without class names, in the published layout, at twice the size of its positions."""
    save(load(saved)._replace(class_names=()), tmp_path / "tiny.npz", format="npz")
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
    headless = Classifier(adapt(load(saved), num_classes=0))
    for method in headless.predict, headless.stream:
        with pytest.raises(ValueError, match="has no head to classify with"):
            method(iter(lambda: pytest.fail("an image was asked for"), None))
    unsized = load(saved)
    unsized.config.data.image_size = None
    with pytest.raises(ValueError, match="doesn't say the size of its images: give image_size"):
        Classifier(unsized)
    classifier = vit_jax.Classifier(saved)
    for method in classifier.predict, classifier.features:
        with pytest.raises(ValueError, match="put a single one into a list"):
            method("photo.jpg")
    with pytest.raises(ValueError, match=r"nowhere\.jpg: can't be read: No such file"):
        classifier.predict(["nowhere.jpg"])
    for array, message in [
        (
            np.zeros((8, 8, 4), np.uint8),
            r"An array has the shape \(8, 8, 4\): an array must",
        ),
        (np.full((8, 8, 3), 255.0), "An array has values from 255.0 to 255.0: .* floats in 0…1"),
        (np.array([[0, -1]]), "An array has values from -1 to 0: integers must lie in 0…255"),
        (np.zeros((8, 8), bool), "An array has the dtype bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            classifier.predict([array])
    assert classifier.predict([]) == []
    with pytest.raises(AttributeError, match="no attribute 'Klassifier'"):
        vit_jax.Klassifier  # noqa: B018


def views_of(files, checkpoint):
    return to_float(np.stack([view_image(read_image(file), checkpoint) for file in files]))


@pytest.mark.parametrize("strategy", ["pmap", "sharded"])
@pytest.mark.parametrize(
    "attributes",
    [{}, pytest.param(dict(pool="gap", depth=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_features_are_the_headless_models_and_its_blocks(folder, expected, strategy, attributes):
    """21 images in batches of 8 on eight devices, with the head's parameters left in the tree."""
    model = tiny(**attributes)
    config = recognise.config_for("Ti/16", (IMAGE, IMAGE), **SIZES | attributes)
    config.parallel = strategy
    checkpoint = Checkpoint("tiny", random_params(model), config, NAMES, 0)
    files, layers = sorted(expected), range(1, model.depth + 1)
    pooled, tokens, _ = Classifier(checkpoint, batch_size=8).features(files, layers)
    params = jax.tree.map(np.asarray, checkpoint.params)
    images = views_of(files, checkpoint)
    headless = tiny(num_classes=0, **attributes)
    wanted = headless.apply({"params": {k: v for k, v in params.items() if k != "head"}}, images)
    assert pooled.dtype == np.float32 and pooled.shape == (21, 24)
    np.testing.assert_allclose(pooled, wanted, atol=1e-5)
    assert list(tokens) == list(layers)
    count = 4 + (model.pool == "token")
    assert all(x.dtype == np.float32 and x.shape == (21, count, 24) for x in tokens.values())
    # The last block's tokens, normalised and pooled by hand, are what a head reads.
    norm, last = params["Transformer"]["encoder_norm"], tokens[model.depth].astype(np.float64)
    last = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    last = last * norm["scale"] + norm["bias"]
    by_hand = last[:, 0] if model.pool == "token" else last.mean(1)
    np.testing.assert_allclose(by_hand, wanted, atol=1e-5)


@pytest.mark.peers
def test_features_of_timms_model(tmp_path):
    """The same weights in timm, which returns the tokens of every block, too."""
    import peers  # skips without torch; comes before timm, for torchvision's sake

    timm, torch = pytest.importorskip("timm"), peers.torch
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2)
    theirs = peers.randomise(timm.models.VisionTransformer(**sizes, num_classes=3)).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = Classifier(
        load(tmp_path / "timm.pth", width=24, depth=3, mlp_dim=48, num_heads=2, patch_size=8),
        image_size=32,
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    views = np.stack([view_image(image, ours.checkpoint) for image in images])
    inputs = torch.tensor(np.asarray(to_float(views))).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = theirs.forward_head(theirs.forward_features(inputs), pre_logits=True)
        blocks = theirs.get_intermediate_layers(inputs, n=[0, 2], return_prefix_tokens=True)
        final = theirs.forward_features(inputs)
        first = []
        theirs.blocks[0].register_forward_pre_hook(lambda module, args: first.extend(args))
        theirs(inputs)
    found = ours.features(images, layers=[0, 1, 3], tokens=True)
    np.testing.assert_allclose(found.pooled, pooled.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.final_tokens, final.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.tokens[0], first[0].numpy(), atol=1e-4)
    for layer, (patches, prefix) in zip((1, 3), blocks, strict=True):
        np.testing.assert_allclose(found.tokens[layer][:, 1:], patches.numpy(), atol=1e-4)
        np.testing.assert_allclose(found.tokens[layer][:, :1], prefix.numpy(), atol=1e-4)


def test_features_need_no_head_and_name_what_they_cannot_have(saved, expected, tmp_path):
    headless = Classifier(adapt(load(saved), num_classes=0))
    files = sorted(expected)[:2]
    np.testing.assert_allclose(
        headless.features(files).pooled, Classifier(saved).features(files).pooled, atol=1e-6
    )
    empty = headless.features([], layers=[1], tokens=True)
    assert empty.pooled.shape == (0, 24) and empty.tokens[1].shape == (0, 5, 24)
    assert empty.final_tokens.shape == (0, 5, 24)
    with pytest.raises(ValueError, match=r"nowhere\.jpg: can't be read: No such file"):
        headless.features([files[0], "nowhere.jpg"])
    for layer in (-1, 2):
        with pytest.raises(ValueError, match=f"no encoder block {layer}: .* from 1 to 1"):
            headless.features(["nowhere.jpg"], layers=[layer])
    resnet = Classifier(random_checkpoint("R50x1", 3, layers=(1, 1)))
    assert resnet.features(files).pooled.shape == (2, 512)
    with pytest.raises(ValueError, match="A ResNet has no tokens"):
        resnet.features(files, layers=[1])


@pytest.mark.slow
def test_the_command_needs_a_head(saved, expected, tmp_path):
    save(adapt(load(saved), num_classes=0), tmp_path / "headless", format="orbax")
    done = run(tmp_path / "headless", next(iter(expected)), "--csv")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.endswith("has no head to classify with: fine-tune from it.\n")


@pytest.mark.slow
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
    assert first == "Skipped 4 of 5 images, which can't be read:"
    assert len(reasons) == 4 and "Traceback" not in done.stderr
    for path, reason in zip(bad, reasons, strict=True):
        assert reason.startswith(f"{path}: ")


@pytest.mark.slow
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


@pytest.mark.slow
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
    found = vit_jax.Classifier(QUICKSTART).predict(drawn, top=1)
    right = [predictions[0].label == kind for predictions, kind in zip(found, kinds, strict=True)]
    assert np.mean(right) > 0.85
    named = vit_jax.Classifier(os.path.relpath(QUICKSTART)).predict(
        sorted((REPOSITORY / "docs" / "flowers").glob("*.png")), top=1
    )
    assert [p[0].label for p in named] == sorted(rendered_flowers.KINDS)
