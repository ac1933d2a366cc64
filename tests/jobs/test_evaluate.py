"""What `job=evaluate` tests a checkpoint on, and what it says of it."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import TINY, DrawnImages, random_checkpoint, rows_of, write_jpegs

from vit_jax.config.defaults import default
from vit_jax.data.subset import without_empty_classes
from vit_jax.inference.classifier import read_image, view_image
from vit_jax.jobs.evaluate import choose_split, evaluate
from vit_jax.jobs.train import train
from vit_jax.models.patches import to_float
from vit_jax.weights.api import load, save
from vit_jax.weights.class_names import imagenet_classes


def test_other_data_than_the_checkpoints_are_evaluated_whole(settings, tmp_path, caplog):
    settings.total_steps = 2
    train(settings, tmp_path / "run")
    counts = {"blue": 6, "red": 4, "green": 10}
    settings.data.name = str(write_jpegs(tmp_path / "other", counts))
    settings.init_from = str(tmp_path / "run")
    with caplog.at_level("INFO", logger="vit_jax"):
        result = evaluate(settings, tmp_path / "out")
    assert (result["test_split"], result["test_images"]) == ("train", 20)
    assert "other, train (20 images). These are all its images" in caplog.text
    (row,) = rows_of(result["table"])
    assert (row["data"], row["split"], row["images"]) == (settings.data.name, "train", "20")
    for name in ("accuracy", "accuracy_low", "accuracy_high", "loss"):
        assert float(row[name]) == result[f"test_{name}"]
    matrix = {row.pop("true \\ predicted"): row for row in rows_of(result["confusion_matrix"])}
    assert {name: sum(map(int, row.values())) for name, row in matrix.items()} == counts
    percent = f"{100 * result['test_accuracy']:.1f} ({100 * result['test_accuracy_low']:.1f} to "
    assert percent in (tmp_path / "out" / "evaluation.md").read_text()
    settings.data.test = "train[:10]"
    assert evaluate(settings, tmp_path / "out")["test_images"] == 10


@pytest.mark.parametrize(
    ("trained_on", "name", "splits", "expected"),
    [
        ({"name": "a"}, "a", {"train": 9}, "train[85%:]"),
        ({"name": "a"}, "b", {"train": 9}, "train"),
        ({"name": "a"}, "b", {"full": 9, "extra": 5}, "full+extra"),
        ({"name": "a"}, "b", {"train": 9, "val": 3}, "val"),
        ({"name": "a"}, "b", {"train": 9, "val": 3, "test": 3}, "test"),
        ({"name": "a", "test": "train[:9%]"}, "a", {"train": 9}, "train[:9%]"),
        ({"name": "a", "test": "train[:9%]"}, "b", {"train": 9}, "train"),
        ({"name": "a:1.0.0"}, "a", {"train": 9}, "train[85%:]"),
        (
            {"name": "vtab/eurosat", "test": "train[21600:]"},
            "eurosat",
            {"train": 9},
            "train[21600:]",
        ),
        ({"name": "./x/"}, "{folder}/x", {"train": 9}, "train[85%:]"),
        ({"name": "y/../x"}, "./x", {"train": 9}, "train[85%:]"),
        ({"name": "./y"}, "./x", {"train": 9}, "train"),
    ],
)
def test_the_split_that_is_evaluated(trained_on, name, splits, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    checkpoint = random_checkpoint("Nano/8")._replace(step=3)
    checkpoint.config.data.update(trained_on)
    settings = default()
    settings.data.name = name.format(folder=tmp_path)
    dataset = SimpleNamespace(splits=splits)
    assert choose_split(settings, checkpoint, dataset)[0] == expected
    settings.data.test = "train[:1]"
    assert choose_split(settings, checkpoint, dataset)[0] == "train[:1]"


def test_weights_that_do_not_say_what_they_were_trained_on_are_evaluated_on_all_data():
    """Their configuration has defaults, `data.name` among them, which mean nothing."""
    checkpoint = random_checkpoint("Nano/8")
    settings = default()
    dataset = SimpleNamespace(splits={"train": 9})
    assert settings.data.name == checkpoint.config.data.name
    split, reason = choose_split(settings, checkpoint, dataset)
    assert split == "train" and "was trained on data that its file doesn't name" in reason


# ------------------------------------------------------------------------------------ classes

NETTE = ["n01440764", "n02102040", "n02979186"]  # the first folders of Imagenette
NETTE_LOGITS = [0, 217, 482]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights for ImageNet-1k, without names of classes."""
    checkpoint = random_checkpoint(num_classes=1000, **TINY)
    folder = tmp_path_factory.mktemp("imagenet2012") / "weights"
    save(checkpoint._replace(class_names=()), folder)
    return folder


def evaluated(weights, photos, folder, **data):
    """What the job returns for all images of a folder."""
    config = default()
    config.update(job="evaluate", init_from=str(weights), eval_batch_size=8)
    config.data.update(name=str(photos), **data)
    return evaluate(config, folder)


def reference(weights, photos, logits):
    """(accuracy, loss in nats) of some logits for the images in the folders of `photos`."""
    checkpoint = load(weights)
    apply, params = checkpoint.model().apply, jax.tree.map(np.asarray, checkpoint.params)
    right, losses = [], []
    for label, folder in enumerate(sorted(path for path in photos.iterdir() if path.is_dir())):
        for path in sorted(folder.iterdir()):
            view = to_float(view_image(read_image(path), checkpoint))[None]
            chosen = np.asarray(apply({"params": params}, view))[0, logits].astype(np.float64)
            right.append(chosen.argmax() == label)
            losses.append(np.log(np.exp(chosen).sum()) - chosen[label])
    return np.mean(right), np.mean(losses)


def test_a_part_of_the_classes_is_evaluated_with_their_logits(weights, tmp_path, caplog):
    """As Imagenette or ImageNet-A with weights of ImageNet-1k."""
    caplog.set_level("INFO")
    photos = write_jpegs(tmp_path / "nette", dict.fromkeys(NETTE, 5))
    result = evaluated(weights, photos, tmp_path / "out")
    accuracy, loss = reference(weights, photos, NETTE_LOGITS)
    assert result["test_accuracy"] == pytest.approx(accuracy)
    assert result["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert (result["classes"], result["classes_paired_by"]) == (3, "WordNet id")
    assert "with the 1000 of " in caplog.text and "by WordNet id. Only the logits" in caplog.text
    assert [row["true \\ predicted"] for row in rows_of(result["confusion_matrix"])] == NETTE
    (row,) = rows_of(result["table"])
    assert (row["classes"], row["classes_paired_by"]) == ("3", "WordNet id")


def test_other_names_of_the_classes_need_a_file(weights, tmp_path):
    """The file in the folder of the data is found."""
    photos = write_jpegs(tmp_path / "photos", dict.fromkeys("xyz", 4))
    with pytest.raises(ValueError, match=r"none of the checkpoint's: x; y; z.*class_map\.csv"):
        evaluated(weights, photos, tmp_path / "out")
    (photos / "class_map.csv").write_text("class,model_class\nz,7\ny,tench\nx,999\n")
    with pytest.raises(ValueError, match="row 3: 'tench' is neither"):
        evaluated(weights, photos, tmp_path / "out")
    (photos / "class_map.csv").write_text("class,model_class\nz,7\ny,goldfinch\nx,999\n")
    with pytest.raises(ValueError, match=r"row 3: 'goldfinch' is neither .*did you mean"):
        evaluated(weights, photos, tmp_path / "out")
    (photos / "class_map.csv").write_text("class,model_class\nz,7\ny,stingray\nx,999\n")
    result = evaluated(weights, photos, tmp_path / "out")
    accuracy, loss = reference(weights, photos, [999, 6, 7])
    assert result["test_accuracy"] == pytest.approx(accuracy)
    assert result["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert result["classes_paired_by"] == "class_map.csv"
    (photos / "class_map.csv").rename(tmp_path / "map.csv")
    again = evaluated(weights, photos, tmp_path / "out", class_map=str(tmp_path / "map.csv"))
    assert again["test_loss"] == result["test_loss"]


class ManyNames(DrawnImages):
    """A data set as tfds has ImageNet-A: 1,000 classes, of which a few have images."""

    name = "imagenet_a/0.1.0"
    class_names = tuple(imagenet_classes())


def test_classes_of_imagenet_a_without_images_do_not_count():
    dataset = ManyNames([217, 0, 482, 217])
    names, source = without_empty_classes(dataset, dataset)
    assert list(names) == NETTE
    assert [source[i].label for i in range(len(source))] == [1, 0, 2, 1]
    dataset.name = "imagenet_v2/3.0.0"
    names, source = without_empty_classes(dataset, dataset)
    assert len(names) == 1000 and source is dataset


def test_imagenet_a_is_evaluated_with_its_classes(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vit_jax.data.sources.open_dataset", lambda name, folder: ManyNames([217, 0, 482, 217])
    )
    result = evaluated(weights, "imagenet_a", tmp_path / "out")
    assert (result["classes"], result["test_images"]) == (3, 4)
    assert result["classes_paired_by"] == "WordNet id"
