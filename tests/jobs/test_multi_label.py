"""Runs on images with several labels, and with a sigmoid on images with one."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import REPOSITORY, TINY, environment, launch, rows, rows_of, write_jpegs
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from vit_jax import convert, predict
from vit_jax.config.defaults import default
from vit_jax.data.folders import FolderDataset
from vit_jax.inference.classifier import Classifier, prepare, read_image, view_image
from vit_jax.inference.exporter import export
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.sweep import sweep
from vit_jax.jobs.train import train
from vit_jax.models.patches import to_float
from vit_jax.training.setup import set_up
from vit_jax.weights.api import load

LABELS = {"blue": "cold;blue", "red": "warm;red", "green": "green"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty images of three colours, whose labels are of the colour or, "odd", of their number."""
    root = write_jpegs(tmp_path_factory.mktemp("labelled"), dict.fromkeys(LABELS, 20))
    odd = ("", ";odd", "")
    lines = [f"{x}/{i}.jpg,{labels}{odd[i % 3]}" for x, labels in LABELS.items() for i in range(20)]
    (root / "labels.csv").write_text("\n".join(["file,label", *lines]))
    return root


@pytest.fixture
def several(settings, folder):
    """The configuration of a run on these images."""
    settings.data.name, settings.optim.loss = str(folder), "sigmoid"
    return settings


def logits_of(run, settings):
    """Logits and labels of the test images, by a plain forward pass."""
    checkpoint, dataset = prepare(load(run)), FolderDataset(settings.data.name)
    files = dataset.source("train[85%:]").files
    views = np.stack([view_image(read_image(path), checkpoint) for path, _ in files])
    logits = checkpoint.model().apply({"params": checkpoint.params}, to_float(views))
    labels = np.array([np.isin(np.arange(6), [*label]) for _, label in files])
    return np.asarray(logits, np.float64), labels


@pytest.mark.parametrize("strategy", ["pmap", "sharded"])
def test_a_run_learns_all_labels_and_measures_them(several, tmp_path, strategy):
    steps = 20 if strategy == "pmap" else 2
    several.update(parallel=strategy, accumulate_steps=2, total_steps=steps, eval_every=0)
    several.optim.update(lr=0.1, polyak=0.9)
    several.data.mixup = 0.2
    summary = train(several, tmp_path / "run")
    logits, labels = logits_of(tmp_path / "run", several)
    counted = labels.any(0)
    expected = average_precision_score(labels[:, counted], logits[:, counted])
    assert summary["test_mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    right = labels[np.arange(len(labels)), logits.argmax(-1)].mean()
    assert summary["test_precision_at_1"] == pytest.approx(right)
    loss = np.logaddexp(0, np.where(labels, -logits, logits)).sum(-1).mean()
    assert summary["test_loss"] == pytest.approx(loss, rel=1e-4)
    last = rows(tmp_path / "run")[-1]
    for name in ("test_mean_average_precision", "polyak_test_precision_at_1", "test_loss"):
        assert float(last[name]) == pytest.approx(summary[name])
    assert "test_accuracy" not in last
    if strategy == "sharded":
        return
    assert 0.7 < summary["test_mean_average_precision"] < 1  # nothing shows which numbers are odd
    assert float(last["train_precision_at_1"]) > 0.5
    several.init_from = str(tmp_path / "run")
    result = evaluate(several, tmp_path / "out")
    for name in ("mean_average_precision", "precision_at_1", "loss"):
        assert result[f"test_{name}"] == pytest.approx(summary[f"test_{name}"], rel=1e-5)
    assert result["test_precision_at_1_low"] < result["test_precision_at_1"]
    assert "confusion_matrix" not in result and "mistakes" not in result
    with np.errstate(all="ignore"):
        theirs = precision_recall_fscore_support(labels, logits > 0, zero_division=np.nan)
    for i, row in enumerate(rows_of(result["class_metrics"])):
        for column, values in zip(("precision", "recall", "f1", "images"), theirs, strict=True):
            value = float(row[column]) if row[column] else np.nan
            assert value == pytest.approx(values[i], abs=5e-5, nan_ok=True)
        if labels[:, i].any():
            precision = average_precision_score(labels[:, i], logits[:, i])
            assert float(row["average_precision"]) == pytest.approx(precision, abs=5e-5)
    several.calibrate = True
    with pytest.raises(ValueError, match="calibrate=True needs one label an image"):
        evaluate(several, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "average precision" in page and "Reliability" not in page and "<img" not in page
    assert not (tmp_path / "out" / "confusion_matrix.csv").exists()
    assert rows_of(result["table"])[1]["parameters"] == "Polyak average"
    assert "mean average precision, %" in (tmp_path / "out" / "evaluation.md").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder):
    """The workdir of a run of three steps."""
    config = default()
    config.model.update(**TINY)
    config.data.update(name=str(folder), image_size=16)
    config.update(batch_size=16, eval_batch_size=8, total_steps=3)
    config.optim.update(loss="sigmoid", lr=0.1)
    workdir = tmp_path_factory.mktemp("run")
    train(config, workdir)
    return workdir


def test_probabilities_are_those_of_a_sigmoid_in_every_format(trained, folder, tmp_path, capsys):
    image = folder / "red" / "3.jpg"
    checkpoint = prepare(load(trained))
    logits = checkpoint.model().apply(
        {"params": checkpoint.params}, to_float(view_image(read_image(image), checkpoint))[None]
    )[0]
    expected = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    formats = {"run": trained}
    for name in ("x.npz", "x.safetensors", "hf"):
        formats[name] = tmp_path / name
        extra = ["--format=hf"] if name == "hf" else []
        convert.main([str(trained), str(tmp_path / name), *extra])
    for name, source in formats.items():
        assert load(source).loss == "sigmoid"
        (found,) = Classifier(source).predict([image], top=6)
        shares = {x.label: x.probability for x in found}
        if name != "hf":  # whose way of resizing is another
            for label, share in zip(checkpoint.class_names, expected, strict=True):
                assert shares[label] == pytest.approx(share, abs=1e-5)
        assert abs(sum(shares.values()) - 1) > 0.05
    capsys.readouterr()
    predict.main([str(trained), str(image), "--top=1"])
    best = int(expected.argmax())
    assert f"{checkpoint.class_names[best]} {100 * expected[best]:.1f} %" in capsys.readouterr().out

    description = export(checkpoint, tmp_path / "m.stablehlo")
    assert description["probabilities"] == "sigmoid"
    answer = subprocess.run(
        [sys.executable, tmp_path / "m.py", image],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    ).stdout
    assert f"{checkpoint.class_names[best]} {100 * expected[best]:.1f} %" in answer


def test_several_labels_are_refused_by_the_key(several, trained, image_folder, tmp_path):
    several.optim.loss = "softmax"
    with pytest.raises(
        ValueError, match=r"have several labels.* has [23]\), and optim.loss='softmax'"
    ):
        train(several, tmp_path / "run")
    several.optim.loss, several.fewshot.every = "sigmoid", 2
    with pytest.raises(ValueError, match=r"Few-shot evaluation .*fewshot\.name"):
        train(several, tmp_path / "run")
    several.init_from, several.job = str(trained), "fewshot"
    with pytest.raises(ValueError, match=r"Few-shot evaluation .*fewshot\.name"):
        few_shot(several, tmp_path / "out")
    several.job, several.fewshot.every, several.init_from = "train", 0, None
    several.data.name, several.optim.loss = str(image_folder), "softmax"
    several.total_steps = 1
    train(several, tmp_path / "one")
    several.update(job="evaluate", init_from=str(tmp_path / "one"))
    several.data.name = str(FolderDataset(load(trained).config.data.name).folder)
    with pytest.raises(ValueError, match=r"optim\.loss='softmax' takes .*/one/.* was trained"):
        evaluate(several, tmp_path / "out")


def test_a_run_does_not_go_on_with_another_loss_or_head_bias(trained):
    config = load(trained).config
    for key, other in (("optim.loss", "softmax"), ("model.head_bias", -10.0)):
        changed = default()
        changed.update_from_flattened_dict(
            {"data.name": config.data.name, "data.image_size": 16, key: other}
        )
        changed.model.update(TINY)
        changed.update(batch_size=16, eval_batch_size=8, total_steps=3)
        changed.optim.lr = 0.1
        if key != "optim.loss":
            changed.optim.loss = "sigmoid"
        with pytest.raises(ValueError, match=rf"configuration:\n- {key} was .*, is .*{other}"):
            train(changed, trained)


def test_test_images_without_labels_leave_the_column_empty(several, folder, tmp_path):
    for split, labels in (("train", "a;b"), ("test", "")):
        place = tmp_path / "data" / split
        place.mkdir(parents=True)
        for i in range(16):
            (place / f"{i}.jpg").symlink_to(folder / "red" / f"{i}.jpg")
        lines = [f"{i}.jpg,{labels}" for i in range(16)]
        (place / "labels.csv").write_text("\n".join(lines))
    several.data.name, several.total_steps = str(tmp_path / "data"), 1
    summary = train(several, tmp_path / "run")
    assert summary["test_precision_at_1"] == 0 and "test_mean_average_precision" not in summary
    assert rows(tmp_path / "run")[-1]["test_mean_average_precision"] == ""


def test_a_sweep_goes_by_precision_at_one(several, tmp_path):
    several.update(job="sweep", total_steps=2)
    several.sweep.lr = (0.01, 0.1)
    result = sweep(several, tmp_path)
    table = rows_of(result["table"])
    assert [row["lr"] for row in table] == ["0.01", "0.1"]
    assert all(0 <= float(row["held_out_accuracy"]) <= 1 for row in table)
    assert 0 <= result["test_precision_at_1"] <= 1


@pytest.mark.parametrize("variant", ["Ti/16", "R50x1"])
def test_a_new_head_starts_with_the_bias_of_the_configuration(settings, tmp_path, variant):
    settings.model.head_bias, settings.optim.loss = -10.0, "sigmoid"
    if variant == "R50x1":
        settings.model.update(dict.fromkeys(settings.model, None))
        settings.model.update(variant=variant, layers=(1,), head_bias=-10.0)
    setup = set_up(settings, num_classes=3, total_steps=1)
    state = jax.jit(setup.init_state)(setup.init_key)
    np.testing.assert_array_equal(state.params["head"]["bias"], [-10.0] * 3)
    np.testing.assert_array_equal(state.params["head"]["kernel"], 0)


def test_fine_tuning_gives_a_new_head_its_bias_and_keeps_an_old_one(settings, tmp_path):
    settings.update(total_steps=1, eval_every=0)
    train(settings, tmp_path / "a")
    settings.init_from, settings.model.head_bias = str(tmp_path / "a"), -10.0
    settings.optim.update(lr=1e-6, loss="sigmoid")
    for choice, near in (("new", -10.0), ("keep", 0.0)):  # zero, but for one step
        settings.init_head = choice
        train(settings, tmp_path / choice)
        bias = np.asarray(load(tmp_path / choice).params["head"]["bias"])
        np.testing.assert_allclose(bias, near, atol=0.2)


def test_one_label_with_a_sigmoid_keeps_accuracy_and_confusions(settings, tmp_path):
    settings.optim.update(loss="sigmoid", lr=0.1)
    settings.update(total_steps=12, eval_every=0, dtype="bfloat16")
    summary = train(settings, tmp_path / "run")
    assert summary["test_accuracy"] > 0.8
    settings.init_from = str(tmp_path / "run")
    result = evaluate(settings, tmp_path / "out")
    assert result["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-3)
    assert rows_of(result["confusion_matrix"])


@pytest.mark.slow
def test_the_command_learns_the_photos_labels(photos, tmp_path):
    """`python -m vit_jax.main` on real photos, of which all but one kind are yellow or white."""
    labels = {"daisy": "flower;white", "sunflowers": "flower;yellow", "dandelion": "yellow"}
    lines = []
    for kind, names in labels.items():
        for path in sorted((photos / kind).glob("*.jpg"))[:40]:
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / kind / path.name).symlink_to(path)
            lines.append(f"{kind}/{path.name},{names}")
    (tmp_path / "data" / "labels.csv").write_text("file,label\n" + "\n".join(lines))
    command = launch(
        *("--config.optim.loss=sigmoid", "--config.model.head_bias=-10", "--config.epochs=10"),
        *("--config.optim.warmup_steps=5", "--config.optim.lr=0.03", "--config.eval_every=10"),
        folder=tmp_path / "data",
        workdir=tmp_path / "run",
    )
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment(), capture_output=True)
    measured = [row for row in rows(tmp_path / "run") if row["test_loss"]]
    first, last = (float(row["test_loss"]) for row in (measured[0], measured[-1]))
    assert last < first / 2
    assert float(measured[-1]["test_mean_average_precision"]) > 0.5
