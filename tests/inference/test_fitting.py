"""Training on images in memory: it learns, does what a folder would, goes on, and refuses."""

import pathlib
import runpy
import tempfile

import jax
import numpy as np
import pytest
from conftest import REPOSITORY, TINY
from ml_collections import ConfigDict
from PIL import Image

import vit_jax
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.folders import position_of
from vit_jax.inference import fitting


def squares(rng, count):
    """Noise (count, 24, 24, 3) with a square somewhere that is brighter or darker; and which."""
    bright = rng.integers(0, 2, count)
    images = rng.integers(90, 166, (count, 24, 24, 3))
    for image, is_bright in zip(images, bright, strict=True):
        top, left = rng.integers(0, 16, 2)
        image[top : top + 8, left : left + 8] += 80 if is_bright else -80
    return images.astype(np.uint8), np.array(["dark", "bright"])[bright]


@pytest.fixture
def config():
    """The configuration of a run of a few steps of the smallest model."""
    config = vit_jax.default_config()
    config.model.update(**TINY)
    config.data.image_size = 16
    config.update(batch_size=16, eval_batch_size=8, total_steps=6, eval_every=3, log_every=3)
    config.optim.lr = 0.1
    return config


def same(a, b):
    """Two summaries without what differs from run to run."""
    free = ("images_per_second", "checkpoint")
    return [{k: v for k, v in x.items() if k not in free} for x in (a, b)]


@pytest.mark.slow
def test_nano_learns_bright_from_dark_squares(rng):
    images, labels = squares(rng, 600)
    classifier, summary = vit_jax.fit(images, labels, image_size=24, batch_size=32, epochs=6)
    assert summary["step"] == round(6 * 510 / 32) and summary["test_accuracy"] > 0.95
    assert classifier.class_names == ("bright", "dark")
    assert classifier.checkpoint.config.model.variant == "Nano/8"
    fresh, truth = squares(rng, 200)
    found = [best.label for best, *_ in classifier.predict(fresh)]
    assert np.mean(np.array(found) == truth) > 0.95
    assert "checkpoint" not in summary  # nothing was kept


def test_it_is_the_run_on_the_same_images_in_a_folder(rng, config, tmp_path):
    """The folder has PNG files, which are opened, checked and decoded by other code.

    The file names make the order of its examples that of the arrays.
    """
    images, labels = squares(rng, 80)
    arrays = ArrayDataset(images, labels, test=0.15)
    for split in ("train", "test"):
        source = arrays.source(split)
        names = sorted((f"{i}.png" for i in range(len(source))), key=position_of)
        for i, name in enumerate(names):
            folder = tmp_path / "images" / split / arrays.class_names[source[i].label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source[i].image).save(folder / name)
    config.fewshot.update(every=3, shots=(1, 2), seeds=2)
    classifier, summary = vit_jax.fit(images, labels, config=config, workdir=tmp_path / "arrays")
    config.data.update(name=str(tmp_path / "images"), train="train", test="test")
    of_folder = vit_jax.train(config, tmp_path / "folder")
    first, second = same(summary, of_folder)
    assert first == second and {"test_accuracy", "fewshot_2"} <= first.keys()
    other = vit_jax.Classifier(tmp_path / "folder")
    assert classifier.predict(images[:5]) == other.predict(list(images[:5]))


def test_it_goes_on_with_the_same_images_and_refuses_others(rng, config, tmp_path):
    images, labels = squares(rng, 64)
    given = dict(labels=labels, test=squares(rng, 16), config=config)
    config.optim.decay = "constant"  # so that half of a run is a short run
    _, whole = vit_jax.fit(images, **given)
    parts = dict(**given, workdir=tmp_path / "parts")
    vit_jax.fit(images, **parts, steps=3)
    with pytest.raises(ValueError, match=r"data.name was 'in-memory-\w+', is 'in-memory-\w+'"):
        vit_jax.fit(255 - images, **parts)
    log = tmp_path / "parts" / "metrics.csv"
    before = log.read_text()
    _, summary = vit_jax.fit(images.copy(), **parts)
    first, second = same(summary, whole)
    assert first == second and summary["step"] == 6
    assert log.read_text().startswith(before)  # it was not begun again


def test_nothing_stays_without_a_workdir(rng, config, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, labels = squares(rng, 64)
    config.optim.polyak = 0.5
    classifier, summary = vit_jax.fit(images, labels, config=config, steps=2)
    assert not list(tmp_path.iterdir())
    assert "checkpoint" not in summary and "polyak_test_accuracy" in summary
    vit_jax.save(classifier.checkpoint.averaged(), tmp_path / "average")  # all is in memory
    assert vit_jax.load(tmp_path / "average").class_names == ("bright", "dark")


def test_it_starts_from_weights_at_their_variant_and_size(rng, tmp_path):
    images, labels = squares(rng, 64)
    config = vit_jax.default_config()
    config.model.update(**TINY)
    config.update(batch_size=16, eval_batch_size=16)
    settings = dict(image_size=(16, 24), steps=3)
    vit_jax.fit(images, labels, config=config, workdir=tmp_path / "first", **settings)
    classifier, _ = vit_jax.fit(
        images, 1 - (labels == "dark"), init_from=tmp_path / "first", batch_size=16, steps=3
    )
    found = classifier.checkpoint
    assert found.image_shape == (16, 24) and found.config.model.width == TINY["width"]
    assert classifier.class_names == ("0", "1")
    before = vit_jax.load(tmp_path / "first").params["embedding"]["kernel"]
    step = np.abs(found.params["embedding"]["kernel"] - np.asarray(before)).max()
    assert 0 < step < 0.05  # it began there, and not at other random numbers


def test_the_recipe_is_that_of_the_configuration_file(rng, monkeypatch):
    """What `fit` passes on without a configuration, against configs/pretrain.py."""
    passed = {}

    def stop(config, workdir, dataset):
        passed.update(config=config, dataset=dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "train", stop)
    images, labels = squares(rng, 1000)
    file = runpy.run_path(str(REPOSITORY / "configs" / "pretrain.py"))["get_config"]
    for variant, size in [("Nano/8", 64), ("Conv+Nano/16", 64), ("s16", 224)]:
        with pytest.raises(KeyboardInterrupt):
            vit_jax.fit(images, labels, variant=variant)
        found, expected = passed["config"], file(f"{variant},x")
        assert found.data.image_size == size
        assert found.optim.warmup_steps == 850 // 64  # one epoch, which is less than 100 steps
        assert passed["dataset"].splits == {"train": 850, "test": 150}
        assert (found.data.train, found.data.test) == ("train", "test")
        expected.optim.warmup_steps = found.optim.warmup_steps
        expected.data.update(name=found.data.name, train=found.data.train, test=found.data.test)
        assert found.to_json() == expected.to_json()


def test_settings_have_priority_over_the_configuration_which_stays_as_it_is(config, monkeypatch):
    passed = []
    monkeypatch.setattr(fitting, "train", lambda config, *_: passed.append(config) or 1 / 0)
    config.data.eval_image_size = 48
    before = config.to_json()
    images, labels = np.zeros((20, 4, 4), np.uint8), [0, 1] * 10
    settings = dict(variant="S/16", init_from="B", image_size=32, batch_size=8)
    for length in (dict(steps=7), dict(epochs=2)):
        with pytest.raises(ZeroDivisionError):
            vit_jax.fit(images, labels, config=config, test=0.5, **settings, **length)
    first, second = passed
    assert config.to_json() == before
    assert first.data.eval_image_size is None  # image_size is that of all images
    assert (first.model.variant, first.init_from, first.data.image_size) == ("S/16", "B", 32)
    assert (first.batch_size, first.eval_batch_size, first.total_steps) == (8, 8, 7)
    assert (second.total_steps, second.epochs) == (None, 2.0)
    assert first.optim.lr == 0.1 and first.model.width == TINY["width"]
    assert (first.data.train, first.data.test) == ("train", "test")


def test_a_share_may_be_a_number_of_numpy(config, monkeypatch):
    passed = []
    monkeypatch.setattr(fitting, "train", lambda *args: passed.append(args) or 1 / 0)
    images, labels = np.zeros((20, 4, 4), np.uint8), [0, 1] * 10
    for share in (np.float32(0.2), np.float64(0.2)):
        with pytest.raises(ZeroDivisionError):
            vit_jax.fit(images, labels, config=config, test=share)
    assert [dataset.splits["test"] for _, _, dataset in passed] == [4, 4]


def test_several_processes_need_a_workdir_that_they_share(config, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="workdir is None, and each of the 4 processes would"):
        vit_jax.fit(np.zeros((20, 16, 16), np.uint8), [0, 1] * 10, config=config)


def changed(**values):
    """A default configuration with some values changed."""
    config = vit_jax.default_config()
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(epoch=1), TypeError, r"no setting 'epoch' \(did you mean 'epochs'\?\): it has var"),
        (dict(epochs=1, steps=1), ValueError, "epochs and steps are both given"),
        (dict(steps=2.5), ValueError, "total_steps=2.5 must be a whole number"),
        (dict(image_size="x"), ValueError, "data.image_size='x' must be pixels"),
        (dict(variant="C/3"), ValueError, "C/3"),
        (dict(test=0), ValueError, r"test=0 must be a share .* or \(images, labels\)"),
        (dict(test=1.5), ValueError, "test=1.5 must be a share"),
        (dict(test=np.float32(1.5)), ValueError, r"test=np.float32\(1.5\) must be a share"),
        (dict(test=None), ValueError, "test is None: give a share to hold out"),
        (dict(test="x"), ValueError, "test='x' must be a share"),
        (dict(labels=[0] * 12 + [1] * 7 + [2]), ValueError, "only one image, which .*: 2. Give"),
        (dict(config={}), ValueError, "A configuration is a ConfigDict"),
        (dict(config=ConfigDict()), ValueError, "data is missing"),
        (dict(config=changed(job="sweep")), ValueError, "config.job='sweep', and vit_jax.fit"),
        (dict(config=changed(objective="masked_patches")), ValueError, "='masked_patches', and"),
        (dict(images=None), ValueError, "images=None is no sequence"),
        (dict(batch_size=64), ValueError, "16 images, fewer than batch_size=64"),
        (dict(batch_size=9), ValueError, "batch_size=9 can't be split evenly over the 8 devices"),
        (dict(labels=[0] * 20), ValueError, "only one class, 0, so there is nothing to tell"),
        (dict(labels=[0] * 19), ValueError, "20 images and 19 labels"),
        (dict(init_from="/no/such"), FileNotFoundError, "/no/such"),
    ],
)
def test_what_can_not_be_run_is_refused(settings, error, message, monkeypatch):
    given = dict(images=np.zeros((20, 16, 16), np.uint8), labels=[0, 1] * 10, batch_size=8)
    with pytest.raises(error, match=message):
        vit_jax.fit(**{**given, **settings})
    path = pathlib.Path("no.jpg")
    with pytest.raises(
        ValueError, match=r"20 of 20 images can't be used:\n- no.jpg: can't be read"
    ):
        vit_jax.fit([path] * 20, [0, 1] * 10, batch_size=8)
