"""Data sets in Parquet and Arrow files, as Hugging Face's `datasets` writes them."""

import json
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_jpegs
from pyarrow import parquet

from vit_jax.config.defaults import default
from vit_jax.data import parquet_files, pipeline
from vit_jax.data.__main__ import main
from vit_jax.data.dataset import ExampleError
from vit_jax.data.fingerprint import fingerprint
from vit_jax.data.folders import FolderDataset
from vit_jax.data.inputs import open_inputs
from vit_jax.data.parquet import ParquetDataset
from vit_jax.data.sources import open_dataset

NAMES = ["rose", "daisy", "tulip"]  # not in alphabetical order: labels are numbers of this list


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 24 JPEGs, eight of each class."""
    return write_jpegs(tmp_path_factory.mktemp("photos"), dict.fromkeys(NAMES, 8))


@pytest.fixture
def rows(photos):
    """(encoded image, label) of each, one class after the other."""
    return [
        ((photos / name / f"{i}.jpg").read_bytes(), label)
        for label, name in enumerate(NAMES)
        for i in range(8)
    ]


def write(path, rows, names=None, *, key="label", row_group_size=100):
    """Writes a file as `datasets` does: {bytes, path}, and its features in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = zip(*rows, strict=True)
    columns = {"image": [{"bytes": x, "path": f"{i}.jpg"} for i, x in enumerate(images)]}
    table = pa.table(columns | ({key: list(labels)} if key else {}))
    if names:
        classes = {"names": names, "_type": "ClassLabel"}
        if isinstance(labels[0], list):
            classes = {"feature": classes, "_type": "List"}
        features = {"image": {"_type": "Image"}, key: classes}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def read(dataset, split):
    """[(encoded image, names of its classes)] of a split."""
    source = dataset.source(split)
    return [
        (x.image, tuple(dataset.class_names[i] for i in np.atleast_1d(x.label)))
        for x in map(source.__getitem__, range(len(source)))
    ]


@pytest.fixture
def hub(rows, tmp_path):
    """Two files to train on, with 18 images, and one to test on, with 6."""
    mixed = [rows[8 * label + i] for i in range(8) for label in range(3)]
    write(tmp_path / "hub/data/train-00000-of-00002.parquet", mixed[:9], NAMES)
    write(tmp_path / "hub/data/train-00001-of-00002.parquet", mixed[9:18], NAMES)
    write(tmp_path / "hub/data/test-00000-of-00001.parquet", mixed[18:], NAMES)
    (tmp_path / "hub/README.md").write_text("a card")
    return tmp_path / "hub"


def check(path, capsys):
    """The status and the lines of `data check`."""
    with pytest.raises(SystemExit) as exit:
        main(["check", str(path)])
    return exit.value.code, capsys.readouterr().out.splitlines()


# ------------------------------------------------------------------------------- what is read


def test_images_classes_and_splits_are_those_that_were_written(hub, rows):
    dataset = open_dataset(str(hub))
    assert dataset.class_names == tuple(NAMES)
    assert dataset.splits == {"train": 18, "test": 6}
    written = [(image, (NAMES[label],)) for image, label in rows]
    assert sorted(read(dataset, "train") + read(dataset, "test")) == sorted(written)
    assert sorted(read(dataset, "train+test")) == sorted(written)
    assert {x for _, x in read(dataset, "test")} == {(name,) for name in NAMES}
    assert dataset.describe() == [
        "train: 18 images (rose 6, daisy 6, tulip 6)",
        "test: 6 images (rose 2, daisy 2, tulip 2)",
    ]


def test_a_file_is_a_data_set_and_its_slices_have_all_classes(tmp_path, rows, monkeypatch):
    write(tmp_path / "flowers.parquet", rows, NAMES)
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("flowers.parquet")  # a name without a folder is a path, too
    kept, held_out = read(dataset, "train[:75%]"), read(dataset, "train[75%:]")
    assert sorted(kept + held_out) == sorted((image, (NAMES[label],)) for image, label in rows)
    assert Counter(x for _, x in held_out) == {(name,): 2 for name in NAMES}


def test_batches_are_those_of_the_same_files_in_a_folder(photos, rows, tmp_path):
    path = write(tmp_path / "flowers.parquet", rows, NAMES, row_group_size=5)
    options = default().data
    options.image_size = 16

    def images(dataset):
        batches = pipeline.eval_batches(
            dataset.source("train"), options, num_classes=3, batch_size=8
        )
        return {
            (x.tobytes(), dataset.class_names[label])
            for batch in batches
            for x, label in zip(batch["image"], batch["label"], strict=True)
        }

    found = images(ParquetDataset(path))
    assert len(found) == 24
    assert found == images(FolderDataset(photos))


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["b", "a", "b"], None, [("b",), ("a",), ("b",)]),
        ([10, 9, 10], None, [("10",), ("9",), ("10",)]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, [("b",), ("a",), ("b",)]),
        ([[0, 2], [], [1]], NAMES, [("rose", "tulip"), (), ("daisy",)]),
        ([["y", "x"], ["x"], ["y"]], None, [("x", "y"), ("x",), ("y",)]),
        ([[0], [2], [1]], NAMES, [("rose",), ("tulip",), ("daisy",)]),
        (["e\u0301", "\u00e9", " x "], None, [("\u00e9",), ("\u00e9",), ("x",)]),
    ],
)
def test_labels_of_every_kind(tmp_path, rows, labels, names, expected):
    path = write(tmp_path / "a.parquet", [(x, 0) for x, _ in rows[:3]], key=None)
    table = parquet.read_table(path).append_column("label", pa.array(labels))
    classes = {"names": names, "_type": "ClassLabel"}
    if isinstance(labels[0], list):
        classes = {"feature": classes, "_type": "List"}
    info = {"info": {"features": {"label": classes}}} if names else {}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    dataset = ParquetDataset(path)
    in_order = sorted({x for found in expected for x in found}, key=lambda x: (len(x), x))
    assert dataset.class_names == tuple(names or in_order)
    assert [x for _, x in read(dataset, "train")] == expected
    assert dataset.multi_label == any(len(x) != 1 for x in expected)


def test_images_can_be_a_column_of_bytes(tmp_path, rows):
    images, labels = zip(*rows, strict=True)
    for kind in (pa.binary(), pa.large_binary()):
        table = pa.table({"jpeg": pa.array(images, kind), "class": list(labels)})
        parquet.write_table(table, tmp_path / "a.parquet")
        found = read(ParquetDataset(tmp_path / "a.parquet"), "train")
        assert found == [(image, (str(label),)) for image, label in rows]


def test_a_split_without_labels_is_told_and_not_used(hub, rows):
    write(hub / "data" / "validation-0.parquet", [(x, -1) for x, _ in rows[:5]], NAMES)
    write(hub / "data" / "extra.parquet", rows[:2], NAMES)
    dataset = ParquetDataset(hub)
    assert dataset.splits == {"train": 18, "test": 6}
    assert dataset.describe_unused() == [
        "not used: extra.parquet, whose names say no split",
        "not used: 5 images in validation, a split without labels",
    ]
    write(hub / "data" / "test-00000-of-00001.parquet", rows[:4], key=None)
    assert ParquetDataset(hub).splits == {"train": 18}


def test_splits_can_be_folders_and_hidden_files_are_passed_over(tmp_path, rows):
    write(tmp_path / "Training/0000.parquet", rows[::2], NAMES)
    write(tmp_path / "Test/0000.parquet", rows[1::2], NAMES)
    write(tmp_path / ".cache/train.parquet", rows, NAMES)
    (tmp_path / "Test/._0000.parquet").write_bytes(b"AppleDouble")
    assert ParquetDataset(tmp_path).splits == {"train": 12, "test": 12}


def test_images_in_folders_come_before_parquet_files(tmp_path, rows):
    write_jpegs(tmp_path, {"a": 2, "b": 2})
    write(tmp_path / "features.parquet", rows, NAMES)
    dataset = open_dataset(str(tmp_path))
    assert isinstance(dataset, FolderDataset) and dataset.splits == {"train": 4}
    assert dataset.other_files == "1 .parquet files"


# -------------------------------------------------------------------------------- row groups


def test_row_groups_are_read_once_in_order_and_by_threads_that_share_them(
    tmp_path, rows, monkeypatch
):
    path = write(tmp_path / "a.parquet", rows, NAMES, row_group_size=5)
    reads = []
    original = parquet.ParquetFile.read_row_group

    def counted(self, group, columns):
        reads.append(group)
        return original(self, group, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    source = ParquetDataset(path).source("train")
    with ThreadPoolExecutor(8) as threads:
        order = np.random.default_rng(0).permutation(np.repeat(np.arange(24), 10))
        found = list(threads.map(lambda i: source[int(i)], order))
    assert [(x.image, x.label) for x in found] == [rows[i] for i in order]
    assert sorted(reads) == [0, 1, 2, 3, 4]
    reads.clear()
    monkeypatch.setattr(parquet_files, "_CACHED_BYTES", 1)  # one row group stays
    dataset = ParquetDataset(path)
    half = dataset.source("train[:50%]")
    assert len([half[i] for i in range(len(half))]) == 12
    assert reads == [0, 1, 2, 3, 4]
    assert "in row groups of up to" in dataset.describe()[-1]


# ------------------------------------------------------------------------------------ checks


def test_data_check_counts_and_names_what_is_wrong(hub, rows, capsys):
    status, lines = check(hub, capsys)
    assert status == 0
    assert lines[0] == "class rose: 6 in train, 2 in test"
    assert lines[-2].startswith("sizes (width x height): 24 x 20 pixels; ")
    bad = [(b"no image", 0), (None, 1), (rows[0][0], 7), rows[0], rows[23]]
    path = write(hub / "data" / "test-00000-of-00001.parquet", bad, NAMES)
    status, lines = check(hub, capsys)
    assert status == 1
    assert lines[0].startswith(f"{path} row 0: not a readable image")
    assert lines[1].startswith(f"{path} row 1: has no bytes of an image: the file must hold")
    assert lines[2].startswith(f"{path} row 2: has the label 7, but there are 3 classes")
    assert (
        "in two splits, byte for byte the same: data/test-00000-of-00001.parquet row 3 (test) = "
        "data/train-00000-of-00002.parquet row 0 (train)" in lines
    )


def test_a_run_refuses_a_class_without_images_and_damaged_rows(tmp_path, rows):
    config = default()
    config.batch_size = config.eval_batch_size = 4
    config.data.name = str(write(tmp_path / "a.parquet", rows[:16], NAMES))
    with pytest.raises(ValueError, match=r"no images to train on .* 1 of its 3 classes: tulip"):
        open_inputs(config)
    config.data.name = str(write(tmp_path / "b.parquet", [(b"bad", 0), *rows[1:]], NAMES))
    inputs = open_inputs(config)
    with pytest.raises(ValueError, match=r"1 of 24 images can't be used:\n- .*b\.parquet row 0: "):
        inputs.check_decodable(config.data)


def test_a_moved_file_has_the_same_fingerprint_and_other_labels_another(tmp_path, rows):
    def of(path):
        dataset = ParquetDataset(path)
        return fingerprint(dataset, labels=True, train=("train", dataset.source("train")))

    old = of(write(tmp_path / "old/a.parquet", rows, NAMES))
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "old/a.parquet", tmp_path / "new/a.parquet")
    assert of(tmp_path / "new/a.parquet") == old
    changed = [*rows[:-1], (rows[-1][0], 0)]
    assert of(write(tmp_path / "old/a.parquet", changed, NAMES)) != old


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0]}, r"has no images: .* it has the columns label\."),
        ({"x": [b"1"], "y": [b"1"]}, r"has several columns of images, x, y: .* the name image\."),
        ({"image": [b"1"], "id": ["x"]}, r"no images with labels .* column called label, labels"),
        ({"image": [b"1"], "label": [None]}, r"no images with labels"),
    ],
)
def test_columns_that_are_missing_or_unclear_are_named(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ParquetDataset(tmp_path / "a.parquet")


def test_several_columns_of_classes_and_different_classes_are_refused(hub, rows):
    other = hub / "data" / "test-00000-of-00001.parquet"
    write(other, rows, [*NAMES, "lily"])
    with pytest.raises(ValueError, match=r"other Parquet files beside it have different classes"):
        ParquetDataset(hub)
    write(other, rows, NAMES)
    features = {x: {"names": ["a"], "_type": "ClassLabel"} for x in ("family", "order")}
    table = pa.table({"image": [b"1"], "family": [0], "order": [0]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    parquet.write_table(table, other)
    with pytest.raises(ValueError, match=r"columns of labels, family, order: .* name label"):
        ParquetDataset(hub)


def test_damage_is_named_and_a_missing_file_too(tmp_path, rows, capsys):
    path = write(tmp_path / "a.parquet", rows, NAMES, row_group_size=8)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)  # in the first row group
    path.write_bytes(data)
    source = ParquetDataset(path).source("train")
    with pytest.raises(ExampleError, match=r"a\.parquet row 0: .* is no parquet file, or damaged"):
        source[0]
    assert source[20].image == rows[20][0]
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is no parquet file, or damaged: "):
        ParquetDataset(path)
    code, lines = check(tmp_path / "gone.parquet", capsys)
    assert (
        code.endswith(f"There is no Parquet or Arrow file {tmp_path}/gone.parquet.") and not lines
    )


def test_without_pyarrow_the_extra_is_named(tmp_path, rows, monkeypatch):
    path = write(tmp_path / "a.parquet", rows, NAMES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow.*pip install -e \"\.\[parquet\]\"\."):
        ParquetDataset(path)


# -------------------------------------------------------------------------------- Arrow files


def write_arrow(hub, folder):
    """Writes the data of `hub` as `save_to_disk` of `datasets` does, and returns the folder."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        names = []
        for file in sorted((hub / "data").glob(f"{split}-*")):
            names.append(file.name.replace(split, "data").replace("parquet", "arrow"))
            table = parquet.read_table(file)
            path, schema = str(folder / split / names[-1]), table.schema
            with pa.OSFile(path, "wb") as out, pa.ipc.new_stream(out, schema) as writer:
                writer.write_table(table, max_chunksize=4)
        state = {"_data_files": [{"filename": x} for x in names], "_indices_data_files": None}
        (folder / split / "state.json").write_text(json.dumps(state))
    (folder / "train" / "cache-0123456789abcdef.arrow").write_bytes(b"of another program")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder


def test_arrow_files_have_the_images_of_parquet_files(hub, tmp_path):
    folder = write_arrow(hub, tmp_path / "saved")
    found, expected = open_dataset(str(folder)), open_dataset(str(hub))
    assert (found.class_names, found.splits) == (expected.class_names, expected.splits)
    assert found.describe() == expected.describe()
    for split in ("train", "test[50%:]"):
        assert read(found, split) == read(expected, split)
    order = found.source("train").shuffled(np.random.default_rng(0))
    assert sorted(order) == list(range(18)) and list(order) != sorted(order)
    source = found.source("train")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source[i].image, [5, 17, 0] * 9)) == [
            source[i].image for i in [5, 17, 0] * 9
        ]
    assert "data-00001-of-00002.arrow row 3" in source[12].id


def test_an_arrow_file_alone_is_a_data_set_in_both_formats(hub, tmp_path):
    table = parquet.read_table(hub / "data" / "test-00000-of-00001.parquet")
    for name, new in (("a.arrow", pa.ipc.new_stream), ("b.ARROW", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / name), "wb") as out, new(out, table.schema) as writer:
            writer.write_table(table)
        assert read(open_dataset(str(tmp_path / name)), "train") == [
            (x["image"]["bytes"], (NAMES[x["label"]],)) for x in table.to_pylist()
        ]


def test_a_selection_and_a_damaged_arrow_file_are_refused(hub, tmp_path):
    folder = write_arrow(hub, tmp_path / "saved")
    file = folder / "train" / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    for data in (whole[:20], whole[: len(whole) // 2], b"no arrow file", b""):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"of-00002\.arrow is no arrow file, or damaged: "):
            open_dataset(str(folder))
    state = {"_data_files": [{"filename": file.name}], "_indices_data_files": [{"filename": "i"}]}
    (folder / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"saved/train holds a selection of the rows of its"):
        open_dataset(str(folder))
