"""Prepared tfds data whose files a disk or a copy has damaged."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, TINY, environment
from records import SIZES, Meadow, prepare_meadow, read_records, to_tfrecords, write_records

from vit_jax.config.defaults import default
from vit_jax.data import pipeline, reading, sources
from vit_jax.data.__main__ import main as data_main
from vit_jax.data.builders import prepare, record_files
from vit_jax.data.dataset import ExampleError, ReadError
from vit_jax.data.skipped import SkippedImages
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.train import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return pathlib.Path(prepare_meadow(patch, tmp_path_factory.mktemp("tfds")))


@pytest.fixture
def meadow(whole, tmp_path):
    """The folder of a version, to be damaged."""
    shutil.copytree(whole, tmp_path / "meadow" / "1.0.0")
    return tmp_path / "meadow" / "1.0.0"


@pytest.fixture
def options():
    options = default().data
    options.image_size = 16
    return options


def shard(folder, split="train", kind="array_record"):
    return next(folder.glob(f"*-{split}.{kind}-*"))


def open_split(folder, split="train"):
    return sources.open_dataset("meadow:1.0.0", str(folder.parents[1])).source(split)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -------------------------------------------------------------------------------------- whole files


def rewrite(change):
    def damage(path):
        records = read_records(path)
        path.unlink()
        write_records(path, change(records))

    return damage


def bytes_changed(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


FILES = {
    "a byte short": bytes_changed(lambda data: data[:-1]),
    "half": bytes_changed(lambda data: data[: len(data) // 2]),
    "ten bytes": bytes_changed(lambda data: data[:10]),
    "empty": bytes_changed(lambda data: b""),
    "text": bytes_changed(lambda data: b"<html>404</html>\n" * 8000),
    "zeros": bytes_changed(lambda data: bytes(len(data))),
    "longer": bytes_changed(lambda data: data + b"more"),
    "too few records": rewrite(lambda records: records[:5]),
    "too many records": rewrite(lambda records: [*records, records[0]]),
    "no records": rewrite(lambda records: []),
}


@pytest.mark.parametrize("damage", FILES.values(), ids=FILES)
def test_a_damaged_file_is_named_when_the_data_set_is_opened(meadow, damage, monkeypatch):
    """Also if images may be skipped: with it, as many are lost as it held."""
    monkeypatch.setitem(prepare._OWN, "meadow", Meadow)
    path, root = shard(meadow), str(meadow.parents[1])
    damage(path)
    for attempt in (sources.open_dataset, prepare.prepare):
        with pytest.raises(prepare.DataError) as error:
            attempt("meadow:1.0.0", root)
        assert str(path) in str(error.value) and "again" in str(error.value)


# --------------------------------------------------------------------------------------- JSON files

JSON = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "another object": lambda text: "{}",
    "binary": lambda text: "\x00\x01" * 50,
}


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("change", JSON.values(), ids=JSON)
def test_a_damaged_json_file_is_named(meadow, name, change):
    path = meadow / name
    path.write_text(change(path.read_text()))
    with pytest.raises(prepare.DataError, match="is damaged: copy it again") as error:
        open_split(meadow)
    assert name in str(error.value) and str(meadow.parent) in str(error.value)


@pytest.mark.parametrize(
    "old, new",
    [('"12"', '"11"'), ('"12"', '"130"'), ('"12"', '"-3"'), ('"12"', '"many"'), ("array_", "arr_")],
)
def test_wrong_values_in_dataset_info_are_refused(meadow, old, new):
    info = meadow / "dataset_info.json"
    assert old in info.read_text()
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(prepare.DataError, match=r"dataset_info\.json"):
        open_split(meadow)


def test_a_data_set_without_splits_is_refused(meadow):
    info = meadow / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"splits": []}))
    with pytest.raises(prepare.DataError, match="names no splits"):
        open_split(meadow)


# ----------------------------------------------------------------------------------- single records


def flip(offset):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)

    return damage


def replaced(record_of):
    return rewrite(lambda records: [record_of(records[0]), *records[1:]])


RECORDS = {  # damage of the first record of a file
    "a bit in its header": flip(70),
    "a bit in its bytes": flip(500),
    "no example": replaced(lambda record: b"This is no tf.train.Example."),
    "empty": replaced(lambda record: b""),
    "cut off": replaced(lambda record: record[:-40]),
    "its image": replaced(lambda record: record.replace(b"\xff\xd8\xff", b"\x00\x00\x00")),
}


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_a_damaged_record_stops_or_is_skipped(meadow, damage, options):
    damage(shard(meadow))
    source = open_split(meadow)
    batches = pipeline.eval_batches(source, options, num_classes=2, batch_size=4)
    with pytest.raises(ValueError, match=r"meadow/1\.0\.0 train #0: .*on_error=skip") as error:
        list(batches)
    if damage is not RECORDS["its image"]:
        assert f"record 0 of {shard(meadow)} is damaged" in str(error.value)
    options.on_error = "skip"
    skipped = SkippedImages()
    batches = pipeline.eval_batches(source, options, num_classes=2, batch_size=4, skipped=skipped)
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert masks.tolist() == [False] + [True] * (SIZES["train"] - 1)
    assert len(skipped) == 1 and "meadow/1.0.0 train #0" in skipped


def test_a_record_of_a_slice_is_numbered_as_in_its_file(meadow):
    flip(500)(shard(meadow, "test"))
    source = open_split(meadow, "train[50%:]+test")
    with pytest.raises(ExampleError, match=r"#6: record 0 of .*meadow-test\.array_record-00000"):
        source[6]
    assert len(source) == 12
    assert all(source[i].image for i in range(12) if i != 6)


def test_every_job_names_the_record_or_skips_it(meadow, tmp_path):
    flip(500)(shard(meadow))
    flip(500)(shard(meadow, "test"))
    config = default()
    config.model.update(**TINY)
    config.data.update(name="meadow:1.0.0", dir=str(meadow.parents[1]), image_size=16)
    config.update(batch_size=8, eval_batch_size=8, total_steps=1, eval_every=0)
    with pytest.raises(ValueError, match=r"#0: record 0 of .* is damaged"):
        train(config, tmp_path / "stopped")
    config.data.on_error = "skip"
    assert train(config, tmp_path / "run")["step"] == 1
    config.update(job="evaluate", init_from=str(tmp_path / "run"))
    assert evaluate(config, tmp_path / "evaluation")["skipped_images"] == 1


def test_the_command_ends_with_one_line(meadow, tmp_path):
    FILES["half"](shard(meadow))
    command = [
        *(sys.executable, "-m", "vit_jax.main", "--config=configs/pretrain.py:Ti/16,meadow:1.0.0"),
        *(f"--config.data.dir={meadow.parents[1]}", f"--workdir={tmp_path / 'run'}"),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"DataError: {shard(meadow)} is cut off or damaged")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------- TFRecord files


def test_no_changed_byte_of_a_tfrecord_file_is_converted(meadow):
    """Every part of a record: its length, its checksums, its image."""
    to_tfrecords(meadow)
    path = shard(meadow, kind="tfrecord")
    data, before = path.read_bytes(), snapshot(meadow)
    for offset in (0, 3, 7, 8, 11, 12, 400, len(data) // 2, len(data) - 5, len(data) - 1):
        changed = bytearray(data)
        changed[offset] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(SystemExit) as exit:
            data_main(["convert", str(meadow)])
        assert f"{path} is cut off or damaged at byte" in str(exit.value)
        path.write_bytes(data)
        assert snapshot(meadow) == before
    data_main(["convert", str(meadow)])
    assert len(open_split(meadow)) == SIZES["train"]


# --------------------------------------------------------------------------------- transient errors

STALE = "pread() failed: Stale file handle; reading /data/meadow; at byte 64"  # array_record's own


class Records:
    """Records whose reader fails for ever once it has failed, as array_record's do."""

    failures = opened = 0

    def __init__(self):
        Records.opened += 1
        self.failed = False

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if Records.failures:
            Records.failures -= 1
            self.failed = True
        if self.failed:
            raise RuntimeError(STALE)
        return index


@pytest.mark.parametrize("failures", [1, 3])
def test_a_reader_that_failed_is_opened_again(monkeypatch, failures):
    monkeypatch.setattr(reading, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(Records, "failures", failures)
    monkeypatch.setattr(Records, "opened", 0)
    source = sources.TfdsSource(Records, lambda n: (b"image", n), "meadow", [("a", range(3))])
    assert [source[i].label for i in range(3)] == [0, 1, 2]
    assert Records.opened == 1 + failures


def test_a_file_that_may_not_be_read_ends_the_start_at_once(meadow, monkeypatch):
    def refuse(_):
        raise RuntimeError("open() failed: Permission denied; reading")

    monkeypatch.setattr(record_files, "ArrayRecordReader", refuse)
    monkeypatch.setattr(reading.time, "sleep", None)
    with pytest.raises(ReadError, match=r"array_record\S+ can't be read: Permission denied\.$"):
        record_files.check_count(shard(meadow), 12)


def test_a_record_that_stays_out_of_reach_is_not_skipped(monkeypatch, options):
    monkeypatch.setattr(reading, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(Records, "failures", 1000)
    options.on_error = "skip"
    source = sources.TfdsSource(Records, lambda n: (b"image", n), "meadow", [("a", range(3))])
    with pytest.raises(ReadError, match=r"meadow #0 can't be read: Stale file handle. 4 attempts"):
        list(pipeline.eval_batches(source, options, num_classes=3, batch_size=1))
