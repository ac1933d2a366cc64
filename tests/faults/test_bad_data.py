"""Images that can't be read or decoded, classes without images, and too few of either."""

import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from conftest import write_jpegs
from PIL import Image

from vit_jax.config.defaults import default
from vit_jax.data import checks, folders, pipeline, read_ahead, sources
from vit_jax.data.__main__ import main
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.dataset import ReadError
from vit_jax.data.inspection import inspect_images, problems_of
from vit_jax.data.skipped import SkippedImages
from vit_jax.jobs.train import train

BAD = ("bomb.png", "empty.jpg", "gone.jpg", "text.jpg", "truncated.jpg")


def png_bomb(side):
    """A PNG file of a few bytes that claims to be a huge image."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def options():
    options = default().data
    options.image_size = 16
    return options


@pytest.fixture
def damaged(tmp_path):
    """A folder of 12 good images and 5 bad ones, in two classes; its images were listed."""
    folder = write_jpegs(tmp_path / "damaged", {"a": 8, "b": 4})
    whole = (folder / "a" / "0.jpg").read_bytes()
    (folder / "a" / "truncated.jpg").write_bytes(whole[:-100])
    (folder / "a" / "empty.jpg").touch()
    (folder / "a" / "folder.jpg").mkdir()  # no image
    (folder / "b" / "text.jpg").write_text("This is no image.\n" * 20)
    (folder / "b" / "bomb.png").write_bytes(png_bomb(30_000))
    (folder / "b" / "gone.jpg").symlink_to(folder / "nowhere")
    return sources.open_dataset(str(folder))


def names(ids):
    return sorted(os.path.basename(id) for id in ids)


def training(source, options, *, batch_size=8, classes=2, seed=3, **more):
    return pipeline.train_batches(
        source, options, num_classes=classes, batch_size=batch_size, seed=seed, **more
    )


def evaluation(source, options, *, batch_size=8, classes=2, **more):
    return pipeline.eval_batches(
        source, options, num_classes=classes, batch_size=batch_size, **more
    )


class NumberedSource:
    """n flat images of the colour 10 x their number, which is their label; some can't be decoded.

    A picture shows which example it is of: no crop and no flip changes a flat image.
    """

    def __init__(self, n, bad=()):
        self.n, self.bad, self.reads = n, set(bad), []

    def __len__(self):
        return self.n

    def __getitem__(self, number):
        self.reads.append(number)
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (10 * number,) * 3).save(file, "PNG")
        return sources.Example(
            b"bad" if number in self.bad else file.getvalue(), number, f"#{number}"
        )


# ------------------------------------------------------------------------------ found beforehand


def find_undecodable(source, **options):
    return problems_of(inspect_images(source, progress=False, **options))


def test_check_finds_what_is_bad_and_nothing_else(damaged):
    source = damaged.source("train")
    assert len(source) == 17
    problems = find_undecodable(source, num_classes=2)
    assert names(problem.id for problem in problems) == list(BAD)
    reasons = {os.path.basename(problem.id): problem.reason for problem in problems}
    assert "truncated" in reasons["truncated.jpg"]
    assert "decompression bomb" in reasons["bomb.png"]
    assert reasons["gone.jpg"] == "can't be read: No such file or directory"
    for name in ("empty.jpg", "text.jpg"):
        assert reasons[name].startswith("not a readable image: expected JPEG, PNG")
    numbers = [i for i in range(17) if names([pipeline.example_id(source, i)])[0] in BAD]
    assert [pipeline.example_id(source, i) for i in numbers] == [problem.id for problem in problems]


def test_check_finds_labels_out_of_range():
    problems = find_undecodable(NumberedSource(5, bad=[1]), num_classes=4, threads=2)
    assert [problem.id for problem in problems] == ["#1", "#4"]
    assert "has the label 4, but there are 4 classes" in str(problems[1])


def test_a_file_without_permission_is_bad(damaged, monkeypatch):
    """As root, who may read all, tests can only pretend."""
    path = damaged.folder / "a" / "0.jpg"
    read = type(path).read_bytes

    def refuse(self):
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    problems = find_undecodable(damaged.source("train"), num_classes=2)
    assert f"{path}: can't be read: Permission denied" in map(str, problems)


def test_a_run_stops_with_the_list_before_its_first_step(damaged, options, capsys):
    with pytest.raises(ValueError) as error:
        checks.require_decodable(damaged, ("train[:50%]", "train[50%:]"), options)
    first, *listed, advice = str(error.value).splitlines()
    assert first == "5 of 17 images can't be used:"
    assert names(line.split(": ")[0].removeprefix("- ") for line in listed) == list(BAD)
    for fact in (
        "Remove or repair",
        f"vit_jax.data check {damaged.folder}`",
        "--config.data.on_error=skip",
        "--config.data.check=false",
    ):
        assert fact in advice
    assert "17/17" in capsys.readouterr().err


def test_only_the_splits_of_a_run_are_looked_at(tmp_path, options):
    for split in ("train", "test", "val"):
        write_jpegs(tmp_path / split, {"a": 3, "b": 3})
    (tmp_path / "val" / "a" / "0.jpg").write_bytes(b"")
    dataset = sources.open_dataset(str(tmp_path))
    checks.require_decodable(dataset, ("train", "test"), options, progress=False)
    with pytest.raises(ValueError, match="1 of 12 images can't be used"):
        checks.require_decodable(dataset, ("train", "val"), options, progress=False)


def test_a_long_list_is_cut(tmp_path, options):
    (tmp_path / "a").mkdir()
    for i in range(25):
        (tmp_path / "a" / f"{i}.png").touch()
    with pytest.raises(ValueError) as error:
        checks.require_decodable(sources.open_dataset(str(tmp_path)), ("train",), options)
    lines = str(error.value).splitlines()
    assert len([line for line in lines if line.startswith("- ")]) == 20
    assert lines[21] == "and 5 more"


@pytest.mark.parametrize("change", [{"check": False}, {"on_error": "skip"}])
def test_nothing_is_looked_at_when_the_configuration_says_so(damaged, options, change, capsys):
    options.update(change)
    checks.require_decodable(damaged, ("train",), options)
    assert capsys.readouterr().err == ""


def test_tfds_data_are_not_looked_at(options):
    class Prepared:
        class_names, splits = ("a", "b"), {"train": 4}

        def source(self, split):
            raise AssertionError("was read")

    checks.require_decodable(Prepared(), ("train",), options)


# ------------------------------------------------------------------------------------ the command


def run_check(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["check", str(folder)])
    return exit.value.code, capsys.readouterr().out.splitlines()


def test_the_command_lists_bad_images_and_fails(damaged, capsys):
    code, lines = run_check(damaged.folder, capsys)
    assert code == 1
    assert names(line.split(": ")[0] for line in lines[:5]) == list(BAD)
    assert lines[5:] == [
        "class a: 10 in train",
        "class b: 7 in train",
        f"sizes (width x height): 24 x 20 pixels; {size_of_files(damaged, bad=BAD)} MB in files",
        f"{damaged.folder}: 17 images in 2 classes; 5 images can't be used, 0 classes are empty",
    ]


def size_of_files(dataset, bad=()):
    files = [path for path, _ in dataset.source("train").files if path.name not in bad]
    return f"{sum(path.stat().st_size for path in files) / 1e6:.3g}"


def test_the_command_passes_whole_folders(image_folder, capsys):
    size = size_of_files(folders.FolderDataset(image_folder))
    code, lines = run_check(image_folder, capsys)
    assert code == 0
    assert lines == [
        *("class blue: 40 in train", "class green: 16 in train", "class red: 24 in train"),
        f"sizes (width x height): 24 x 20 pixels; {size} MB in files",
        f"{image_folder}: 80 images in 3 classes; 0 images can't be used, 0 classes are empty",
    ]


def test_the_command_looks_at_all_splits_and_names_empty_classes(tmp_path, capsys):
    write_jpegs(tmp_path / "train", {"a": 3, "b": 2, "c": 0, "d": 0})
    write_jpegs(tmp_path / "test", {"b": 1, "c": 1})
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "test" / "c" / "0.jpg").write_bytes(b"broken")
    code, lines = run_check(tmp_path, capsys)
    assert code == 1
    assert lines[0].startswith(str(tmp_path / "test" / "c" / "0.jpg"))
    assert [line.split(":")[0] for line in lines[1:3]] == ["class c", "class d"]
    assert lines[3:5] == ["class a: 3 in train, 0 in test", "class b: 2 in train, 1 in test"]
    assert "7 images in 4 classes; 1 images can't be used, 2 classes are empty" in lines[-1]


def test_the_command_says_in_a_line_that_there_is_no_folder(tmp_path, capsys):
    code, lines = run_check(tmp_path / "nowhere", capsys)
    message = f"There is no folder '{tmp_path}/nowhere' to read images from."
    assert code == f"FileNotFoundError: {message}"
    assert lines == []


# ------------------------------------------------------------------------------- stopped by a file


@pytest.mark.parametrize("name", BAD)
def test_training_and_evaluation_name_the_file_that_stops_them(damaged, options, name):
    """Errors come from the threads that read ahead, as what they are."""
    files = [x for x in damaged.source("train").files if x[0].name not in BAD or x[0].name == name]
    source = folders.FolderSource(files)
    batches = training(source, options)
    pipeline.seek(batches, 0)
    for batch_of in (
        lambda: [next(batches) for _ in range(3)],
        lambda: list(evaluation(source, options)),
    ):
        with pytest.raises(ValueError) as error:
            batch_of()
        assert re.search(
            rf"/{name}: .*[^.]\. Remove or repair it, or .*--config\.data\.on_error=skip\.$",
            str(error.value),
        )


def test_a_file_that_is_deleted_after_it_was_listed_is_named(tmp_path, options):
    folder = write_jpegs(tmp_path / "images", {"a": 4, "b": 4})
    source = sources.open_dataset(str(folder)).source("train")
    (folder / "b" / "2.jpg").unlink()
    with pytest.raises(ReadError, match=r"b/2\.jpg can't be read: No such file"):
        next(training(source, options))


# ---------------------------------------------------------------------------------------- skipped


def test_skipped_images_are_replaced_by_the_next_and_counted_once(damaged, options, caplog):
    options.on_error = "skip"
    source, skipped = damaged.source("train"), SkippedImages()
    batches = training(source, options, batch_size=6, skipped=skipped)
    for _ in range(6):  # two epochs
        batch = next(batches)
        assert batch["mask"].all()
        assert batch["image"].any(axis=(1, 2, 3)).all()
    list(evaluation(source, options, skipped=skipped))
    assert len(skipped) == 5
    assert all(problem.id in skipped for problem in find_undecodable(source, num_classes=2))
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "vit_jax.data.skipped"
    ]
    assert names(line.split(": ")[0].removeprefix("skipped ") for line in warnings) == list(BAD)


def test_what_replaces_a_skipped_image_depends_on_the_files_alone(options):
    """The order is that of a whole source, but for the bad ones, whoever reads them first."""
    bad = {2, 3, 9, 19}  # the next after 19 is 0
    whole = training(NumberedSource(20), options, batch_size=10, classes=20)
    options.on_error = "skip"
    source = NumberedSource(20, bad)
    batches = training(source, options, batch_size=10, classes=20)
    for _ in range(6):
        expected, batch = next(whole), next(batches)
        good = [{2: 4, 3: 4, 9: 10, 19: 0}.get(label, label) for label in expected["label"]]
        np.testing.assert_array_equal(batch["label"], good)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 10 * np.array(good))
        same = batch["label"] == expected["label"]
        np.testing.assert_array_equal(batch["image"][same], expected["image"][same])
    batches.close()
    for number in bad:
        assert (
            source.reads.count(number) <= read_ahead.threads_of_process()
        )  # at once at most, never again


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_skips_continues_bit_for_bit(damaged, options, processes):
    """Alone or as two processes, from any step, with or without knowing what is bad."""
    options.on_error = "skip"
    source = damaged.source("train")
    one = training(source, options)
    for _ in range(3):  # an epoch and a third
        next(one)
    parts = [
        training(source, options, batch_size=8 // processes, shard=pipeline.Shard(p, processes))
        for p in range(processes)
    ]
    for part in parts:
        pipeline.seek(part, 3)
    for _ in range(4):
        whole = next(one)
        for p, part in enumerate(parts):
            found = next(part)
            for name in ("image", "label", "mask"):
                np.testing.assert_array_equal(found[name], whole[name][p::processes])


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_masks_what_it_skips(options, processes):
    options.on_error = "skip"
    skipped = SkippedImages()
    seen, lengths = [], []
    for process in range(processes):
        batches = list(
            evaluation(
                NumberedSource(11, bad=[0, 1, 2, 3, 7]),
                options,
                batch_size=2,
                classes=11,
                shard=pipeline.Shard(process, processes),
                skipped=skipped,
            )
        )
        lengths.append(len(batches))
        for batch in batches:
            np.testing.assert_array_equal(batch["image"][~batch["mask"]], 0)
            pixels = batch["image"][batch["mask"]][:, 0, 0, 0]
            np.testing.assert_array_equal(pixels, 10 * batch["label"][batch["mask"]])
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == [4, 5, 6, 8, 9, 10]
    assert len(set(lengths)) == 1
    assert len(skipped) == 5


def test_a_source_of_bad_images_alone_is_an_error(options):
    options.on_error = "skip"
    source = NumberedSource(4, bad=range(4))
    message = r"None of 4 images can be used, such as #\d: not a readable image"
    with pytest.raises(ValueError, match=message):
        next(training(source, options, batch_size=2, classes=4))
    for process in range(2):  # the last batch of the second one has no example at all
        with pytest.raises(ValueError, match=message):
            list(
                evaluation(
                    source, options, batch_size=3, classes=4, shard=pipeline.Shard(process, 2)
                )
            )


def test_labels_out_of_range_are_not_skipped(options):
    options.on_error = "skip"
    with pytest.raises(ValueError, match="#4: has the label 4, but there are 4 classes"):
        list(evaluation(NumberedSource(5, bad=[1]), options, classes=4))
    with pytest.raises(ValueError, match="#4: has the label 4, but there are 4 classes"):
        next(training(NumberedSource(5, bad=[1]), options, batch_size=5, classes=4))


# ------------------------------------------------------------------------------ names of a batch


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_batch_ids_are_those_of_the_batches(options, processes, on_error):
    options.on_error = on_error
    source = NumberedSource(20, bad=[5, 6, 19] if on_error == "skip" else [])
    skipped = SkippedImages()
    parts = [
        training(
            source,
            options,
            batch_size=8 // processes,
            classes=20,
            shard=pipeline.Shard(p, processes),
            skipped=skipped,
        )
        for p in range(processes)
    ]
    epochs = set()
    for step in range(1, 7):  # more than two epochs
        labels = np.zeros(8, int)
        for p, part in enumerate(parts):
            labels[p::processes] = next(part)["label"]
        ids = pipeline.batch_ids(source, options, step, batch_size=8, seed=3, skipped=skipped)
        assert ids == [f"#{label}" for label in labels]
        epochs.add(tuple(ids))
    assert len(epochs) == 6


def test_batch_ids_need_no_readable_files(damaged, options):
    ids = [
        id
        for step in (1, 2, 3)
        for id in pipeline.batch_ids(damaged.source("train"), options, step, batch_size=6, seed=0)
    ]
    assert set(BAD) < set(names(ids)) and len(set(ids)) == 17


# ----------------------------------------------------------------------------- too few of anything


def require(folder, split="train", *, batch_size=2, labels=True):
    dataset = sources.open_dataset(str(folder))
    checks.require_trainable(dataset, split, batch_size=batch_size, labels=labels)


def test_fewer_images_than_a_batch(tmp_path):
    write_jpegs(tmp_path, {"a": 10, "b": 10})
    require(tmp_path, "train[:85%]", batch_size=18)
    with pytest.raises(ValueError, match=r"train\[:85%\] has 18 images, fewer than batch_size=19"):
        require(tmp_path, "train[:85%]", batch_size=19, labels=False)


def test_one_class(tmp_path):
    write_jpegs(tmp_path, {"flowers": 4})
    with pytest.raises(ValueError, match="only one class, flowers, so there is nothing to tell"):
        require(tmp_path)
    require(tmp_path, labels=False)


def test_classes_without_images(tmp_path):
    write_jpegs(tmp_path, {"a": 3, "b": 0, "c": 3, "d": 0})
    message = r"no images to train on \(train\[:85%\]\) for 2 of its 4 classes: b, d\. Add"
    with pytest.raises(ValueError, match=message):
        require(tmp_path, "train[:85%]")
    require(tmp_path, labels=False)


def test_classes_are_needed_in_training_alone(tmp_path):
    write_jpegs(tmp_path / "train", {"a": 3, "b": 3, "c": 0})
    write_jpegs(tmp_path / "val", {"b": 2, "c": 2})
    with pytest.raises(ValueError, match="for 1 of its 3 classes: c"):
        require(tmp_path, "train")
    require(tmp_path, "train+val")  # without a or b in one of them
    with pytest.raises(ValueError, match="for 1 of its 3 classes: a"):
        require(tmp_path, "train[1:2]+val", batch_size=1)


def test_classes_are_needed_in_the_part_that_is_trained_on(tmp_path):
    write_jpegs(tmp_path, {"a": 12, "b": 1})
    require(tmp_path, "train[:85%]")  # the split of a folder
    message = r"no images to train on \(train\[:40%\]\) for 1 of its 2 classes: b\. .* larger one"
    with pytest.raises(ValueError, match=message):
        require(tmp_path, "train[:40%]")
    arrays = ArrayDataset(np.zeros((13, 2, 2), np.uint8), ["a"] * 12 + ["b"])
    checks.require_trainable(arrays, "train", batch_size=2, labels=True)
    with pytest.raises(ValueError, match=message):
        checks.require_trainable(arrays, "train[:40%]", batch_size=2, labels=True)


def test_a_folder_of_pictures_without_classes_says_what_is_expected(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"no folders of them: each class needs a folder there .*<class>/"
    ):
        sources.open_dataset(str(tmp_path))


@pytest.mark.parametrize("epochs", [1e12, 1e308])
def test_more_epochs_than_steps_can_be_counted(settings, tmp_path, epochs):
    settings.update(total_steps=None, epochs=epochs)
    with pytest.raises(ValueError, match=r"images in batches of 16 are .* steps, and a run"):
        train(settings, tmp_path)


def test_a_run_stops_before_training_or_skips(settings, tmp_path, caplog):
    """The whole way: three broken files among the images, and a summary that counts them."""
    folder = write_jpegs(tmp_path / "data", {"a": 30, "b": 30})
    for name, content in (("a/0.jpg", b""), ("a/1.jpg", b"text"), ("b/2.jpg", b"\xff\xd8\xff")):
        (folder / name).write_bytes(content)
    settings.data.name = str(folder)
    settings.fewshot.update(every=3, shots=(1, 20), seeds=2)
    settings.eval_every = 0
    with pytest.raises(ValueError, match="3 of 60 images can't be used") as error:
        train(settings, tmp_path / "run")
    assert all(name in str(error.value) for name in ("a/0.jpg", "a/1.jpg", "b/2.jpg"))
    assert not (tmp_path / "run" / "metrics.csv").exists()

    settings.data.on_error = "skip"
    summary = train(settings, tmp_path / "run")
    assert summary["skipped_images"] == 3 and summary["step"] == settings.total_steps
    assert caplog.text.count("skipped ") == 3


def test_images_that_are_not_in_folders_of_classes_are_counted(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").touch()
    with pytest.raises(
        FileNotFoundError, match=r"holds images itself \(3\), but no folders of them"
    ):
        sources.open_dataset(str(tmp_path))


def test_hidden_folders_are_not_proposed(tmp_path):
    (tmp_path / ".photo").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        sources.open_dataset(str(tmp_path / "photos"))
    assert ".photo'" not in str(error.value)
    (tmp_path / "photo").mkdir()
    with pytest.raises(FileNotFoundError, match=r"did you mean .*photo"):
        sources.open_dataset(str(tmp_path / "photos"))
