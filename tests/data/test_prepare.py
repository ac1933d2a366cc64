import contextlib
import io
import json
import shutil
import socket
import struct
import subprocess
import sys

import pytest
import requests
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from small_archives import jpeg, serve, url_infos, write_tf_flowers
from tensorflow_datasets.core.download.checksums import UrlInfo

from vit_jax.data.__main__ import main
from vit_jax.data.builders import prepare
from vit_jax.data.builders.tf_flowers import TfFlowers


class Meadow(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of two configs that needs no download."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("wet", "dry"))

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=2)
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": io.BytesIO(jpeg(i)), "label": i % 2}


@pytest.fixture
def meadow(monkeypatch):
    monkeypatch.setitem(prepare._OWN, "meadow", Meadow)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a folder that holds a small flower_photos.tgz, and what tfds knows of that."""
    folder = tmp_path_factory.mktemp("served")
    names, _ = write_tf_flowers(folder)
    with serve(folder) as url:
        yield url, url_infos(url, folder, names)


@pytest.fixture(scope="module")
def flowers(server, tmp_path_factory):
    """tfds's folder with tf_flowers in it, downloaded from the server and prepared."""
    root = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TfFlowers, "url_infos", server[1])
        prepare.open_builder("tf_flowers", str(root))
    return root


def one_file(url):
    return {url: UrlInfo(1, "00" * 32, "flower_photos.tgz")}


def masked_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_tfrecord(path, records):
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(record + struct.pack("<I", masked_crc32c(record)))


def records(builder, split="train"):
    readers = [ArrayRecordReader(str(path)) for path in builder.info.splits[split].filepaths]
    return [record for reader in readers for record in reader.read_all()]


def edit_info(folder, **changes):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def tfrecords(flowers, tmp_path):
    """The folder of a version of tf_flowers, as TensorFlow prepares it, in two shards."""
    source = prepare.open_builder("tf_flowers", str(flowers))
    folder = tmp_path / "data" / "tf_flowers" / "3.0.1"
    shutil.copytree(source.data_path, folder, ignore=shutil.ignore_patterns("*array_record*"))
    wanted = records(source)
    for shard, part in enumerate((wanted[:7], wanted[7:])):
        write_tfrecord(folder / f"tf_flowers-train.tfrecord-0000{shard}-of-00002", part)
    split = {
        "name": "train",
        "numBytes": "1",
        "shardLengths": ["7", "5"],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    edit_info(folder, fileFormat="tfrecord", splits=[split])
    return folder


@contextlib.contextmanager
def fails(error, *facts):
    """Expects an error of exactly this class, in one paragraph that holds all the facts."""
    with pytest.raises(error) as caught:
        yield caught
    text = str(caught.value)
    assert caught.type is error and "\n" not in text
    assert not [fact for fact in facts if str(fact) not in text], text


def test_prepared_data_is_array_records_in_groups_of_one_and_not_prepared_again(
    meadow, tmp_path, monkeypatch
):
    builder = prepare.open_builder("meadow/dry", str(tmp_path))
    assert builder.data_path == tmp_path / "meadow" / "dry" / "1.1.0"
    reader = ArrayRecordReader(str(builder.info.splits["train"].filepaths[0]))
    assert "group_size:1," in reader.writer_options_string() + ","
    monkeypatch.setattr(Meadow, "_split_generators", None)
    again = [
        prepare.open_builder("meadow/dry:1.1.0", str(tmp_path)),
        prepare.prepare("meadow/dry", str(tmp_path)),
    ]
    assert [records(b) for b in again] == [records(builder)] * 2 and len(records(builder)) == 7


def test_prepared_data_needs_no_code_and_is_found_in_tfds_default_folder(
    meadow, tmp_path, monkeypatch
):
    prepare.prepare("meadow/wet", str(tmp_path))
    del prepare._OWN["meadow"]
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    builder = prepare.open_builder("meadow/wet")
    assert len(builder.as_data_source("train")) == 7
    with fails(prepare.DataError, "meadow/wet:2.0.0", tmp_path, "holds meadow/wet:1.1.0"):
        prepare.open_builder("meadow/wet:2.0.0")


def test_a_version_of_our_own_sets_that_is_older_is_only_read_when_it_is_named(
    server, flowers, tmp_path, monkeypatch
):
    monkeypatch.setattr(TfFlowers, "url_infos", server[1])
    shutil.copytree(flowers / "tf_flowers" / "3.0.1", tmp_path / "tf_flowers" / "3.0.0")
    edit_info(tmp_path / "tf_flowers" / "3.0.0", version="3.0.0")
    old = prepare.open_builder("tf_flowers:3.0.0", str(tmp_path))
    assert old.info.full_name == "tf_flowers/3.0.0" and len(old.as_data_source("train")) == 12
    assert prepare.open_builder("tf_flowers", str(tmp_path)).info.full_name == "tf_flowers/3.0.1"


@pytest.mark.parametrize(
    "name, close",
    [
        ("cifar1O", "cifar10"),
        ("ImageNet2012", "imagenet2012"),
        ("render_flowers", "rendered_flowers"),
        ("cifar-10", "cifar10"),  # can't be a name of tfds
    ],
)
def test_an_unknown_name_gets_the_closest_ones(name, close, tmp_path):
    with fails(prepare.DataError, f"{name!r} is neither an existing folder nor", repr(close)):
        prepare.open_builder(name, str(tmp_path))


def test_an_unknown_name_gets_folders_that_are_close(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "my_photo.txt").touch()  # not a folder
    with fails(prepare.DataError, "'my photo' is neither", "(did you mean 'my_photos'?)"):
        prepare.open_builder("my photo", str(tmp_path))
    with fails(prepare.DataError, "'My_Photo' is neither", "'my_photos'", f"{tmp_path} holds noth"):
        prepare.open_builder("My_Photo", str(tmp_path))


def test_what_can_not_be_a_name(tmp_path):
    for name in ("two words", "kaggle:foo", ""):
        with fails(prepare.DataError, repr(name), "NAME:VERSION"):
            prepare.open_builder(name, str(tmp_path))


def test_other_versions_and_configs_are_named(meadow, flowers):
    with fails(prepare.DataError, "tf_flowers:2.0.0", flowers, "holds tf_flowers:3.0.1", "only: 3"):
        prepare.open_builder("tf_flowers:2.0.0", str(flowers))
    with fails(prepare.DataError, "meadow/damp", "wet, dry"):
        prepare.open_builder("meadow/damp", str(flowers))


@pytest.mark.parametrize(
    "name, version, by_hand",
    [
        ("svhn_cropped", "3.1.0", ()),
        ("imagenet2012", "5.1.0", ("ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",)),
        ("resisc45", "3.0.0", ("extract it to the manual_dir",)),
    ],
)
def test_builders_that_need_tensorflow_say_so_before_any_download(
    name, version, by_hand, tmp_path, monkeypatch
):
    monkeypatch.setattr(prepare, "find_spec", {"tensorflow": None}.__getitem__)
    facts = [*by_hand, tmp_path / "downloads" / "manual"] if by_hand else []
    with fails(
        ImportError,
        'pip install -e ".[prepare]"',
        tmp_path / name / version,
        f"`python -m vit_jax.data prepare {name} --data_dir {tmp_path}`",
        *facts,
    ) as caught:
        prepare.open_builder(name, str(tmp_path))
    assert ("by hand" in str(caught.value)) == bool(by_hand)
    assert not list(tmp_path.iterdir())


class ByHand(Meadow, skip_registration=True):
    """As imagenet2012: its file is put by hand into tfds's manual_dir."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir should contain one file:\n  meadow.tar.\n"
    BUILDER_CONFIGS = ()

    def _split_generators(self, dl_manager):
        if not (dl_manager.manual_dir / "meadow.tar").exists():
            raise AssertionError("This data set\nneeds meadow.tar.")
        return super()._split_generators(dl_manager)


def test_a_set_whose_files_are_put_by_hand_says_where(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare._OWN, "by_hand", ByHand)
    folder = tmp_path / "downloads" / "manual"
    command = f"Then run `python -m vit_jax.data prepare by_hand --data_dir {tmp_path}`."
    for other in (None, "other.tar"):  # there is no folder; it lacks the file
        if other:
            folder.mkdir(parents=True)
            (folder / other).touch()
        facts = folder, "should contain one file: meadow.tar.", command
        with fails(prepare.DataError, *facts, "The cause: "):
            prepare.open_builder("by_hand", str(tmp_path))
    (folder / "meadow.tar").touch()
    assert len(records(prepare.open_builder("by_hand", str(tmp_path)))) == 7


def test_an_assertion_that_is_about_no_files_is_raised_as_it_is(meadow, tmp_path, monkeypatch):
    def broken(self, dl_manager):
        raise AssertionError("a fault of the builder")

    monkeypatch.setattr(Meadow, "_split_generators", broken)
    with pytest.raises(AssertionError, match="a fault of the builder"):
        prepare.open_builder("meadow/wet", str(tmp_path))


def test_a_failed_download_names_the_url_and_both_folders(tmp_path, monkeypatch, caplog):
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        url = f"http://localhost:{closed.getsockname()[1]}/flower_photos.tgz"
    monkeypatch.setattr(TfFlowers, "url_infos", one_file(url))
    folders = tmp_path / "tf_flowers" / "3.0.1", tmp_path / "downloads" / "manual"
    with fails(ConnectionError, f"{folders[1]}: {url}.", *folders, "refused") as caught:
        prepare.open_builder("tf_flowers", str(tmp_path))
    assert isinstance(caught.value.__cause__, requests.ConnectionError)
    assert not [record for record in caplog.records if "Retrying" in record.getMessage()]


def test_a_missing_download_names_the_url(server, tmp_path, monkeypatch):
    monkeypatch.setattr(TfFlowers, "url_infos", one_file(f"{server[0]}/gone.tgz"))
    with fails(ConnectionError, f"{server[0]}/gone.tgz", "404", tmp_path):
        prepare.open_builder("tf_flowers", str(tmp_path))


def test_data_that_is_not_whole_is_refused(meadow, tmp_path):
    builder = prepare.prepare("meadow/wet", str(tmp_path))
    record_file = builder.info.splits["test"].filepaths[0]
    for path in (record_file, builder.data_path / "features.json"):
        path.rename(path.with_suffix(".away"))
        with fails(FileNotFoundError, builder.data_path, path.name, "delete"):
            prepare.open_builder("meadow/wet", str(tmp_path))
        path.with_suffix(".away").rename(path)
    prepare.open_builder("meadow/wet", str(tmp_path))


def test_another_process_that_was_faster_is_no_error(meadow, tmp_path, monkeypatch):
    generate = Meadow.download_and_prepare

    def slow(self, **options):
        generate(Meadow(data_dir=tmp_path, config="wet"), **options)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Meadow, "download_and_prepare", slow)
    assert len(records(prepare.prepare("meadow/wet", str(tmp_path)))) == 7


def test_tfrecord_data_is_refused_until_converted(flowers, tfrecords, capsys):
    root = str(tfrecords.parents[1])
    for attempt in (prepare.open_builder, prepare.prepare):
        with fails(
            prepare.DataError,
            "tf_flowers/3.0.1",
            "tfrecord",
            f"`python -m vit_jax.data convert {tfrecords}`",
        ):
            attempt("tf_flowers", root)
    before = {path.name: path.read_bytes() for path in tfrecords.glob("*tfrecord*")}
    assert prepare.convert(root) == tfrecords
    assert "12/12" in capsys.readouterr().err
    builder = prepare.open_builder("tf_flowers", root)
    assert records(builder) == records(prepare.open_builder("tf_flowers", str(flowers)))
    assert [
        len(records_of) for records_of in map(read_all, builder.info.splits["train"].filepaths)
    ] == [7, 5]
    assert tfds.builder_from_directory(tfrecords).info.file_format.value == "array_record"
    assert len(builder.as_data_source("train[:50%]")) == 6
    assert {path.name: path.read_bytes() for path in tfrecords.glob("*tfrecord*")} == before
    assert prepare.convert(tfrecords) == tfrecords and "nothing to do" in capsys.readouterr().out


def read_all(path):
    reader = ArrayRecordReader(str(path))
    assert reader.writer_options_string().startswith("group_size:1,")
    return reader.read_all()


def test_array_records_beside_tfrecords_are_preferred(flowers, tfrecords):
    prepare.convert(tfrecords)
    edit_info(tfrecords, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    builder = prepare.open_builder("tf_flowers", str(tfrecords.parents[1]))
    assert records(builder) == records(prepare.open_builder("tf_flowers", str(flowers)))


def test_data_of_older_tfds_without_a_format_is_tfrecords(tfrecords):
    info = json.loads((tfrecords / "dataset_info.json").read_text())
    del info["fileFormat"], info["splits"][0]["filepathTemplate"]
    (tfrecords / "dataset_info.json").write_text(json.dumps(info))
    with fails(prepare.DataError, "tfrecord"):
        prepare.open_builder("tf_flowers", str(tfrecords.parents[1]))
    prepare.convert(tfrecords)
    assert len(records(prepare.open_builder("tf_flowers", str(tfrecords.parents[1])))) == 12


def test_an_interrupted_conversion_changes_nothing_and_can_be_repeated(tfrecords, monkeypatch):
    before = {path.name: path.read_bytes() for path in tfrecords.iterdir()}

    class FullDisk(prepare.ArrayRecordWriter):
        def write(self, record):
            if written.append(record) or len(written) == 9:  # in the second shard
                raise OSError("No space left on device")
            super().write(record)

    written = []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(prepare, "ArrayRecordWriter", FullDisk)
        prepare.convert(tfrecords)
    assert {name: (tfrecords / name).read_bytes() for name in before} == before
    assert tfds.builder_from_directory(tfrecords).info.file_format.value == "tfrecord"
    prepare.convert(tfrecords)
    assert len(records(prepare.open_builder("tf_flowers", str(tfrecords.parents[1])))) == 12
    assert not list(tfrecords.glob(".partial-*"))


def test_conversion_of_damaged_or_missing_files_is_refused(tfrecords):
    first, second = sorted(tfrecords.glob("*tfrecord*"))
    whole = second.read_bytes()
    write_tfrecord(second, [b"one", b"two"])
    with fails(prepare.DataError, second, "2 records", "says 5"):
        prepare.convert(tfrecords)
    for damaged in (whole[:-3], b"\xff" * 40):
        second.write_bytes(damaged)
        with fails(prepare.DataError, second, "damaged"):
            prepare.convert(tfrecords)
    second.unlink()
    with fails(FileNotFoundError, tfrecords, second.name):
        prepare.convert(tfrecords)
    assert json.loads((tfrecords / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"
    assert first.exists()


def test_conversion_wants_one_folder_of_data(tfrecords, tmp_path):
    with fails(FileNotFoundError, tmp_path / "none", "dataset_info.json"):
        prepare.convert(tmp_path / "none")
    other = tfrecords.with_name("3.0.0")
    shutil.copytree(tfrecords, other)
    with fails(prepare.DataError, tfrecords, other):
        prepare.convert(tfrecords.parent)


@pytest.mark.slow
def test_a_conversion_imports_no_tensorflow(tfrecords):
    script = f"""
import sys
from vit_jax.data.builders import prepare
prepare.convert("{tfrecords}")
builder = prepare.open_builder("tf_flowers", "{tfrecords.parents[1]}")
assert builder.as_data_source("train")[0]["image"].shape == (12, 16, 3)
print([name for name in sys.modules if name.split(".")[0] == "tensorflow"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_check_of_a_folder_says_that_a_data_set_is_prepared_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fails(SystemExit, "no folder cifar10", "`python -m vit_jax.data prepare cifar10`"):
        main(["check", "cifar10"])
