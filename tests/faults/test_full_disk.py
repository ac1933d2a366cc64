"""Commands that write to a full disk: one message, and nothing half written is left."""

import logging
import pathlib
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment, random_checkpoint, write_jpegs
from jobs import limited, mounted
from records import SIZES, prepare_meadow, to_tfrecords
from small_archives import serve

from vit_jax.common import files
from vit_jax.config.defaults import default
from vit_jax.data import packing, sources
from vit_jax.data.builders import prepare
from vit_jax.data.packed_records import PackOptions
from vit_jax.inference import exporter
from vit_jax.interpret.report import write_report
from vit_jax.jobs.metric_writer import MetricWriter
from vit_jax.jobs.runs import write_tables
from vit_jax.weights import download
from vit_jax.weights.api import load, save

FULL = "can't be written: File too large"
QUICKSTART = REPOSITORY / "checkpoints" / "quickstart"
PHOTO = REPOSITORY / "docs" / "flowers" / "rose.png"


@pytest.fixture(scope="module")
def checkpoint():
    return random_checkpoint("Ti/16", width=16, depth=1, mlp_dim=16, num_heads=2)


def run(command, **options):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        **options,
    )


# ----------------------------------------------------------------------------------------- weights

FORMATS = {"a.safetensors": "timm", "a.pth": "timm", "a.npz": "npz", "a": "hf", "b": "orbax"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [0, 2000])
def test_weights_of_every_format_are_written_whole_or_not_at_all(tmp_path, checkpoint, name, size):
    if name == "a.pth":
        pytest.importorskip("torch")
    path = tmp_path / "new" / name
    if FORMATS[name] == "hf":
        checkpoint = load(QUICKSTART)
    with limited(size), pytest.raises(OSError) as error:
        save(checkpoint, path, format=FORMATS[name])
    assert str(error.value) == f"{path} {FULL}."
    assert not list(tmp_path.iterdir())
    save(checkpoint, path, format=FORMATS[name])
    assert load(path).num_classes == checkpoint.num_classes


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_conversion_to_a_full_disk(tmp_path, name):
    """The whole command, with what the threads of Orbax and TensorStore print."""
    with mounted(tmp_path / "disk", 1) as disk:
        (disk / "filler").write_bytes(bytes(700_000))
        done = run(
            ["vit_jax.convert", str(QUICKSTART), str(disk / name), f"--format={FORMATS[name]}"]
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"OSError: {disk / name} can't be written: No space left on device.\n"
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_download_ends_at_once_and_leaves_nothing(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "weights.npz").write_bytes(bytes(3 * 2**20))
    path = tmp_path / "weights" / "weights.npz"
    with serve(tmp_path / "served") as url:
        with limited(2**20), pytest.raises(OSError) as error:
            download.fetch(f"{url}/weights.npz", path)
        assert str(error.value) == f"{path} {FULL}."
        assert not path.parent.exists()
        download.fetch(f"{url}/weights.npz", path)
    assert path.stat().st_size == 3 * 2**20


# ------------------------------------------------------------------------------ exports and reports


@pytest.mark.parametrize("failing", ["model", "json", "program"])
def test_an_export_is_whole_or_not_there(tmp_path, checkpoint, monkeypatch, failing):
    path = tmp_path / "new" / "model.stablehlo"
    with monkeypatch.context() as patch:
        if failing == "program":
            patch.setattr(exporter, "program", lambda *_: "#" * 10**6)
        size = {"model": 3000, "json": 0, "program": 500_000}[failing]
        if failing == "json":
            patch.setattr(exporter.json, "dumps", lambda *_, **__: "#" * 10**6)
            size = 500_000
        with limited(size), pytest.raises(OSError, match=FULL):
            exporter.export(checkpoint, path)
    assert not list(tmp_path.iterdir())


def test_a_report_leaves_the_older_one_as_it_was(tmp_path):
    checkpoint = random_checkpoint("Ti/16", 0, width=16, depth=1, mlp_dim=16, num_heads=2)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("old")
    for out in ("report", "new"):
        with limited(100), pytest.raises(OSError) as error:
            write_report(checkpoint, [str(PHOTO)], tmp_path / out)
        assert str(error.value) == f"{tmp_path / out} {FULL}."
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    assert (tmp_path / "report" / "index.html").read_text() == "old"


def test_tables_stay_as_they_were(tmp_path):
    table = tmp_path / "evaluation.csv"
    write_tables(table, [{"accuracy": 1}], [{"accuracy": "1"}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"evaluation.csv", "evaluation.md"}
    long, short = {"accuracy": "2" * 200}, {"accuracy": "2"}
    with limited(100):
        with pytest.raises(OSError, match=rf"evaluation\.csv {FULL}"):
            write_tables(table, [long], [short])  # the disk fills between the two files
        with pytest.raises(OSError, match=rf"evaluation\.md {FULL}"):
            write_tables(table, [short], [long])
        with pytest.raises(OSError, match=rf"evaluation\.csv {FULL}"):
            files.write_csv(table, [["2" * 200]])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_that_find_no_room_are_one_message(tmp_path):
    """The file is replaced by `replacing`, which explains the failure, too."""
    with limited(0), pytest.raises(OSError) as error:
        MetricWriter(tmp_path, ("step", "loss"), steps_done=0, active=True, config=default())
    assert str(error.value) == (
        f"{tmp_path / 'metrics.csv'} or the TensorBoard events beside it {FULL}. Checkpoints, if "
        f"there are any, are as they were. When there is space, and permission, the same command "
        f"goes on."
    )


# -------------------------------------------------------------------------------------------- data


def test_preparing_a_data_set_leaves_nothing(tmp_path, monkeypatch):
    with limited(5000), pytest.raises(OSError) as error:
        prepare_meadow(monkeypatch, tmp_path / "data")
    assert str(error.value) == f"{tmp_path / 'data' / 'meadow' / '1.0.0'} {FULL}."
    assert not list(tmp_path.iterdir())


def test_a_conversion_of_data_leaves_nothing(tmp_path, monkeypatch):
    folder = pathlib.Path(prepare_meadow(monkeypatch, tmp_path))
    to_tfrecords(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with limited(70_000), pytest.raises(OSError, match=FULL):  # a file has 64 KiB or more
        prepare.convert(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    prepare.convert(folder)
    assert sources.open_dataset("meadow", str(tmp_path)).splits == SIZES


def test_a_conversion_whose_second_file_fails_removes_the_first(tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", 1) as disk:
        folder = pathlib.Path(prepare_meadow(monkeypatch, disk))
        to_tfrecords(folder)
        before = {path.name for path in folder.iterdir()}
        free = 1_048_576 - sum(path.stat().st_size for path in folder.iterdir())
        (disk / "filler").write_bytes(bytes(free - 262_144))
        with pytest.raises(OSError, match="can't be written: No space left on device"):
            prepare.convert(folder)
        assert {path.name for path in folder.iterdir()} == before


# ----------------------------------------------------------------------------------------- a run


def test_a_run_without_room_for_its_lock_leaves_nothing(settings, tmp_path, caplog):
    from vit_jax.jobs.train import train

    caplog.set_level(logging.WARNING)
    with limited(0), pytest.raises(OSError, match="run can't be written to: File too large"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packing_goes_on_when_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_IMAGES_OF_FILE", 4)
    photos, out = write_jpegs(tmp_path / "photos", {"rose": 18, "daisy": 12}), tmp_path / "packed"
    with (
        limited(50_000),
        pytest.raises(OSError, match=r"packed can't be written: .*start the same"),
    ):
        packing.pack(str(photos), out, PackOptions(side=20, quality=100))
    assert not [*out.glob("packed-*")]
    packing.pack(str(photos), out, PackOptions(side=20, quality=100))
    assert sum(sources.open_dataset(str(out)).splits.values()) == 30
