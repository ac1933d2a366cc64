"""A run that goes on, or is evaluated, on data that have changed since."""

import contextlib
import json
import logging
import pathlib
import shutil

import pytest
from conftest import TINY, write_jpegs
from etils import epath

import vit_jax
from vit_jax.data import inputs, sources
from vit_jax.data.checks import check_folder
from vit_jax.jobs import runs
from vit_jax.jobs.fewshot import few_shot

DATA = pathlib.Path("data")  # in the working directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the images `data` and the folder `run` of a step on them."""
    folder = tmp_path_factory.mktemp("trained")
    write_jpegs(folder / "data", {"ant": 10, "bee": 10, "cow": 10}, size=(16, 16))
    with contextlib.chdir(folder):
        train()
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Goes into a copy of `trained`, and returns the path of the run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def settings(data="./data", **changes):
    config = vit_jax.default_config()
    config.model.update(**TINY)
    config.data.update(name=data, image_size=16)
    config.update(batch_size=8, eval_batch_size=8, total_steps=1, log_every=1, eval_every=0)
    config.update_from_flattened_dict(changes)
    return config


def train(data="./data", **changes):
    return vit_jax.train(settings(data, **changes), "run")


def names(split):
    source = sources.open_dataset("./data").source(split)
    return {source[i].id for i in range(len(source))}


def without_fingerprint():
    """Makes the checkpoint one of version 0.1, which stored nothing of the data."""
    [path] = pathlib.Path("run/checkpoints").glob("*/metadata/metadata")
    stored = json.loads(path.read_text())
    del stored["data"]
    path.write_text(json.dumps(stored))
    (path.parents[1] / "manifest.json").unlink()  # it has the hash of the file as it was


def rename_a_class():
    (DATA / "ant").rename(DATA / "yak")


def add_an_image():
    shutil.copy(DATA / "ant" / "0.jpg", DATA / "ant" / "20.jpg")


def relabel_an_image():
    (DATA / "bee" / "0.jpg").rename(DATA / "cow" / "11.jpg")


def replace_a_held_out_image():
    held_out = pathlib.Path(min(names("train[85%:]")))
    held_out.rename(held_out.with_name("10.jpg"))


def give_a_test_folder():
    for name in ("ant", "bee", "cow"):
        (DATA / "train" / name).parent.mkdir(exist_ok=True)
        (DATA / name).rename(DATA / "train" / name)
        (DATA / "test" / name).mkdir(parents=True)
        (DATA / "train" / name / "2.jpg").rename(DATA / "test" / name / "2.jpg")


FREE = {"checkpoint.other_data": True}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename_a_class, "gone: ant; new: yak; label 0 was 'ant', is 'bee'"),
        (add_an_image, r"the train split, train\[:85%\], had 27 images, has 28"),
        (relabel_an_image, r"train split, train\[:85%\], has 27 images as before, but some are"),
        (replace_a_held_out_image, r"test split, train\[85%:\], has 3 images as before, but some"),
        (give_a_test_folder, r"test split was train\[85%:\] \(3 images\), is test \(3 images\)"),
    ],
)
def test_other_data_are_refused_before_a_step(run, change, told):
    change()
    with pytest.raises(ValueError, match=told) as error:
        train(total_steps=2)
    assert str(error.value).startswith(
        f"{run / 'checkpoints' / '1'} was trained on other data than ./data now holds:"
    )


def test_a_run_goes_on_with_other_data_if_the_user_says_so(run, caplog):
    rename_a_class()
    with caplog.at_level(logging.INFO, "vit_jax"):
        assert train(total_steps=2, **FREE)["step"] == 2
    assert "was trained on other data:" in caplog.text
    assert train(total_steps=3)["step"] == 3  # they are the run's own data now


def test_new_images_are_decoded_before_a_step(run):
    (DATA / "ant" / "21.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of \d+ images can't be used(.|\n)*21\.jpg"):
        train(total_steps=2, **FREE)


def test_another_number_of_classes_does_not_go_on(run):
    write_jpegs(DATA, {"dog": 10}, size=(16, 16))
    told = rf"(?s)new: dog.*for 3 classes, and these data have 4.*init_from={run}/checkpoints/1\."
    for changes in ({}, FREE):
        with pytest.raises(ValueError, match=told) as error:
            train(total_steps=2, **changes)
        assert "other_data" not in str(error.value)


def test_the_same_data_elsewhere_go_on(run):
    DATA.rename("moved")
    with pytest.raises(ValueError, match=r"data\.name was"):
        train("./moved", total_steps=2)
    add = {"checkpoint.other_config": True}
    assert train("./moved", total_steps=2, **add)["step"] == 2


def test_another_test_split_is_free_but_what_it_shares_with_training_is_told(run, caplog):
    assert train(total_steps=2, **{"data.test": "train[80%:]"})["step"] == 2
    shared = len(names("train[80%:]") & names("train[:85%]"))
    assert shared and f"{shared} of the {shared + 3} test images (train[80%:]) are" in caplog.text


def test_a_run_of_an_earlier_version_is_told_of_the_new_division(run, caplog):
    without_fingerprint()
    with pytest.raises(ValueError, match="another order, and perhaps fewer images, and held out"):
        train(total_steps=2)
    vit_jax.evaluate(settings(job="evaluate"), run)
    assert "may have been trained on some images of train[85%:]" in caplog.text
    train(total_steps=2, **FREE)
    assert train(total_steps=3)["step"] == 3  # it has a fingerprint now


def test_a_run_of_an_earlier_version_read_every_folder_in_another_order(run):
    give_a_test_folder()
    without_fingerprint()
    assert train()["step"] == 1  # no step is left: the order doesn't matter
    with pytest.raises(ValueError, match="in another order, and perhaps fewer images\n"):
        train(total_steps=2)
    assert train(total_steps=2, **FREE)["step"] == 2


def test_a_run_of_an_earlier_version_is_told_of_other_classes(run):
    give_a_test_folder()
    without_fingerprint()
    for split in ("train", "test"):
        (DATA / split / "ant").rename(DATA / split / "yak")
    with pytest.raises(ValueError, match="gone: ant; new: yak"):
        train(total_steps=2)


def warnings_of(caplog):
    return [x.getMessage() for x in caplog.records if x.levelno >= logging.WARNING]


def test_held_out_images_that_are_others_are_told_in_evaluation(run, caplog):
    evaluation = settings(job="evaluate")
    add_an_image()  # to the training split
    vit_jax.evaluate(evaluation, run)
    assert not warnings_of(caplog)
    replace_a_held_out_image()
    vit_jax.evaluate(evaluation, run)
    assert "was not measured on these images before: the test split" in caplog.text
    assert "may have been trained" not in caplog.text


def evaluated(split, data="./data"):
    changes = {"job": "evaluate", "data.test": split}
    vit_jax.evaluate(settings(data, **changes), "run")


def test_other_spellings_of_the_split_and_other_places_are_compared(run, caplog):
    DATA.rename("moved")
    for split in ("train[-15%:]", "train[85%:100%]"):
        evaluated(split, "./moved")
    assert not warnings_of(caplog)
    held_out = sources.open_dataset("./moved").source("train[85%:]")
    pathlib.Path(held_out[0].id).unlink()
    for count, split in enumerate(("train[-15%:]", "train[85%:100%]"), 1):
        evaluated(split, "./moved")
        assert caplog.text.count("was not measured on these images before") == count


def test_slices_in_numbers_may_have_images_that_were_trained_on(run, caplog):
    shutil.rmtree(run)
    changes = {"data.train": "train[:20]", "data.test": "train[20:]"}
    train(**changes)
    evaluated("train[20:]")
    assert not warnings_of(caplog)
    add_an_image()
    evaluated("train[20:]")
    assert "may have been trained on some images of train[20:]" in caplog.text


def test_every_use_of_a_run_of_an_earlier_version_is_told(run, caplog):
    """Its training split is not known: of every slice of it, some images may belong to it."""
    without_fingerprint()
    uses = {
        "slice": lambda: evaluated("train[90%:]"),
        "moved": lambda: evaluated("train[85%:]", "./moved"),
        "few-shot": lambda: few_shot(settings(init_from="run", **{"fewshot.shots": (1,)}), "few"),
        "init_from": lambda: vit_jax.train(settings(init_from="run"), "new"),
    }
    shutil.copytree(DATA, "moved")
    for use in uses.values():
        caplog.clear()
        use()
        assert caplog.text.count("run/checkpoints/1 may have been trained on some images") == 1
    caplog.clear()
    evaluated("train")  # it is plain what this has
    assert not warnings_of(caplog)


def test_a_finished_run_of_other_data_is_not_taken_for_this_one(run):
    first = runs.train_once(settings(), epath.Path(run))
    assert runs.train_once(settings(), epath.Path(run)) == first
    add_an_image()
    with pytest.raises(
        ValueError, match=r"summary\.json was .* other(.|\n)* had 27 images(.|\n)*keep "
    ):
        runs.train_once(settings(), epath.Path(run))


def test_the_classes_without_test_images_are_named(run, caplog):
    """Of ten classes of four images, the one whose files have no numbers gets no test image."""
    folder = write_jpegs(run / "ten", {f"c{k}": 4 for k in range(10)}, size=(16, 16))
    dataset = sources.open_dataset(str(folder))
    test = dataset.source("train[85%:]")
    assert {test[i].label for i in range(len(test))} == set(range(10))
    for path in (folder / "c7").iterdir():
        path.rename(path.with_name(f"{'abcd'[int(path.stem)]}.jpg"))
    inputs.open_inputs(settings(str(folder)))
    told = "The test split, train[85%:], has no images of 1 of the 10 classes: c7."
    assert caplog.text.count(told) == 1
    problems, summary = check_folder(str(folder))
    assert not problems and any(line.startswith(told) for line in summary)


def test_too_few_images_for_a_test_split_are_refused(tmp_path):
    folder = write_jpegs(tmp_path / "data", {"a": 2, "b": 2}, size=(16, 16))
    with pytest.raises(ValueError, match=r"The split train\[85%:\] is empty: .* train/CLASS and"):
        vit_jax.train(settings(str(folder)), tmp_path / "run")
