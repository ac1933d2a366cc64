"""Sweeps and comparisons of real, very short runs."""

import csv
import json

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest
from conftest import write_jpegs
from ml_collections import ConfigDict
from scipy import stats

from vit_jax.config.defaults import default
from vit_jax.data import checks, splits
from vit_jax.jobs import compare as compare_file
from vit_jax.jobs import runs, validation
from vit_jax.jobs.compare import Point, accuracy_against_compute, compare
from vit_jax.jobs.runs import train_once
from vit_jax.jobs.sweep import _best, sweep
from vit_jax.jobs.train import train
from vit_jax.models.flops import forward_flops


@pytest.fixture
def settings(image_folder):
    settings = default()
    settings.model.update(variant="Ti/16", width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=8)
    settings.data.update(name=str(image_folder), image_size=16, crop_area=0.5)
    settings.update(batch_size=16, eval_batch_size=16, total_steps=20, eval_every=10)
    settings.checkpoint.every = 0
    return settings


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def noted(folder):
    return json.loads((folder / "summary.json").read_text())["config"]


@pytest.mark.slow
def test_a_sweep_chooses_on_held_out_examples_and_tests_once(
    settings, tmp_path, monkeypatch, caplog
):
    settings.job, settings.sweep.lr, settings.sweep.held_out = "sweep", (0.03, 1e-50), 0.25
    calls = []
    original = train

    def counted(config, workdir, dataset):
        calls.append(workdir.name)
        return original(config, workdir, dataset)

    monkeypatch.setattr(runs, "train", counted)
    checked = []
    monkeypatch.setattr(
        checks, "inspect_images", lambda source, **_: checked.append(len(source)) or []
    )
    result = sweep(settings, tmp_path)
    assert checked == [50 + 18, 68 + 12]  # not again for the second rate
    assert calls == ["lr_1e-50", "lr_0.03", "best"]
    assert result["lr"] == 0.03 and result["step"] == 20

    assert "The best rate, 0.03, is at the end of sweep.lr" in caplog.text

    rows = table(result["table"])
    assert [float(row["lr"]) for row in rows] == [1e-50, 0.03]
    assert [row["chosen"] for row in rows] == ["", "yes"]
    assert float(rows[1]["held_out_accuracy"]) > float(rows[0]["held_out_accuracy"])
    assert [row["held_out_images"] for row in rows] == ["18", "18"]
    for row in rows:
        correct = round(18 * float(row["held_out_accuracy"]))
        interval = stats.binomtest(correct, 18).proportion_ci(method="wilson")
        assert float(row["held_out_accuracy_low"]) == pytest.approx(interval.low, abs=1e-4)
        assert float(row["held_out_accuracy_high"]) == pytest.approx(interval.high, abs=1e-4)
    shown = (tmp_path / "sweep.md").read_text()
    assert "| accuracy, % (95 % interval) |" in shown and "| train[63.75%:85%] | 18 |" in shown

    # 80 images: 68 to train on, of which the last 18 choose; the last 12 test.
    for name in ("lr_1e-50", "lr_0.03"):
        splits = noted(tmp_path / name)["data"]
        assert (splits["train"], splits["test"]) == ("train[0%:63.75%]", "train[63.75%:85%]")
    final = noted(tmp_path / "best")["data"]
    assert (final["train"], final["test"]) == ("train[:85%]", None)
    tested = [row for row in table(tmp_path / "best" / "metrics.csv") if row["test_accuracy"]]
    assert [row["step"] for row in tested] == ["20"]
    assert float(tested[0]["test_accuracy"]) == result["test_accuracy"]

    calls.clear()
    assert sweep(settings, tmp_path) == result
    assert calls == []  # everything was done before
    (tmp_path / "best" / "summary.json").unlink()
    sweep(settings, tmp_path)
    assert calls == ["best"]


@pytest.mark.slow
def test_equal_rates_are_decided_for_the_lowest(settings, tmp_path):
    settings.job, settings.total_steps = "sweep", 1
    settings.sweep.lr = (3e-50, 1e-50, 2e-50)  # nothing is learned by any
    assert sweep(settings, tmp_path)["lr"] == 1e-50


@pytest.mark.slow
def test_a_result_of_another_configuration_is_not_taken(settings, tmp_path):
    settings.total_steps = 1
    train_once(settings, tmp_path)
    settings.optim.lr = 0.5
    with pytest.raises(ValueError, match="holds the result of another configuration"):
        train_once(settings, tmp_path)


@pytest.fixture
def finished(settings, tmp_path):
    """A run's configuration and folder, with its result as version 0.1.0 wrote it."""
    settings.total_steps = 1
    config = json.loads(settings.to_json())
    del config["init_expected"], config["data"]["randaugment"], config["model"]["positions_at"]
    config["accumulate_steps"], config["data"]["threads"] = 1, 2
    content = {"config": config, "summary": {"step": 1, "test_accuracy": 0.5}}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    return settings, tmp_path


def test_a_study_of_an_earlier_version_goes_on(finished):
    config, folder = finished
    config.data.dir, config.log_every, config.sweep.lr = "/elsewhere", 7, (1.0,)
    with pytest.raises(ValueError, match=r"summary\.json .*\n.* held out other(.|\n)*keep this"):
        train_once(config, folder)
    config.checkpoint.other_data = True
    assert train_once(config, folder) == {"step": 1, "test_accuracy": 0.5}


@pytest.mark.parametrize(
    ("key", "value", "was"),
    [
        ("optim.lr", 0.5, "0.01"),
        ("total_steps", 2, "1"),
        ("epochs", 2.0, "None"),
        ("data.test", "train", "None"),
        ("data.eval_crop", "whole", "'central'"),
        ("data.randaugment", 2, "0"),  # the file lacks it
        ("init_from", "B/16", "None"),
        ("init_average", True, "False"),
        ("init_head", "new", "None"),
        ("fewshot.shots", (3,), r"\[1, 5, 10, 25\]"),
        ("on_nonfinite", "skip", "'stop'"),
    ],
)
def test_a_result_of_other_values_is_not_taken(finished, key, value, was):
    config, folder = finished
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"result of another configuration: {key} was {was}, is "):
        train_once(config, folder)


DAMAGE = {
    "cut off": lambda good: good[:-9],
    "empty": lambda good: b"",
    "random": lambda good: bytes(range(256)),
    "a list": lambda good: b"[1]",
    "without sections": lambda good: b'{"config": {}, "summary": {"step": 1, "test_accuracy": 1}}',
    "without an accuracy": lambda good: good.replace(b"test_accuracy", b"accuracy"),
    "of odd data": lambda good: good[:-1] + b', "data": {"class_names": [], "splits": {"a": 1}}}',
    "a folder": None,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_result_is_named(finished, kind):
    config, folder = finished
    config.checkpoint.other_data = True
    path = folder / "summary.json"
    good = path.read_bytes()
    if DAMAGE[kind] is None:
        path.unlink()
        path.mkdir()
    else:
        assert train_once(config, folder)
        path.write_bytes(DAMAGE[kind](good))
    with pytest.raises(ValueError) as error:
        train_once(config, folder)
    assert str(error.value).startswith(f"{path} is damaged: remove it, and the run is evaluated")


@pytest.fixture
def chosen(monkeypatch):
    """Each run of a study that may choose its micro-batches takes 2, 3…; {folder: number}."""
    found = {}

    def run(config, workdir, dataset):
        workdir.mkdir(parents=True)
        found[workdir] = config.accumulate_steps or 2 + len(found)
        return {"step": 1, "test_accuracy": 0.5, "test_loss": 1.0, "checkpoint": str(workdir)}

    def saved(workdir):
        return ConfigDict({"accumulate_steps": found[workdir]})

    monkeypatch.setattr(runs, "train", run)
    monkeypatch.setattr(runs, "read_config", saved)
    monkeypatch.setattr(runs.jax, "device_count", lambda: 1)
    return found


def test_a_data_set_is_opened_once_for_each_run(settings, tmp_path, monkeypatch):
    """So the fingerprint in summary.json is of the data that were trained on."""
    opened, trained_on = [], []
    original = runs.sources.open_dataset

    def counted(*arguments):
        opened.append(original(*arguments))
        return opened[-1]

    def run(config, workdir, dataset):
        trained_on.append(dataset)
        workdir.mkdir()
        return {"step": 1}

    monkeypatch.setattr(runs.sources, "open_dataset", counted)
    monkeypatch.setattr(runs, "train", run)
    train_once(settings, tmp_path / "run")
    assert len(opened) == 1 and trained_on == opened


def test_other_few_shot_data_are_other_data(settings, tmp_path, monkeypatch):
    few_shot = write_jpegs(tmp_path / "few", {"a": 20, "b": 20}, size=(16, 16))
    settings.fewshot.update(every=1, name=str(few_shot), shots=(1,))
    result = {"step": 1, "test_accuracy": 0.5}
    monkeypatch.setattr(runs, "train", lambda _, workdir, __: workdir.mkdir() or result)
    for _ in range(2):
        assert train_once(settings, tmp_path / "run") == result
    (few_shot / "a").rename(few_shot / "c")
    with pytest.raises(ValueError, match=r"the few-shot train split, train\[:85%\], has"):
        train_once(settings, tmp_path / "run")


def test_the_runs_of_a_sweep_are_computed_alike(settings, tmp_path, chosen):
    settings.job, settings.sweep.lr = "sweep", (0.3, 0.1, 0.2)
    sweep(settings, tmp_path)
    assert {path.name: steps for path, steps in chosen.items()} == {
        name: 2 for name in ("lr_0.1", "lr_0.2", "lr_0.3", "best")
    }
    assert noted(tmp_path / "best")["accumulate_steps"] is None  # as the user left it


def test_the_runs_of_each_compared_model_are_computed_alike(
    comparison, tmp_path, chosen, monkeypatch
):
    """16 images can't be cut into the six parts of the second model: its runs choose."""
    point = Point(1.0, [0.5], 12)
    row = dict.fromkeys(("run", "parameters", "mflops_per_image", "images_seen"), 1)
    row |= dict.fromkeys(("images_per_second", "exaflops", "seeds", "accuracy"), 1)
    row |= dict.fromkeys(("accuracy_std", "accuracy_low", "accuracy_high"), 1)
    monkeypatch.setattr(compare_file, "_compared", lambda *_: (point, row))
    compare(comparison, tmp_path)
    assert [*chosen.values()] == [2, 2, 2, 2, 6, 7, 8, 9]


@pytest.fixture
def comparison(settings):
    settings.job, settings.total_steps = "compare", None
    settings.compare.epochs, settings.compare.seeds = (1, 2), 2
    resnet = {key: None for key in settings.model} | {"variant": "R50x1", "layers": (1,)}
    settings.compare.runs = ConfigDict({"ViT": {}, "ResNet": {"model": resnet}})
    return settings


@pytest.mark.slow
def test_a_comparison_counts_what_it_spent(comparison, tmp_path):
    result = compare(comparison, tmp_path)
    rows = table(result["table"])
    assert result["runs"] == 8
    assert [row["run"] for row in rows] == ["ResNet", "ResNet", "ViT", "ViT"]
    assert {row["seeds"] for row in rows} == {"2"}
    flops = {
        "ViT": forward_flops(
            "Ti/16", 16, num_classes=3, width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=8
        ),
        "ResNet": forward_flops("R50x1", 16, num_classes=3, layers=(1,)),
    }
    for row, steps in zip(rows, (4, 8, 4, 8), strict=True):  # of 68 images, 16 a step
        assert int(row["images_seen"]) == 16 * steps
        expected = 3 * flops[row["run"]] * 16 * steps / 1e18
        assert float(row["exaflops"]) == pytest.approx(expected, rel=0.01)
    for row in rows:
        folder = tmp_path / row["run"] / f"epochs_{1 if row['images_seen'] == '64' else 2}"
        found = [
            json.loads((folder / f"seed_{seed}" / "summary.json").read_text())["summary"]
            for seed in (0, 1)
        ]
        mean = sum(summary["test_accuracy"] for summary in found) / 2
        assert float(row["accuracy"]) == pytest.approx(mean, abs=1e-4)
        assert (row["test_split"], row["test_images"]) == ("train[85%:]", "12")
        distance = 1.959964 * np.sqrt(mean * (1 - mean) / 12 + (1.959964 / 24) ** 2)
        width = 2 * distance / (1 + 1.959964**2 / 12)  # of Wilson's interval
        found_width = float(row["accuracy_high"]) - float(row["accuracy_low"])
        assert found_width == pytest.approx(width, abs=2e-4)
    shown = (tmp_path / "compare.md").read_text()
    assert shown.count("\n| ViT |") == 2 and "| accuracy, % (± over seeds) |" in shown
    picture = matplotlib.image.imread(result["figure"])
    assert picture.std() > 0.01  # something is drawn


def test_the_figure_shows_every_point(tmp_path, monkeypatch):
    drawn = []
    axes = matplotlib.axes.Axes
    original = axes.errorbar

    def record(self, x, y, bars, **options):
        drawn.append((list(x), list(y), bars, options["label"]))
        return original(self, x, y, bars, **options)

    monkeypatch.setattr(axes, "errorbar", record)
    series = {"a": [Point(2.0, [0.5, 0.7], 30), Point(1.0, [0.25, 0.25], 30)]}
    titles = []
    monkeypatch.setattr(axes, "set_title", lambda self, text, **_: titles.append(text))
    accuracy_against_compute(series, tmp_path / "x.png")
    ((x, y, (below, above), label),) = drawn
    assert (x, label) == ([1.0, 2.0], "a")
    assert y == pytest.approx([25, 60])
    assert below == pytest.approx([0, 10]) and above == pytest.approx([0, 10])
    (title,) = titles
    assert "mean of 2 seeds. Bars: smallest to largest" in title
    low, high = stats.binomtest(18, 30).proportion_ci(method="wilson")
    half = f"{50 * (high - low):.1f}"
    assert f"30 test images leave each accuracy uncertain by up to ± {half} points" in title


def test_the_figure_says_that_points_are_single_runs(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "set_title", lambda self, text, **_: titles.append(text)
    )
    series = {"a": [Point(1.0, [0.5], 100)], "b": [Point(1.0, [0.9], 400)]}
    accuracy_against_compute(series, tmp_path / "x.png")
    assert "Each point is one run.\n100 to 400 test images" in titles[0]
    assert "± 9.6 points (95 %)" in titles[0]  # 50 of 100: 40.4 to 59.6 %


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "compare.runs is empty"),
        ({"a": {"optim": {"rate": 1.0}}}, "compare.runs.a: "),
        ({"a": {"model": {"variant": "B/17"}}}, "compare.runs.a: model: There is no model variant"),
        ({"a": {"data": {"crop": "centre"}}}, "compare.runs.a: data.crop='centre' is unknown"),
        ({"a": {"epochs": 3.0}}, "compare.runs.a.epochs=3.0 would not be read, because compare.ep"),
    ],
)
def test_wrong_comparisons_are_explained(comparison, runs, message):
    comparison.compare.runs = ConfigDict(runs)
    with pytest.raises(ValueError) as error:
        validation.validate(comparison)
    assert message in str(error.value)


def test_a_length_beside_those_to_compare_is_refused(comparison):
    comparison.total_steps = 9
    with pytest.raises(
        ValueError, match=r"total_steps=9 would not be read.*compare.epochs to \(\)"
    ):
        validation.validate(comparison)
    comparison.compare.epochs = ()
    validation.validate(comparison)


def test_held_out_examples_come_from_the_end_of_every_part():
    sizes = {"train": 100, "validation": 31}
    assert splits.hold_out("train", 0.1, sizes) == ("train[0:90]", "train[90:100]")
    assert splits.hold_out("train[:50%]+validation", 0.1, sizes) == (
        "train[0:45]+validation[0:28]",
        "train[45:50]+validation[28:31]",
    )
    assert splits.hold_out("train[20:22]", 0.01, sizes) == ("train[20:21]", "train[21:22]")
    with pytest.raises(ValueError, match="train is too small to be divided"):
        splits.hold_out("train[:1]", 0.5, sizes)


def test_held_out_examples_of_a_folder_are_a_part_in_per_cent():
    """So that a file's name alone decides on which side it is."""
    sizes = {"train": 100, "val": 31}

    def divide(split, share):
        return splits.hold_out(split, share, sizes, by_position=True)

    assert divide("train", 0.1) == ("train[0%:90%]", "train[90%:100%]")
    assert divide("train[10%:-15%]", 0.25) == ("train[10%:66.25%]", "train[66.25%:85%]")
    assert divide("train[:85%]+val", 0.1) == (
        "train[0%:76.5%]+val[0%:90%]",
        "train[76.5%:85%]+val[90%:100%]",
    )
    assert divide("all", 0.5) == (
        "train[0%:50%]+val[0%:50%]",
        "train[50%:100%]+val[50%:100%]",
    )
    assert divide("train[:50]", 0.1) == ("train[0:45]", "train[45:50]")  # counted, as for others


def test_of_rates_with_equal_accuracy_the_loss_decides():
    """On few held-out images, accuracies are often equal."""
    rows = [
        {"lr": rate, "held_out_accuracy": accuracy, "held_out_loss": loss}
        for rate, accuracy, loss in [(0.001, 0.4, 1.6), (0.003, 0.4, 1.4), (0.01, 0.3, 1.3)]
    ]
    assert _best(rows)["lr"] == 0.003
