"""Files of features, read by NumPy and pyarrow, against the features that a model returns."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import IMAGE, REPOSITORY, environment, random_params, tiny, write_jpegs
from pyarrow import parquet

from vit_jax import predict
from vit_jax.inference import feature_files
from vit_jax.inference.classifier import Classifier, Unreadable
from vit_jax.inference.feature_files import write_features
from vit_jax.models.features import Features
from vit_jax.weights.api import save_params

SUFFIXES = (".npz", ".parquet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a tiny model without a head."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    params = random_params(tiny(num_classes=0, depth=2))
    sizes = dict(width=24, depth=2, mlp_dim=32, num_heads=2, patch_size=8)
    save_params(params, path, variant="Ti/16", format="orbax", image_size=IMAGE, **sizes)
    return path


def read(path):
    """Every column of a file as an array."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    table = parquet.read_table(path)
    columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    columns["paths"] = columns.pop("path")
    return columns


def features(count, seed=0):
    """Pairs of a path and features, of which one path has bytes that aren't UTF-8."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    names = ["a/ü b.jpg", os.fsdecode(b"b/\xe9.jpg"), *map(str, range(2, count))][:count]
    return [(name, Features(draw(4), {3: draw(2, 4)}, draw(2, 4))) for name in names]


@pytest.mark.parametrize("group_bytes", [1, 200, 2**25])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_number_is_in_the_file(tmp_path, monkeypatch, suffix, group_bytes):
    """Of an image, 80 bytes are written: row groups of 1, 2 and all images."""
    monkeypatch.setattr(feature_files, "_GROUP_BYTES", group_bytes)
    path, rows = tmp_path / f"new/x{suffix}", features(5)
    shapes = write_features(path, iter(rows))
    assert shapes == {"pooled": (5, 4), "tokens": (5, 2, 4), "tokens_3": (5, 2, 4)}
    found = read(path)
    assert list(found["paths"]) == ["a/ü b.jpg", "b/\\xe9.jpg", "2", "3", "4"]
    expected = jax.tree.map(lambda *x: np.stack(x), *[x for _, x in rows])
    np.testing.assert_array_equal(found["pooled"], expected.pooled)
    np.testing.assert_array_equal(found["tokens"], expected.final_tokens)
    np.testing.assert_array_equal(found["tokens_3"], expected.tokens[3])
    assert sorted(found) == ["paths", "pooled", "tokens", "tokens_3"]
    assert os.listdir(path.parent) == [path.name]
    if suffix == ".npz":
        assert found["pooled"].dtype == found["tokens_3"].dtype == np.dtype("<f4")
    else:
        opened = parquet.ParquetFile(path)
        assert opened.num_row_groups == {1: 5, 200: 3, 2**25: 1}[group_bytes]
        kind = opened.schema_arrow.field("tokens").type
        assert (kind.list_size, kind.value_type.list_size) == (2, 4)
        assert str(kind.value_type.value_type) == "float"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_written_completely_or_not_at_all(tmp_path, suffix):
    def interrupted():
        yield from features(3, seed=1)
        raise KeyboardInterrupt

    path = tmp_path / f"x{suffix}"
    write_features(path, features(2))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_features(path, interrupted())
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / f"new/y{suffix}", interrupted())
    assert write_features(tmp_path / f"z{suffix}", ()) == {}
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    write_features(path, features(3, seed=1))
    assert len(read(path)["pooled"]) == 3


def test_what_cannot_be_written_is_refused_before_the_features_are_computed(tmp_path, monkeypatch):
    never = iter([("x", None)])
    for name in ("x.csv", "x", "x.npz.gz"):
        with pytest.raises(ValueError, match=r"a file that ends with .npz or .parquet\."):
            write_features(tmp_path / name, never)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder.npz is a folder: name a file in it"):
        write_features(tmp_path / "folder.npz", never)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x.npz can't be written: (File exists|Not a dir)"):
        write_features(tmp_path / "file" / "x.npz", features(1))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"x.parquet needs pyarrow.*\[parquet\]\"\. A file"):
        write_features(tmp_path / "x.parquet", never)
    assert next(never)


def test_a_stream_tells_which_images_cannot_be_read(saved, tmp_path):
    photos = write_jpegs(tmp_path, {"one": 3})
    files = [f"{photos}/one/0.jpg", "gone.jpg", f"{photos}/one/1.jpg", f"{photos}/one/2.jpg"]
    classifier = Classifier(saved, batch_size=2)
    whole = classifier.features([x for x in files if x != "gone.jpg"], layers=[2], tokens=True)
    names, found = zip(*classifier.stream_features(files, [2], tokens=True), strict=True)
    assert list(names) == files
    assert isinstance(found[1], Unreadable) and "gone.jpg" in found[1].reason
    rows = [x for x in found if not isinstance(x, Unreadable)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stacked, whole)


def test_the_command_writes_what_the_classifier_returns(saved, tmp_path):
    """Also of a model without a head; what can't be read is reported, and left out."""
    photos = write_jpegs(tmp_path / "photos", {"one": 3})
    (photos / "one" / "text.jpg").write_text("no image")
    path = tmp_path / "x.npz"
    command = [sys.executable, "-m", "vit_jax.predict", str(saved), str(photos)]
    done = subprocess.run(
        [*command, f"--features={path}", "--tokens", "--layers=0,2"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Skipped 1 of 4 images, which can't be read:\n" in done.stderr
    assert done.stdout == (
        f"Written to {path}: 3 images, each pooled (24,), tokens (5, 24), tokens_0 (5, 24), "
        f"tokens_2 (5, 24).\n"
    )
    files = [str(photos / "one" / f"{i}.jpg") for i in range(3)]
    expected = Classifier(saved).features(files, layers=[0, 2], tokens=True)
    found = read(path)
    assert list(found["paths"]) == files
    np.testing.assert_allclose(found["pooled"], expected.pooled, atol=1e-5)
    np.testing.assert_allclose(found["tokens"], expected.final_tokens, atol=1e-5)
    for layer in (0, 2):
        np.testing.assert_allclose(found[f"tokens_{layer}"], expected.tokens[layer], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens"], "--tokens and --layers go with --features=FILE"),
        (["--layers=0"], "--tokens and --layers go with --features=FILE"),
        (["--features=x.npz", "--top=2"], "--features prints no classes: leave --top out"),
        (["--features=x.npz", "--json"], "not allowed with argument"),
        (["--features=x.npz", "--layers=last"], "--layers: invalid"),
    ],
)
def test_arguments_that_do_not_go_together(capsys, arguments, message):
    with pytest.raises(SystemExit):
        predict.main(["checkpoint", "image.jpg", *arguments])
    assert message in capsys.readouterr().err
