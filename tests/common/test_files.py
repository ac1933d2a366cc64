"""Buckets are tested with runs in them, in tests/checkpoints/test_bucket.py."""

import csv
import pathlib
import re

import pytest
from etils import epath

from vit_jax.common import files

PATHS = [pathlib.Path, epath.Path]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("gs://bucket/run", True),
        (epath.Path("gs://bucket/run"), True),
        ("/tmp/run", False),
        (pathlib.Path("gs"), False),
        ("runs/gs://bucket", False),
    ],
)
def test_a_bucket_is_known_by_its_beginning(path, found):
    assert files.is_bucket(path) is found


def test_paths_of_this_machine_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.absolute("runs/first") == epath.Path(tmp_path / "runs" / "first")
    assert files.absolute("~/run") == epath.Path("/home/someone/run")
    assert files.absolute(tmp_path / "a" / ".." / "b") == epath.Path(tmp_path / "b")


@pytest.mark.parametrize("kind", PATHS)
def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path, kind):
    path = kind(tmp_path / "table.csv")
    path.write_text("old")
    with files.replacing(path) as partial:
        assert type(partial) is type(path)
        assert partial.parent == path.parent and partial.suffix == path.suffix
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, kind, error):
    path = kind(tmp_path / "table.csv")
    path.write_text("old")
    with pytest.raises(error), files.replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("kind", PATHS)
def test_a_folder_appears_whole_or_not_at_all(tmp_path, kind):
    path = kind(tmp_path / "model")
    with pytest.raises(ValueError), files.replacing(path) as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
        raise ValueError
    assert not list(tmp_path.iterdir())
    with files.replacing(path) as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
        assert not path.exists()
    assert (tmp_path / "model" / "a").read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "table.csv"):
        pass
    assert (tmp_path / "table.csv").read_text() == "old"


def test_a_csv_file_is_read_back_as_it_was_written(tmp_path):
    rows = [["a", "b, c"], ['"quoted"', "two\nlines"], ["ö", ""]]
    files.write_csv(epath.Path(tmp_path / "table.csv"), rows)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == rows


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    told = f"{tmp_path}/file/report can't be written: Not a directory."
    with pytest.raises(OSError, match=re.escape(told)), files.filling(tmp_path / "file" / "report"):
        pass
