"""Packed data sets: the same images, labels and splits as their source, whatever interrupts."""

import io
import json
import logging
import os
import signal
from multiprocessing import get_context

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from conftest import write_jpegs
from PIL import Image, ImageOps
from pyarrow import parquet

from vit_jax.config.defaults import default
from vit_jax.data import packing, parquet_files
from vit_jax.data.__main__ import main
from vit_jax.data.fingerprint import fingerprint
from vit_jax.data.inputs import open_inputs
from vit_jax.data.jpeg_rows import encode_rows
from vit_jax.data.packed_records import PackOptions, shrink
from vit_jax.data.parquet import ParquetDataset
from vit_jax.data.sources import open_dataset, open_source

SMALL = PackOptions(side=8)


@pytest.fixture
def small_files(monkeypatch):
    """So many images that there are several files a split."""
    monkeypatch.setattr(packing, "_IMAGES_OF_FILE", 4)


def names_of(dataset, split):
    """Where the images of a packed split were, with their labels."""
    builder = tfds.builder_from_directory(dataset)
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(split, decoders=decoders)
    return {x["file_name"].decode(): np.array(x["label"]).tolist() for x in records}


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def contents(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 30 JPEGs without a test split."""
    return write_jpegs(tmp_path_factory.mktemp("photos"), {"rose": 18, "daisy": 12})


def test_a_run_trains_and_tests_on_the_same_images(photos, tmp_path):
    packed = packing.pack(str(photos), tmp_path / "packed", SMALL)
    source, result = open_dataset(str(photos)), open_dataset(str(packed))
    assert result.class_names == source.class_names == ("daisy", "rose")
    for part in ("train", "test"):
        _, examples = open_source(source, part)
        expected = {str(path.relative_to(photos)): label for path, label in examples.files}
        assert open_source(result, part)[0] == part
        assert names_of(packed, part) == expected
        assert len(expected) == result.splits[part]


def test_splits_of_the_source_are_kept(tmp_path):
    folder = tmp_path / "photos"
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        write_jpegs(folder / split, {"a": count, "b": 1})
    packed = packing.pack(str(folder), tmp_path / "packed", SMALL)
    assert dict(open_dataset(str(packed)).splits) == {"train": 7, "val": 4, "test": 3}
    assert names_of(packed, "val") == {f"val/a/{i}.jpg": 0 for i in range(3)} | {"val/b/0.jpg": 1}


def test_images_are_shuffled(photos, tmp_path):
    packed = packing.pack(str(photos), tmp_path / "packed", SMALL)
    names = [*names_of(packed, "train")]
    stored = [path for path, _ in open_source(open_dataset(str(photos)), "train")[1].files]
    assert names != [str(path.relative_to(photos)) for path in stored]


@pytest.mark.parametrize("several", [True, False])
def test_labels_of_a_file(several, tmp_path):
    write_jpegs(tmp_path / "photos", {"x": 4})
    labels = ["b;a", "", "a", "b"] if several else ["b", "a", "a", "b"]
    lines = [f"x/{i}.jpg,{label}" for i, label in enumerate(labels)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(lines))
    packed = packing.pack(str(tmp_path / "photos"), tmp_path / "packed", SMALL)
    expected = [[0, 1], [], [0], [1]] if several else [1, 0, 0, 1]
    dataset = open_dataset(str(packed))
    found = {k: v for split in dataset.splits for k, v in names_of(packed, split).items()}
    assert found == {f"x/{i}.jpg": label for i, label in enumerate(expected)}
    source = open_dataset(str(packed)).source("train")
    assert source.multi_label == several


def test_images_without_a_label_keep_none(photos, tmp_path):
    images = [(photos / "rose" / f"{i}.jpg").read_bytes() for i in range(3)]
    table = pa.table({"image": images, "label": ["a", None, "b"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    packed = packing.pack(str(tmp_path / "train.parquet"), tmp_path / "packed", SMALL)
    dataset = open_dataset(str(packed))
    source = dataset.source("+".join(dataset.splits))
    assert sorted(source[i].label for i in range(3)) == [-1, 0, 1]


def test_a_packed_data_set_can_be_packed(photos, tmp_path):
    once = packing.pack(str(photos), tmp_path / "once", PackOptions(side=16))
    twice = packing.pack(str(once), tmp_path / "twice", SMALL)
    assert open_dataset(str(twice)).splits == open_dataset(str(once)).splits
    assert decoded(open_dataset(str(twice)).source("train")[0].image).shape[0] == 8


# ------------------------------------------------------------------------------------- images


def photo(height, width, exif=None, mode="RGB"):
    """A smooth image as a file, and its pixels in float64."""
    y, x = np.mgrid[:height, :width] / 40
    pixels = np.stack([np.sin(x) + np.cos(y * c) for c in (1, 2, 3)], -1) * 60 + 128
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    data = io.BytesIO()
    options = {} if exif is None else {"exif": exif}
    image.save(data, "PNG" if "A" in mode else "JPEG", quality=97, subsampling=0, **options)
    return data.getvalue()


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("height, width", [(150, 200), (401, 300), (1203, 900), (96, 128)])
def test_shrunk_as_pillow_shrinks_the_whole_image(height, width, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo(height, width, exif)
    found = shrink(data, 96, (255, 255, 255))
    scale = 96 / min(height, width)
    size = (round(width * scale), round(height * scale))
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image)
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC), float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.7
    assert np.abs(found - expected).max() < 12


def test_small_images_are_not_enlarged():
    assert shrink(photo(20, 300), 96, (255, 255, 255)).shape == (20, 300, 3)


def test_orientation_is_carried_out():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = shrink(photo(200, 400), 100, (0, 0, 0))
    found = shrink(photo(200, 400, exif), 100, (0, 0, 0))
    np.testing.assert_array_equal(found, cv2.rotate(upright, cv2.ROTATE_90_CLOCKWISE))


def test_transparent_pixels_are_laid_over_the_background():
    data = io.BytesIO()
    Image.new("RGBA", (30, 30), (255, 0, 0, 0)).save(data, "PNG")
    assert (shrink(data.getvalue(), 10, (1, 2, 3)) == (1, 2, 3)).all()


def test_quality_and_chroma():
    image = shrink(photo(200, 200), 100, (0, 0, 0))
    data = encode_rows(image, 60)
    reference = io.BytesIO()
    Image.fromarray(image).save(reference, "JPEG", quality=60)
    with Image.open(io.BytesIO(data)) as found, Image.open(reference) as expected:
        assert found.quantization == expected.quantization
        assert found.layer[0][1:3] == (2, 2)
        assert found.layer[1][1:3] == (1, 1)


def test_what_is_stored_is_told(photos, tmp_path, capsys):
    argv = ["pack", str(photos), str(tmp_path / "p"), "--side=8", "--quality=70"]
    main([*argv, "--background=1,2,3"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "p")
    plan = json.loads((tmp_path / "p" / "pack.json").read_text())
    assert (plan["side"], plan["quality"], plan["background"]) == (8, 70, [1, 2, 3])
    info = tfds.builder_from_directory(tmp_path / "p").info
    assert "at most 8 pixels" in info.description
    assert "quality 70" in info.description
    assert info.supervised_keys == ("image", "label")


# --------------------------------------------------------------------------------- bad images


@pytest.fixture
def with_damage(tmp_path):
    folder = write_jpegs(tmp_path / "photos", {"a": 9, "b": 9})
    (folder / "a" / "3.jpg").write_bytes(b"no image")
    return folder


def test_a_bad_image_is_refused_by_name(with_damage, tmp_path):
    with pytest.raises(ValueError, match=r"a/3\.jpg: not a readable image.*on_error=skip"):
        packing.pack(str(with_damage), tmp_path / "packed", SMALL)
    with pytest.raises(FileNotFoundError, match="isn't packed to its end"):
        open_dataset(str(tmp_path / "packed"))


def test_a_bad_image_is_left_out_and_counted(with_damage, tmp_path, caplog, small_files):
    packed = tmp_path / "packed"
    with pytest.raises(ValueError, match="not a readable image"):
        packing.pack(str(with_damage), packed, SMALL)
    options = SMALL._replace(on_error="skip")
    with caplog.at_level(logging.WARNING):
        packing.pack(str(with_damage), packed, options)
    assert "1 of 18 images can't be used" in caplog.text
    assert "skipped" in caplog.text
    assert sum(open_dataset(str(packed)).splits.values()) == 17
    anew = packing.pack(str(with_damage), tmp_path / "anew", options)
    assert contents(anew) == contents(packed)


def test_a_file_whose_images_are_all_bad(tmp_path, small_files):
    folder = write_jpegs(tmp_path / "photos", {"train/a": 5, "train/b": 5, "test/a": 1})
    order = np.random.Generator(np.random.Philox(packing._SEED)).permutation(10)
    files = [path for path, _ in open_dataset(str(folder)).source("train").files]
    for i in np.array_split(order, 3)[1]:
        files[i].write_bytes(b"")
    packed = packing.pack(str(folder), tmp_path / "packed", SMALL._replace(on_error="skip"))
    source = open_dataset(str(packed)).source("train")
    assert len({source[i].image for i in range(len(source))}) == 7


def test_no_image_can_be_used(tmp_path):
    folder = write_jpegs(tmp_path / "photos", {"train/a": 1, "train/b": 1, "test/a": 1})
    (folder / "test" / "a" / "0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 1 images of test can be used"):
        packing.pack(str(folder), tmp_path / "packed", SMALL._replace(on_error="skip"))


def test_names_of_classes_that_tfds_would_change(tmp_path):
    folder = write_jpegs(tmp_path / "photos", {"a\nb": 2, "c ": 2, "d": 2})
    with pytest.raises(ValueError, match=r"2 classes .* can't be packed: 'a\\nb', 'c '"):
        packing.pack(str(folder), tmp_path / "packed", SMALL)
    assert not (tmp_path / "packed").exists()


# ------------------------------------------------------------------------------- interruptions


class Stopped(BaseException):
    pass


def stop_after(monkeypatch, count, stop):
    """Calls `stop` before the record of that number is written."""
    writer = packing.ArrayRecordWriter

    class Writer:
        def __init__(self, *args):
            self._writer = writer(*args)
            self.close = self._writer.close

        def write(self, record):
            nonlocal count
            if not count:
                stop()
            count -= 1
            self._writer.write(record)

    monkeypatch.setattr(packing, "ArrayRecordWriter", Writer)


def test_stopped_anywhere_the_result_has_the_same_bytes(photos, tmp_path, small_files):
    def stop():
        raise Stopped

    expected = contents(packing.pack(str(photos), tmp_path / "whole", SMALL))
    assert sum(name.startswith("packed-train") for name in expected) == 7
    for count in range(0, 9, 2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, count, stop)
            packing.pack(str(photos), tmp_path / "stopped", SMALL)
    assert contents(packing.pack(str(photos), tmp_path / "stopped", SMALL)) == expected


def pack_until_killed(photos, out):
    packing._IMAGES_OF_FILE = 4
    stop_after(pytest.MonkeyPatch(), 10, lambda: os.kill(os.getpid(), signal.SIGKILL))
    packing.pack(photos, out, SMALL)


@pytest.mark.faults
def test_killed_the_same_command_goes_on(photos, tmp_path, small_files):
    out = tmp_path / "killed"
    process = get_context("spawn").Process(target=pack_until_killed, args=(str(photos), str(out)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = {x.name: x.stat().st_mtime_ns for x in out.iterdir()}
    finished = [name for name in left if name.startswith("packed-")]
    assert len(finished) == 2
    assert any(name.startswith(".partial-") for name in left)
    packing.pack(str(photos), out, SMALL)
    assert all((out / name).stat().st_mtime_ns == left[name] for name in finished)
    assert contents(out) == contents(packing.pack(str(photos), tmp_path / "whole", SMALL))


def test_a_file_that_a_crash_emptied_is_written_anew(photos, tmp_path, small_files):
    packed = packing.pack(str(photos), tmp_path / "packed", SMALL)
    expected = contents(packed)
    next(packed.glob("packed-train*")).write_bytes(b"")
    assert contents(packing.pack(str(photos), packed, SMALL)) == expected


def test_a_folder_of_other_images_or_options(photos, tmp_path):
    packed = packing.pack(str(photos), tmp_path / "packed", SMALL)
    expected = contents(packed)
    with pytest.raises(ValueError, match=r"in another way \(side was 8, is 9\)"):
        packing.pack(str(photos), packed, PackOptions(side=9))
    other = write_jpegs(tmp_path / "other", {"rose": 3, "daisy": 3})
    with pytest.raises(ValueError, match=r"other images .*source was .*images was 30, is 6"):
        packing.pack(str(other), packed, SMALL)
    with pytest.raises(ValueError, match="holds something that isn't packed images"):
        packing.pack(str(photos), other, SMALL)
    assert contents(packed) == expected
    assert sorted(x.name for x in other.iterdir()) == ["daisy", "rose"]


@pytest.mark.parametrize("inside", ["", "packed", "rose/packed"])
def test_a_folder_inside_the_images_is_refused(inside, tmp_path):
    photos = write_jpegs(tmp_path / "photos", {"rose": 3, "daisy": 3})
    link = tmp_path / "link"
    link.symlink_to(photos)
    with pytest.raises(ValueError, match=r"lies in .*, whose images are to be packed"):
        packing.pack(str(photos), link / inside, SMALL)
    assert sorted(x.name for x in photos.iterdir()) == ["daisy", "rose"]
    packing.pack(str(photos), tmp_path / "photos packed", SMALL)


@pytest.mark.parametrize("text", ["", "[1]", "7", "{"])
def test_a_damaged_pack_file(text, photos, tmp_path):
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(ValueError, match=r"pack\.json is damaged: delete its folder"):
        packing.pack(str(photos), tmp_path, SMALL)


def test_two_processes_do_not_write_at_once(photos, tmp_path, monkeypatch):
    write, packed = packing.write_file, tmp_path / "packed"

    def start_again(*args):
        monkeypatch.undo()
        with pytest.raises(ValueError, match="Another process packs into"):
            packing.pack(str(photos), packed, SMALL)
        write(*args)

    monkeypatch.setattr(packing, "write_file", start_again)  # before anything is in the folder
    packing.pack(str(photos), packed, SMALL)
    assert packing.write_file is write


def test_a_file_in_the_place_of_the_folder(photos, tmp_path):
    (tmp_path / "packed").write_text("")
    with pytest.raises(ValueError, match="packed is a file: name a folder that is new or empty"):
        packing.pack(str(photos), tmp_path / "packed", SMALL)


@pytest.mark.parametrize(
    "options, message",
    [
        (PackOptions(side=0), "side must be 1 to"),
        (PackOptions(quality=101), "quality 1 to 100"),
        (PackOptions(background=(0, 0, 256)), "three whole numbers"),
        (PackOptions(on_error="go"), "must be one of stop, skip"),
    ],
)
def test_options_out_of_range(options, message, photos, tmp_path):
    with pytest.raises(ValueError, match=message):
        packing.pack(str(photos), tmp_path / "packed", options)


# ------------------------------------------------------------------------------------- reading


def test_other_packed_images_are_told_apart(photos, tmp_path):
    def of(folder):
        dataset = open_dataset(str(folder))
        return fingerprint(dataset, labels=True, train=("train", dataset.source("train")))

    first = packing.pack(str(photos), tmp_path / "first", SMALL)
    other = packing.pack(str(photos), tmp_path / "other", PackOptions(side=9))
    moved = first.rename(tmp_path / "moved")
    same = packing.pack(str(photos), tmp_path / "same", SMALL)
    assert of(moved) == of(same) != of(other)


def test_a_run_reads_the_folder(photos, tmp_path):
    packed = packing.pack(str(photos), tmp_path / "packed", PackOptions(side=16))
    config = default()
    config.data.name, config.data.image_size = str(packed), 16
    config.batch_size = 8
    inputs = open_inputs(config)
    batch = next(iter(inputs.train_batches))
    assert batch["image"].shape == (8, 16, 16, 3)
    means = batch["image"].mean((1, 2))  # roses are blue here, daisies red, see `write_jpegs`
    np.testing.assert_array_equal(batch["label"], means[:, 2] > means[:, 0])


def test_a_packed_folder_is_not_checked(photos, tmp_path):
    packed = packing.pack(str(photos), tmp_path / "packed", SMALL)
    with pytest.raises(SystemExit, match="holds a prepared data set, no images in folders"):
        main(["check", str(packed)])


def test_parquet_files_are_read_group_by_group(photos, tmp_path, monkeypatch):
    files = sorted(photos.rglob("*.jpg"))
    table = pa.table({"image": [x.read_bytes() for x in files], "label": [0, 1] * 15})
    parquet.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    monkeypatch.setattr(parquet_files, "_CACHED_BYTES", 12_000)  # some groups of ten
    dataset = ParquetDataset(tmp_path / "train.parquet")
    assert "vit_jax.data pack" in dataset.describe()[-1]
    source = dataset.source("train")
    order = source.shuffled(np.random.default_rng(0))
    assert sorted(order) == [*range(30)]
    read = []
    original = parquet_files._open
    monkeypatch.setattr(parquet_files, "_open", lambda *a: read.append(a) or original(*a))
    images = [source[int(i)].image for i in order]
    assert len(read) == 10
    assert images != [x.read_bytes() for x in files]
    assert sorted(images) == sorted(x.read_bytes() for x in files)
