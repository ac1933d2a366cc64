"""Weights of classes in the loss against scikit-learn, and the order of balanced sampling."""

import itertools
import logging
import pathlib
from collections import Counter

import numpy as np
import pytest
from conftest import rows, write_jpegs
from sklearn.utils.class_weight import compute_class_weight

from vit_jax.config.defaults import default
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.class_balance import class_weights, labels_of
from vit_jax.data.dataset import Example, ExampleError
from vit_jax.data.folders import FolderDataset
from vit_jax.data.inputs import open_inputs
from vit_jax.data.pipeline import SINGLE_PROCESS, Shard, batch_ids, seek, train_batches
from vit_jax.jobs.train import train

COUNTS = {"blue": 3, "green": 30, "red": 12}
NAMES = tuple(COUNTS)


@pytest.fixture
def options():
    options = default().data
    options.update(image_size=8, flip=False)
    return options


class Records:
    """Examples of the given labels, whose colour is their number; None is damaged."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if self.labels[index] is None:
            raise ExampleError(f"#{index}", "is damaged")
        image = np.full((8, 8, 3), index, np.uint8)
        return Example(image, self.labels[index], f"#{index}")


@pytest.fixture
def source():
    """45 examples of three classes, mixed."""
    labels = np.repeat(range(3), list(COUNTS.values()))
    return Records([*map(int, np.random.default_rng(0).permutation(labels))])


def weights_of_file(tmp_path, options, source, text):
    (tmp_path / "weights.csv").write_text(text)
    options.class_weights = str(tmp_path / "weights.csv")
    return class_weights(options, source, NAMES)


# ---------------------------------------------------------------------------------------- weights


def test_balanced_weights_are_those_of_scikit_learn(options, source, caplog):
    assert class_weights(options, source, NAMES) is None
    options.class_weights = "balanced"
    with caplog.at_level(logging.INFO, logger="vit_jax"):
        found = class_weights(options, source, NAMES)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=source.labels)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.mean([found[x] for x in source.labels]) == pytest.approx(1)
    assert "weights of the classes in the loss: blue 5, green 0.5, red 1.25" in caplog.text


def test_a_class_without_images_changes_no_weight(options, source):
    options.class_weights = "balanced"
    found = class_weights(options, source, (*NAMES, "none of these"))
    assert found == (*class_weights(options, source, NAMES), 0.0)


def test_weights_of_a_file_have_the_mean_1(options, source, tmp_path):
    text = "class,weight,note\nred,4,\ngreen,1,twice as many\nblue,0,\n"
    found = weights_of_file(tmp_path, options, source, text)
    mean = (3 * 0 + 30 * 1 + 12 * 4) / 45
    np.testing.assert_allclose(found, [0, 1 / mean, 4 / mean], rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,weight\nred,1\ngreen,1\n", "weights.csv lacks classes of the data: blue."),
        ("class,weight\nred,1\ngreen,1\nblue,1\nx,1\n", "that the data don't have: x."),
        ("class,weight\nred,1\nred,2\n", "row 3: 'red' has a second row."),
        ("class,weight\nred,-1\n", "'-1' is no weight: give a number of 0 or more, such as 0.5."),
        ("class,weight\nred,nan\n", "row 2: 'nan' is no weight"),
        ("class,weight\nred,inf\n", "row 2: 'inf' is no weight"),
        ("class,weight\nred,much\n", "row 2: 'much' is no weight"),
        ("class,weight\nred\n", "row 2: '' is no weight"),
        ("class;weight\nred;1\n", "must have the columns class and weight, separated by a comma"),
        ("", "must have the columns class and weight"),
        ("class,weight\nred,0\ngreen,0\nblue,0\n", "the weight 0 to every class that has images"),
    ],
)
def test_a_file_that_gives_no_weights_is_refused(options, source, tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        weights_of_file(tmp_path, options, source, text)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named(options, source):
    options.class_weights = "balance"
    with pytest.raises(FileNotFoundError, match=r"data\.class_weights: there is no file balance\."):
        class_weights(options, source, NAMES)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class_are_refused(options, label):
    options.class_weights = "balanced"
    with pytest.raises(ValueError, match=f"has the label {label}, but there are 3 classes"):
        class_weights(options, Records([0, 1, 2, label]), NAMES)


# ----------------------------------------------------------------------------------------- labels


def test_labels_are_those_of_the_examples(image_folder, options):
    images, labels = np.zeros((6, 4, 4, 3), np.uint8), np.array([2, 0, 1, 0, 0, 2])
    for source in (
        FolderDataset(str(image_folder)).source("train"),
        ArrayDataset(images, labels).source("train"),
        Records([3, 1, 1, 2]),
    ):
        assert labels_of(source, options) == [x.label for x in source]


def test_labels_of_damaged_examples_are_left_out_if_these_are_skipped(options):
    source = Records([0, None, 1, 1, 1])
    options.class_weights = "balanced"
    with pytest.raises(ValueError, match="#1: is damaged"):
        class_weights(options, source, ("a", "b"))
    options.on_error = "skip"
    assert labels_of(source, options) == source.labels
    np.testing.assert_allclose(class_weights(options, source, ("a", "b")), [2, 2 / 3])


@pytest.mark.parametrize("key", ["class_weights", "sampling"])
def test_images_with_several_labels_are_refused(settings, tmp_path, key):
    root = write_jpegs(tmp_path / "photos", {"a": 8, "b": 8})
    lines = [f"{x}/{i}.jpg,{x};both" for x in "ab" for i in range(8)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))
    settings.data.name, settings.optim.loss, settings.batch_size = str(root), "sigmoid", 8
    settings.data[key] = "balanced"
    with pytest.raises(ValueError, match="are for data with one label an image"):
        open_inputs(settings)


# --------------------------------------------------------------------------------------- sampling


def batches(source, options, batch_size=9, start=0, shard=SINGLE_PROCESS, seed=4):
    made = train_batches(
        source, options, num_classes=3, batch_size=batch_size, seed=seed, shard=shard
    )
    seek(made, start)
    return made


def numbers(batch):
    """Which examples are in a batch."""
    return batch["image"][:, 0, 0, 0]


def test_balanced_sampling_has_each_class_equally_often(options, source):
    options.sampling = "balanced"
    drawn = [numbers(batch) for batch in itertools.islice(batches(source, options), 20)]
    epochs = np.reshape(drawn, (4, 45))
    labels = np.array(source.labels)
    for drawn in epochs:
        assert Counter(labels[drawn]) == {0: 15, 1: 15, 2: 15}
        assert (labels[drawn] != np.resize(labels[drawn[:3]], 45)).any()  # not in turns
    drawn = np.concatenate(epochs)
    for label, count in enumerate(COUNTS.values()):
        of_class = drawn[labels[drawn] == label]
        counts = np.array([*Counter(map(int, of_class)).values()])
        assert len(counts) == count and np.ptp(counts) <= 1
    assert len({tuple(x) for x in epochs}) == 4
    other = numbers(next(batches(source, options, batch_size=45, seed=5)))
    assert (other != epochs[0]).any()


def test_an_epoch_that_the_classes_don_t_divide(options):
    """Their numbers differ by 1 at most, and the remainder goes round."""
    source, total = Records([0] * 2 + [1] * 4 + [2] * 14), Counter()
    options.sampling = "balanced"
    labels = np.array(source.labels)
    for batch in itertools.islice(batches(source, options, batch_size=20), 3):
        counts = Counter(map(int, labels[numbers(batch)]))
        assert max(counts.values()) - min(counts.values()) == 1
        total += counts
    assert total == {0: 20, 1: 20, 2: 20}


def test_balanced_batches_are_the_same_when_resumed_and_between_processes(options, source):
    options.sampling = "balanced"
    whole = [numbers(batch) for batch in itertools.islice(batches(source, options), 12)]
    np.testing.assert_array_equal(numbers(next(batches(source, options, start=7))), whole[7])
    parts = [
        numbers(next(batches(source, options, 3, 11, Shard(process, 3)))) for process in range(3)
    ]
    np.testing.assert_array_equal(np.stack(parts, 1).ravel(), whole[11])
    ids = batch_ids(source, options, 12, batch_size=9, seed=4)
    assert ids == [f"#{number}" for number in whole[11]]


def test_damaged_examples_are_never_drawn(options):
    source = Records([0, None, 1, 1, 1, None])
    options.update(sampling="balanced", on_error="skip")
    drawn = [numbers(batch) for batch in itertools.islice(batches(source, options, 6), 5)]
    assert set(np.concatenate(drawn)) == {0, 2, 3, 4}
    assert (np.concatenate(drawn) == 0).sum() == 15


def test_a_run_draws_and_weights_its_images_by_their_classes(settings, tmp_path):
    """The head starts with zeros: at the first step, the loss of each image is log(3)."""
    weights = {"blue": 1.0, "green": 8.0, "red": 3.0}
    lines = [f"{name},{weight}" for name, weight in weights.items()]
    (tmp_path / "weights.csv").write_text("\n".join(["class,weight", *lines]))
    settings.data.update(sampling="balanced", class_weights=str(tmp_path / "weights.csv"))
    settings.update(total_steps=1, log_every=1)
    train(settings, tmp_path / "run")

    source = FolderDataset(settings.data.name).source("train[:85%]")
    counts = Counter(path.parent.name for path, _ in source.files)
    mean = sum(weights[name] * n for name, n in counts.items()) / len(source)
    ids = batch_ids(source, settings.data, 1, batch_size=16, seed=0)
    drawn = [weights[pathlib.Path(id).parent.name] / mean for id in ids]
    found = float(rows(tmp_path / "run")[0]["train_loss"])
    assert found == pytest.approx(np.log(3) * np.mean(drawn), rel=1e-5)
    assert abs(np.mean(drawn) - 1) > 0.2  # it isn't uniform sampling, whose mean is about 1
