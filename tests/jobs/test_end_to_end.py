"""Trains for a few steps for real, as a user would."""

import csv
import json
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from conftest import REPOSITORY, TINY, environment, launch, rows, rows_of, write_jpegs
from scipy import stats

from vit_jax import models
from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.notices import log_notices
from vit_jax.jobs.resume import Start
from vit_jax.jobs.train import train
from vit_jax.weights.api import load, load_params, save, save_params


def test_training_learns_and_writes_what_it_promises(settings, tmp_path):
    """The classes are three colours: a few dozen steps tell them apart."""
    settings.total_steps, settings.eval_every, settings.log_every = 60, 30, 15
    summary = train(settings, tmp_path)
    assert summary["step"] == 60
    assert summary["test_accuracy"] > 0.9
    assert summary["images_per_second"] > 0
    saved = read_checkpoint(summary["checkpoint"])
    assert (saved.step, saved.config.data.eval_resize) == (60, "bilinear")  # None in `settings`

    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["15", "30", "45", "60"]
    assert [bool(row["test_accuracy"]) for row in table] == [False, True, False, True]
    assert float(table[-1]["test_accuracy"]) == summary["test_accuracy"]
    assert all(float(row["images_per_second"]) > 0 for row in table)
    expected = 0.05 * (1 + np.cos(np.pi * 14 / 60))  # of the step that led to step 15
    assert float(table[0]["learning_rate"]) == pytest.approx(expected, rel=1e-5)
    assert float(table[0]["train_loss"]) > float(table[-1]["train_loss"])


@pytest.mark.slow
def test_a_warm_up_longer_than_the_run_is_warned_of(settings, tmp_path, caplog):
    settings.update(total_steps=2)
    settings.optim.warmup_steps = 2
    train(settings, tmp_path)
    assert "optim.warmup_steps=2 is no shorter than the run of 2 steps" in caplog.text


def test_bfloat16_on_a_cpu_is_warned_of(settings, caplog):
    for settings.dtype in ("float32", "bfloat16"):
        caplog.clear()
        log_notices(settings, Start(settings, None), images=80)
        is_told = "takes longer than 'float32'" in caplog.text
        assert is_told == (settings.dtype == "bfloat16")


def test_a_finished_run_started_again_only_evaluates(settings, tmp_path):
    first = train(settings, tmp_path)
    again = train(settings, tmp_path)
    for key in ("step", "test_accuracy", "test_loss", "checkpoint"):
        assert first[key] == again[key]


def test_evaluate_reads_model_and_classes_from_the_checkpoint(settings, tmp_path):
    summary = train(settings, tmp_path)
    settings.job, settings.model.width, settings.data.image_size = "evaluate", 192, 224
    result = evaluate(settings, tmp_path)
    assert result["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    with open(result["confusion_matrix"], newline="") as file:
        header, *table = csv.reader(file)
    counts = np.array([[int(x) for x in row[1:]] for row in table])
    assert header[1:] == [row[0] for row in table] == ["blue", "green", "red"]
    assert counts.sum() == 12  # the last 15 % of 80
    assert np.trace(counts) / 12 == pytest.approx(result["test_accuracy"])
    assert (result["test_split"], result["test_images"]) == ("train[85%:]", 12)
    assert result["data"] == settings.data.name
    interval = stats.binomtest(int(np.trace(counts)), 12).proportion_ci(method="wilson")
    assert result["test_accuracy_low"] == pytest.approx(interval.low)
    assert result["test_accuracy_high"] == pytest.approx(interval.high)


def test_evaluate_refuses_data_of_other_classes(settings, tmp_path):
    train(settings, tmp_path / "run")
    settings.data.name = str(write_jpegs(tmp_path / "other", {"x": 4, "y": 4}))
    with pytest.raises(ValueError, match=r"has 3 classes \(blue; green; red\), but"):
        evaluate(settings, tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_starts_from_the_other_run_at_a_higher_resolution(settings, tmp_path):
    train(settings, tmp_path / "small")
    settings.update(init_from=str(tmp_path / "small"), total_steps=1, batch_size=8)
    settings.optim.update(lr=1e-30, clip_norm=0.0)
    settings.data.image_size = (32, 24)
    settings.data.name = str(write_jpegs(tmp_path / "other", {"x": 10, "y": 14}))
    train(settings, tmp_path / "large")
    old, new = (read_checkpoint(tmp_path / name).params for name in ("small", "large"))
    np.testing.assert_array_equal(new["embedding"]["kernel"], old["embedding"]["kernel"])
    old_table, new_table = (
        p["Transformer"]["posembed_input"]["pos_embedding"][0, 1:] for p in (old, new)
    )
    corners_old = old_table.reshape(2, 2, -1)
    corners_new = new_table.reshape(4, 3, -1)[::3, ::2]
    np.testing.assert_allclose(corners_new, corners_old, rtol=1e-5)
    assert new["head"]["kernel"].shape == (16, 2)


@pytest.mark.slow
def test_masked_patches_then_fine_tuning(settings, tmp_path):
    """No label is read; the encoder goes on, the prediction head and the mask stay behind."""
    settings.update(objective="masked_patches", total_steps=2, accumulate_steps=2)
    settings.model.pool = "gap"
    settings.fewshot.update(every=2, shots=(1, 2), seeds=2)
    summary = train(settings, tmp_path / "masked")
    assert {"test_loss", "test_accuracy", "fewshot_1", "fewshot_2"} <= set(summary)
    pretrained = read_checkpoint(tmp_path / "masked")
    assert pretrained.class_names == () and pretrained.num_classes == 0
    assert pretrained.params["patch_head"]["kernel"].shape == (16, 512)

    with pytest.raises(ValueError, match=r"no head to classify with: fine-tune from it"):
        evaluate(settings, tmp_path / "masked")
    again = few_shot(settings, tmp_path / "masked")
    assert again["fewshot_1"] == pytest.approx(summary["fewshot_1"])
    assert again["fewshot_2"] == pytest.approx(summary["fewshot_2"])
    scores = rows_of(again["table"])
    assert [(row["shots"], row["seed"]) for row in scores] == [
        ("1", "0"),
        ("1", "1"),
        ("2", "0"),
        ("2", "1"),
    ]
    accuracies = [float(row["accuracy"]) for row in scores if row["shots"] == "2"]
    assert np.mean(accuracies) == pytest.approx(again["fewshot_2"])
    assert np.std(accuracies) == pytest.approx(again["fewshot_2_std"])

    settings.update(objective="classification", init_from=str(tmp_path / "masked"), total_steps=1)
    settings.optim.update(lr=1e-30, clip_norm=0.0)
    settings.model.pool = None  # taken from the weights
    train(settings, tmp_path / "tuned")
    tuned = read_checkpoint(tmp_path / "tuned").params
    assert set(tuned) == {"Transformer", "embedding", "head"}
    for name in ("Transformer", "embedding"):
        jax.tree.map(np.testing.assert_array_equal, tuned[name], pretrained.params[name])

    with pytest.raises(ValueError, match="place for its mask_token and patch_head: leave"):
        save(load(tmp_path / "masked"), tmp_path / "x.npz")
    save(load(tmp_path / "masked", num_classes=0), tmp_path / "y.npz")
    found = load_params(tmp_path / "y.npz", **TINY, pool="gap")
    assert set(found) == {"Transformer", "embedding"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["downsized", "pixels"])
def test_the_other_targets_of_masked_patches_train(settings, tmp_path, target):
    settings.update(objective="masked_patches", total_steps=2)
    settings.masked.target = target
    summary = train(settings, tmp_path)
    assert np.isfinite(summary["test_loss"])
    assert ("test_accuracy" in summary) == (target == "downsized")


@pytest.mark.slow
def test_averaged_parameters_are_evaluated_beside_the_last(settings, tmp_path):
    settings.optim.polyak = 0.9
    summary = train(settings, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert float(last["polyak_test_loss"]) == summary["polyak_test_loss"]
    assert summary["polyak_test_loss"] != summary["test_loss"]
    result = evaluate(settings, tmp_path / "run")
    for name in ("test_loss", "polyak_test_loss", "polyak_test_accuracy"):
        assert result[name] == pytest.approx(summary[name], rel=1e-5)

    saved = read_checkpoint(tmp_path / "run")
    settings.update(init_from=str(tmp_path / "run"), init_average=True, total_steps=1)
    settings.optim.update(lr=1e-30, clip_norm=0.0, polyak=0.0)
    train(settings, tmp_path / "tuned")
    found = read_checkpoint(tmp_path / "tuned").params["Transformer"]
    jax.tree.map(np.testing.assert_array_equal, found, saved.average["Transformer"])

    settings.init_from = str(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"tuned.* has no Polyak average"):
        train(settings, tmp_path / "more")


@pytest.mark.slow
def test_few_shot_evaluation_of_weights_from_elsewhere(settings, tmp_path):
    """At the image size they are for, on the data set of its own choice."""
    model = models.build("Nano/8", num_classes=0)
    params = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))["params"]
    save_params(params, tmp_path / "x.npz", variant="Nano/8", format="npz")
    folder = write_jpegs(tmp_path / "other", {"x": 20, "y": 20})
    settings.update(init_from=str(tmp_path / "x.npz"))
    settings.data.update(image_size=224, name="/nowhere")
    settings.fewshot.update(shots=(5,), name=str(folder))
    result = few_shot(settings, tmp_path / "out")
    assert result["fewshot_5"] > 0.9  # two colours
    assert (result["test_split"], result["test_images"]) == ("train[85%:]", 6)
    assert {row["images"] for row in rows_of(result["table"])} == {"6"}
    for row in rows_of(result["table"]):
        interval = stats.binomtest(round(6 * float(row["accuracy"])), 6).proportion_ci(
            method="wilson"
        )
        assert float(row["accuracy_low"]) == pytest.approx(interval.low)
    assert (tmp_path / "out" / "fewshot.md").read_text().count("other, train[85%:] | 6 |") == 1
    assert result["step"] == 0


def converted(settings, tmp_path, destination, format):
    """A run, and its checkpoint in another format."""
    settings.update(total_steps=10, eval_every=0)
    settings.checkpoint.every = 0
    summary = train(settings, tmp_path / "run")
    save(load(tmp_path / "run"), destination, format=format)
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["x.npz", "x.safetensors", "hf", "orbax"])
def test_fine_tuning_starts_from_weights_of_any_format(settings, tmp_path, ending):
    format = "hf" if ending == "hf" else None
    converted(settings, tmp_path, tmp_path / ending, format=format)
    settings.update(init_from=str(tmp_path / ending), total_steps=1, init_head="new")
    settings.optim.update(lr=1e-30, clip_norm=0.0)
    settings.data.image_size = 32
    train(settings, tmp_path / "tuned")
    old, new = (read_checkpoint(tmp_path / name).params for name in ("run", "tuned"))
    np.testing.assert_array_equal(new["embedding"]["kernel"], old["embedding"]["kernel"])
    assert new["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, 17, 16)
    assert np.abs(new["head"]["kernel"]).max() < 1e-20  # a new one, of zeros


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["x.npz", "x.safetensors", "hf"])
def test_evaluating_weights_of_any_format(settings, tmp_path, ending):
    """The names of the classes are in the file: data with other classes are refused."""
    for key in settings.model:
        settings.model[key] = None
    settings.model.variant = "Nano/8"
    settings.optim.update(name="adam", lr=1e-3)
    summary = converted(
        settings, tmp_path, tmp_path / ending, format="hf" if ending == "hf" else None
    )
    settings.update(job="evaluate", init_from=str(tmp_path / ending))
    settings.data.test = "train[85%:]"  # the file doesn't say what the run was tested on
    result = evaluate(settings, tmp_path / "new" / "workdir")
    assert result["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-4)
    settings.data.name = str(write_jpegs(tmp_path / "other", {"x": 4, "y": 4}))
    with pytest.raises(ValueError, match=r"has 3 classes \(blue; green; red\), but"):
        evaluate(settings, tmp_path)


@pytest.mark.slow
def test_what_weights_are_computed_with_outlives_their_file(settings, tmp_path):
    """GELU and epsilon of a Hugging Face folder, in the run's checkpoint and when it goes on."""
    model = models.build(num_classes=0, **TINY)
    params = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))["params"]
    mathematics = dict(gelu="exact", norm_epsilon=1e-3)
    save_params(params, tmp_path / "hf", format="hf", **TINY, **mathematics)
    settings.update(init_from=str(tmp_path / "hf"), total_steps=2)
    train(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "hf")
    settings.total_steps = 4
    train(settings, tmp_path / "run")
    for step in (2, 4):
        saved = read_checkpoint(tmp_path / "run" / "checkpoints" / str(step)).model()
        assert {key: getattr(saved, key) for key in mathematics} == mathematics


@pytest.mark.slow
def test_weights_of_another_variant_are_refused_before_training(settings, tmp_path):
    model = models.build(num_classes=0, **TINY)
    params = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))["params"]
    save_params(params, tmp_path / "x.npz", format="npz", **TINY)
    settings.init_from = str(tmp_path / "x.npz")
    settings.model.update(depth=2)
    with pytest.raises(ValueError, match=r"x\.npz isn't a Ti/16.*encoderblock_1/.* is missing"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        dict(
            variant="R50+B/16",
            stem=(1, 1),
            patch_size=1,
            width=16,
            depth=1,
            mlp_dim=16,
            num_heads=2,
        ),
        dict(variant="R50x1", layers=(1, 1)),
        dict(variant="Axial-B/16", patch_size=8, width=16, depth=1, mlp_dim=16, num_heads=2),
        dict(TINY, positions="2d", pool="gap"),
    ],
    ids=lambda model: model["variant"],
)
def test_every_kind_of_model_trains_and_is_opened_again(settings, tmp_path, model):
    for key in list(settings.model):
        settings.model[key] = model.get(key)
    settings.total_steps = 2
    first = train(settings, tmp_path)
    opened = read_checkpoint(tmp_path)
    built = models.build(num_classes=3, **model)
    assert opened.model() == built
    again = evaluate(settings, tmp_path)
    assert again["test_loss"] == pytest.approx(first["test_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("config_file", "splits"), [("pretrain", True), ("finetune", False)])
def test_the_command_runs_with_and_without_split_folders(tmp_path, config_file, splits):
    folder = tmp_path / "data"
    for part in ("train", "test") if splits else ("",):
        write_jpegs(folder / part, {"a": 20, "b": 24})
    command = launch(
        "--config.total_steps=2",
        "--config.optim.lr=0.01",
        config=f"configs/{config_file}.py:ti16,{{}}",
        folder=folder,
        workdir=tmp_path / "run",
    )
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary["step"] == 2
    assert {"test_accuracy", "test_loss", "images_per_second", "checkpoint"} <= set(summary)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_continues(image_folder, tmp_path, number):
    command = launch(
        "--config.total_steps=100000",
        "--config.checkpoint.every=20",
        "--config.eval_every=0",
        folder=image_folder,
        workdir=tmp_path,
    )
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "checkpoints").glob("[1-9]*")):
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped; the same command goes on" in errors and "Traceback" not in errors

    saved = read_checkpoint(tmp_path).step
    last = command[:]
    last[last.index("--config.total_steps=100000")] = f"--config.total_steps={saved + 3}"
    done = subprocess.run(
        last, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    assert f"continuing from {tmp_path}/checkpoints/{saved}" in done.stderr
    assert json.loads(done.stdout)["step"] == saved + 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.job=trian"], "did you mean 'train'?"),
        (["--config.optim.rl=1"], "there is no key optim.rl; did you mean optim.lr?"),
        (["--config.optim.lr=fast"], "--config.optim.lr=fast: could not convert string to float"),
        (["--confg=x"], "Unknown command line flag 'confg'. Did you mean: config,"),
        (["--config=configs/pretrain.py:B/17,x"], "ValueError: There is no model variant 'B/17'"),
        (["--config=configs/none.py"], "configs/none.py"),
        pytest.param(
            ["--config.data.name=imagenet2012", "--config.data.dir=/nowhere"],
            "ImportError: /nowhere holds nothing of imagenet2012, and tfds's own code needs",
            marks=pytest.mark.skipif(bool(find_spec("tensorflow")), reason="it could prepare it"),
        ),
    ],
)
def test_a_wrong_command_line_gets_one_clear_message(tmp_path, changes, message):
    command = launch(*changes, folder="/nowhere", workdir=tmp_path)
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
