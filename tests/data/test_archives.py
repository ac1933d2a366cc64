import hashlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import small_archives
import tensorflow_datasets as tfds

from vit_jax.data import sources, transforms
from vit_jax.data.__main__ import main
from vit_jax.data.builders import archives, prepare, vtab
from vit_jax.data.builders.oxford_flowers102 import OxfordFlowers102

TESTS = pathlib.Path(__file__).parents[1]
FULL_NAMES = {
    "cifar10": "cifar10/3.0.2",
    "cifar100": "cifar100/3.0.2",
    "oxford_flowers102": "oxford_flowers102/2.1.1",
    "oxford_iiit_pet": "oxford_iiit_pet/4.0.0",
    "tf_flowers": "tf_flowers/3.0.1",
}
# What tfds's own builders made of these archives, with TensorFlow 2.21: the order of the training
# examples, and the SHA-256 of the damaged photos that it encoded again.
ORDER = {
    "cifar10": [f"train_{n:05d}" for n in (6, 12, 14, 5, 13, 4, 10, 0, 8, 3, 1, 9, 7, 11, 2)],
    "cifar100": [f"train_{n:05d}" for n in (6, 5, 4, 0, 3, 1, 2)],
    "oxford_flowers102": [f"image_{n:05d}.jpg" for n in (12, 7, 3)],
    "oxford_iiit_pet": [
        f"{name}.jpg"
        for name in ("Abyssinian_100", "beagle_116", "Abyssinian_5", "yorkshire_terrier_9")
    ],
}
ENCODED_AGAIN = {
    b"Abyssinian_5.jpg": "c40202bf257af0daa6b1931fd5b0ca105592af346e63ba555e36ebca19558742",
    b"beagle_116.jpg": "35601d1d9d37b9a375f15620239b2e09e3f07d6ea1869d38124fb1286c1504f5",
    b"Egyptian_Mau_14.jpg": "23e26e27cbe863ed37e03c865c8081ec25db63ded0740cedf12c3c50e990ec8e",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """For each data set: the folder of its archives, what tfds knows of them, the examples."""
    folder = tmp_path_factory.mktemp("served")
    sets = {}
    with small_archives.serve(folder) as url:
        for name in FULL_NAMES:
            (folder / name).mkdir()
            files, examples = getattr(small_archives, f"write_{name}")(folder / name)
            infos = small_archives.url_infos(f"{url}/{name}", folder / name, files)
            sets[name] = folder / name, infos, examples
        yield sets


@pytest.fixture(scope="module")
def root(served, tmp_path_factory):
    """tfds's folder with all the data sets, downloaded and prepared by the command."""
    root = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, infos, _) in served.items():
            patch.setattr(prepare._OWN[name], "url_infos", infos)
            main(["prepare", name, f"--data_dir={root}"])
    return root


def read(builder, split):
    """The examples of a split, with their images encoded."""
    images = [k for k, v in builder.info.features.items() if isinstance(v, tfds.features.Image)]
    skip = {key: tfds.decode.SkipDecoding() for key in images}
    return list(builder.as_data_source(split, decoders=skip))


def identity(example):
    return next(example[key] for key in ("id", "file_name", "image") if key in example)


@pytest.mark.parametrize("name", FULL_NAMES)
def test_the_examples_are_those_of_the_archives(served, root, name):
    builder = prepare.open_builder(name, str(root))
    assert builder.data_path == root / FULL_NAMES[name]
    assert builder.info.full_name == FULL_NAMES[name]
    assert builder.info.description and builder.info.supervised_keys == ("image", "label")
    assert sorted(builder.info.splits) == sorted(served[name][2])
    for split, wanted in served[name][2].items():
        made = {identity(example): example for example in wanted}
        found = read(builder, split)
        assert len(found) == len(made) == len({identity(example) for example in found})
        for example in found:
            expected = dict(made[identity(example)])
            if name.startswith("cifar"):
                assert example["image"].startswith(b"\x89PNG")
                png = np.frombuffer(example["image"], np.uint8)
                example["image"] = cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)
            if digest := ENCODED_AGAIN.get(identity(example)):
                assert transforms.decode(example["image"]).shape == (12, 16, 3)
                example["image"] = hashlib.sha256(example["image"]).hexdigest()
                expected["image"] = digest
            assert example.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_array_equal(example[key], value, err_msg=key)


@pytest.mark.parametrize("name", ORDER)
def test_the_examples_have_the_order_in_which_tfds_writes_them(root, name):
    found = read(prepare.open_builder(name, str(root)), "train")
    assert [identity(example).decode() for example in found] == ORDER[name]


def test_the_classes_have_their_names(root):
    names = {name: sources.open_dataset(name, str(root)).class_names for name in FULL_NAMES}
    assert list(names["cifar10"]) == small_archives.CIFAR10
    assert names["cifar100"] == tuple(f"class_{n}" for n in range(100))
    flowers, pets = names["oxford_flowers102"], names["oxford_iiit_pet"]
    assert (len(flowers), flowers[0], flowers[-1]) == (102, "pink primrose", "blackberry lily")
    assert len(pets) == 37
    assert {breed: pets.index(breed) + 1 for breed in small_archives.BREEDS} == (
        small_archives.BREEDS
    )


@pytest.mark.parametrize("task", ["cifar100", "flowers102", "pets"])
def test_the_tasks_of_vtab_read_them(served, root, task):
    name = vtab.TASKS[task].dataset
    source = sources.open_dataset(f"vtab/{task}", str(root)).source("test")
    labels = sorted(source[i].label for i in range(len(source)))
    assert labels == sorted(example["label"] for example in served[name][2]["test"])
    assert transforms.decode(source[0].image).ndim == 3


@pytest.mark.parametrize("name", FULL_NAMES)
def test_the_real_files_come_over_https_with_the_checksums_of_tfds(name):
    infos = prepare._OWN[name].url_infos
    stock = {info.filename: info for info in tfds.builder_cls(name).url_infos.values()}
    assert {info.filename: info for info in infos.values()} == stock
    assert all(url.startswith("https://") for url in infos)


def test_the_real_files_have_the_names_of_the_small_ones(served):
    real = {n: {x.filename for x in prepare._OWN[n].url_infos.values()} for n in served}
    small = {n: {path.name for path in folder.iterdir()} for n, (folder, *_) in served.items()}
    assert real == small


def test_a_file_is_downloaded_once(served, root, tmp_path, monkeypatch):
    folder, infos, _ = served["oxford_flowers102"]
    files = [info.filename for info in infos.values()]
    with small_archives.serve(folder) as url, monkeypatch.context() as patch:
        here = small_archives.url_infos(url, folder, files)
        patch.setattr(OxfordFlowers102, "url_infos", here)
        prepare.prepare("oxford_flowers102", str(tmp_path))
    shutil.rmtree(tmp_path / "oxford_flowers102")
    monkeypatch.setattr(OxfordFlowers102, "url_infos", here)  # the server has stopped
    again = prepare.prepare("oxford_flowers102", str(tmp_path))
    first = prepare.open_builder("oxford_flowers102", str(root))
    assert read(again, "test") == read(first, "test")


def test_files_can_be_put_by_hand_into_the_folder_that_the_error_names(
    served, root, tmp_path, monkeypatch
):
    folder, infos, _ = served["oxford_flowers102"]
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        url = f"http://localhost:{closed.getsockname()[1]}"
    there = {f"{url}/{info.filename}": info for info in infos.values()}
    monkeypatch.setattr(OxfordFlowers102, "url_infos", there)
    with pytest.raises(ConnectionError) as caught:
        prepare.prepare("oxford_flowers102", str(tmp_path))
    manual = re.search(r"by hand into (\S+): (.*?)\. The cause", str(caught.value))
    assert manual[2].split(", ") == list(there)
    shutil.copytree(folder, manual[1])
    found = prepare.prepare("oxford_flowers102", str(tmp_path))
    first = prepare.open_builder("oxford_flowers102", str(root))
    assert read(found, "test") == read(first, "test")

    damaged = pathlib.Path(manual[1]) / "setid.mat"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "oxford_flowers102")
    with pytest.raises(ConnectionError, match=f"{damaged}, has wrong checksum"):
        prepare.prepare("oxford_flowers102", str(tmp_path))


def test_an_archive_that_lacks_photos_is_refused(served, tmp_path, monkeypatch):
    _, infos, _ = served["oxford_flowers102"]
    names = [info.filename for info in infos.values()]
    small_archives.write_oxford_flowers102(tmp_path)
    small_archives.write_tar(tmp_path / "102flowers.tgz", {"jpg/image_00003.jpg": b"JPEG"})
    with small_archives.serve(tmp_path) as url:
        here = small_archives.url_infos(url, tmp_path, names)
        monkeypatch.setattr(OxfordFlowers102, "url_infos", here)
        lacks = "102flowers\\S*.tgz lacks jpg/image_00007.jpg, jpg/image_00012.jpg"
        with pytest.raises(ValueError, match=lacks):
            prepare.prepare("oxford_flowers102", str(tmp_path / "data"))
    assert not list((tmp_path / "data" / "oxford_flowers102").glob("2*"))


@pytest.mark.parametrize(
    ("name", "is_outside"),
    [("a/../../b", True), ("../b", True), ("/b", True), ("..b", False), ("./a/../b", False)],
)
def test_an_archive_that_would_write_outside_its_folder_is_refused(
    tmp_path, monkeypatch, name, is_outside
):
    """Also by Python 3.11.0, whose tarfile checks nothing."""
    for later in ("data_filter", "FilterError"):
        monkeypatch.delattr(tarfile, later)
    small_archives.write_tar(tmp_path / "a.tar.gz", {name: b"text"})
    if is_outside:
        with pytest.raises(ValueError, match=f"a.tar.gz is refused: {name!r} is outside"):
            list(archives.read(tmp_path / "a.tar.gz"))
    else:
        names = [name for name, _ in archives.read(tmp_path / "a.tar.gz")]
        assert names == [os.path.normpath(name)]


@pytest.mark.slow
def test_nothing_imports_tensorflow(served, tmp_path):
    """In a new process, which prepares and reads all the data sets."""
    files = {n: [info.filename for info in infos.values()] for n, (_, infos, _) in served.items()}
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(TESTS)!r})
import small_archives
from vit_jax.data import sources
from vit_jax.data.builders import prepare, vtab
from vit_jax.data.builders.oxford_flowers102 import OxfordFlowers102
folder = pathlib.Path({str(served["cifar10"][0].parent)!r})
with small_archives.serve(folder) as url:
    for name, files in {files!r}.items():
        infos = small_archives.url_infos(f"{{url}}/{{name}}", folder / name, files)
        prepare._OWN[name].url_infos = infos
        dataset = sources.open_dataset(name, {str(tmp_path)!r})
        assert dataset.source("train")[0].image
try:
    prepare.open_builder("unknown_flowers", {str(tmp_path)!r})
except prepare.DataError:
    print([name for name in sys.modules if name.split(".")[0] == "tensorflow"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
