"""What `job=evaluate` tests a checkpoint on, and what it says of it."""

from types import SimpleNamespace

import pytest
from conftest import random_checkpoint, rows_of, write_jpegs

from vit_jax.config.defaults import default
from vit_jax.jobs.evaluate import choose_split, evaluate
from vit_jax.jobs.train import train


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
