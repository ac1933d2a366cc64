"""Every format of every kind of model: what is written opens again as the same model, or isn't.

The formats are those of `FORMATS`, and the kinds come from `VARIANTS` and `ATTRIBUTES`: new rows of
these tables are tested, too. Files are opened without a word on what they hold.
"""

import itertools
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY
from tiny_weights import assert_same, random_params

from vit_jax import convert
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.inference.classifier import Classifier
from vit_jax.models.attributes import ATTRIBUTES
from vit_jax.models.variants import VARIANTS
from vit_jax.weights import recognise
from vit_jax.weights.api import load, load_params, save
from vit_jax.weights.formats import FORMATS, format_of

SQUARE, WIDE = (32, 32), (32, 48)
# A file of each format: (format, suffix). timm's are of safetensors and of PyTorch.
FILES = [(name, suffix) for name, row in FORMATS.items() for suffix in row.suffixes[:2] or ("",)]
FAMILIES = (  # of later ViTs
    {"registers": 4},
    {"pre_norm": True, "gelu": "quick"},
    {"final_norm": "after_pool", "pool": "gap", "class_tokens": 1},
    {"final_norm": "none"},
    {"class_tokens": 2},
    {"mlp": "swiglu"},
    {"norm": "rms"},
    {"projection": 5},
    {"conv_stem": (4, 6), "patch_size": 1, "pool": "gap"},
)


def shrunk(row):
    """A small model of a variant's kind: no variant has its sizes."""
    if "layers" in row:
        return {"layers": (1,) * (2 if row.get("axial") else 1)}
    sizes = dict(depth=1, width=24, mlp_dim=48, num_heads=2)
    if row.get("stem") is None:
        return {**sizes, "patch_size": 8}
    return {**sizes, "stem": (1,) * len(row["stem"][:2]), "patch_size": 2}


def kinds():
    """Yields (variant, attributes, image size, number of classes), each once."""
    seen = set()
    for variant, row in VARIANTS.items():
        kind = shrunk(row)
        if (key := repr((kind, row.get("axial")))) not in seen:
            seen.add(key)
            yield variant, kind, SQUARE, 3
            yield variant, kind, WIDE, 0
    vit = shrunk(VARIANTS["B/16"])
    choices = {name: ATTRIBUTES[name].choices for name in ("positions", "positions_at", "pool")}
    for values in itertools.product(*choices.values()):
        attributes = dict(zip(choices, values, strict=True))
        if attributes["positions"] in ("none", "relative") and values[1] != "stem":
            continue  # nothing to add
        yield "B/16", {**vit, **attributes}, WIDE, 3
    yield "B/16", {**vit, "gelu": "exact", "norm_epsilon": 1e-3}, SQUARE, 3
    yield "B/16", {**vit, "patch_size": (8, 4)}, SQUARE, 3
    yield "B/16", {**vit, "num_heads": 3}, SQUARE, 1
    yield "B/16", {**vit, "pre_logits": True}, SQUARE, 3
    yield "B/16", {**vit, "pre_logits": True}, SQUARE, 0
    yield "B/16", vit, (16, 64), 3  # as many patches as a square has
    yield "B/16", {**vit, "pool": "gap"}, (8, 72), 3
    yield "R50x1", {"layers": (1,), "kernel_epsilon": 1e-3}, WIDE, 3
    for attributes in FAMILIES:
        yield "B/16", {**vit, **attributes}, SQUARE, 3


KINDS = list(kinds())
IDS = [f"{variant}-{'-'.join(map(str, a.values()))}-{n}" for variant, a, _, n in KINDS]


def make(variant, attributes, shape, num_classes):
    """A checkpoint of random parameters, whose path names no file."""
    params = random_params(variant, shape, num_classes, **attributes)
    config = recognise.config_for(variant, shape, **attributes)
    names = tuple(f"name {i}" for i in range(num_classes))
    return Checkpoint("a/checkpoint", params, config, names, 0)


def has_place(format, model):
    """Whether a format can hold a model, by what its other readers compute."""
    if format == "orbax":
        return True
    if getattr(model, "positions_at", "") == "shared":
        return False
    if format == "npz":
        return True
    adds = getattr(model, "positions", "1d")
    if model.axial or adds not in ("1d", "none", "sincos"):
        return False
    if getattr(model, "positions_at", "stem") != "stem":
        return False
    if getattr(model, "projection", 0) or getattr(model, "conv_stem", None):
        return False
    if format == "timm":
        return True
    for family in FAMILIES[:4] + FAMILIES[5:]:  # no class of transformers does this alone
        if any(
            getattr(model, k, None) == x for k, x in family.items() if k not in ("pool", "gelu")
        ):
            return False
    if getattr(model, "stem", ...) is not None or adds == "none":
        return False
    with_head = {"token", "gap", "token+gap"}  # ViT, I-JEPA, DINOv2
    without_head = {"token", "gap", "map"}  # ViT, I-JEPA, SigLIP
    if model.pre_logits:
        return model.pool == "token" and not model.num_classes
    return model.pool in (with_head if model.num_classes else without_head)


@pytest.fixture(scope="module", params=KINDS, ids=IDS)
def checkpoint(request):
    """A checkpoint of each kind, once for all formats."""
    return make(*request.param)


@pytest.mark.parametrize(("format", "suffix"), FILES, ids=str)
def test_what_is_written_is_the_same_model_or_is_refused(tmp_path, checkpoint, format, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path, model = tmp_path / f"written{suffix}", checkpoint.model()
    if not has_place(format, model):
        with pytest.raises(
            ValueError, match=r"has no place for|only Orbax|no class of transformers"
        ):
            save(checkpoint, path, format=format)
        assert not list(tmp_path.iterdir())
        return
    save(checkpoint, path, format=format)
    found = load(path)
    assert found.image_shape == checkpoint.image_shape
    assert found.class_names == checkpoint.class_names
    params = jax.tree.map(np.asarray, found.params)
    if getattr(model, "positions", "") == "sincos" and format != "orbax":
        # Written as a table. `test_formats.py` compares the logits.
        model = model.clone(positions="1d")
        encoder = params["Transformer"]
        tables = [encoder.pop(name) for name in list(encoder) if name.startswith("posembed_")]
        assert len(tables) == (1 if model.positions_at == "stem" else model.depth)
    assert found.model() == model
    assert_same(params, checkpoint.params)


@pytest.mark.parametrize("format", FORMATS)
def test_masked_patch_prediction_is_for_orbax_alone(tmp_path, format):
    checkpoint = make("B/16", shrunk(VARIANTS["B/16"]), SQUARE, 0)
    checkpoint.params["mask_token"] = np.ones((1, 1, 24), np.float32)
    checkpoint.params["patch_head"] = {"kernel": np.ones((24, 5), np.float32)}
    path = tmp_path / "written"
    if format == "orbax":
        save(checkpoint, path, format=format)
        assert_same(load_params(path), checkpoint.params)
        return
    with pytest.raises(ValueError, match="comes from masked patch prediction, and no format but"):
        save(checkpoint, path, format=format)
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_be_another_model_is_not_left(tmp_path, monkeypatch):
    """For a format that forgets what the shapes don't show."""
    monkeypatch.setattr("vit_jax.weights.npz.write_comment", lambda checkpoint: b"")
    checkpoint = make("Nano/8", {"gelu": "exact"}, SQUARE, 3)
    with pytest.raises(ValueError, match=r"has no place for gelu='exact', so .* Orbax"):
        save(checkpoint, tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_names_that_have_no_room_in_a_zip_file_are_told(tmp_path, caplog):
    checkpoint = make("B/16", shrunk(VARIANTS["B/16"]), WIDE, 3)
    checkpoint = checkpoint._replace(class_names=("a", "b", "c" * 65_500))
    save(checkpoint, tmp_path / "x.npz")
    assert "x.npz: this format has no place for the names of the classes" in caplog.text
    found = load(tmp_path / "x.npz")
    assert (found.class_names, found.image_shape) == ((), WIDE)
    caplog.clear()
    save(checkpoint, tmp_path / "x.safetensors")
    assert "no place" not in caplog.text
    assert load(tmp_path / "x.safetensors").class_names == checkpoint.class_names


def test_an_average_that_is_left_out_is_told(tmp_path, caplog):
    checkpoint = make("B/16", shrunk(VARIANTS["B/16"]), SQUARE, 3)
    average = jax.tree.map(lambda x: x + 1, checkpoint.params)
    for format in FORMATS:
        caplog.clear()
        save(checkpoint._replace(average=average), tmp_path / format, format=format)
        assert f"{format}: the Polyak average is left out" in caplog.text
        assert_same(load_params(tmp_path / format), checkpoint.params)


@pytest.mark.parametrize("comment", [b"by another program", b'{"vit_jax": ', b'{"vit_jax": [1]}'])
def test_other_comments_of_zip_files(tmp_path, comment):
    params = random_params("Nano/8", SQUARE)
    save(make("Nano/8", {}, SQUARE, 3)._replace(params=params), tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.comment = comment
    if comment.startswith(b"by"):
        assert_same(load_params(tmp_path / "x.npz"), params)
    else:
        with pytest.raises(ValueError, match=r"x\.npz.*JSON"):
            load(tmp_path / "x.npz")


@pytest.mark.parametrize("missing", [1, 2, 100, 300])
def test_a_record_that_is_cut_off_is_not_passed_over(tmp_path, missing):
    save(make("Nano/8", {"gelu": "exact"}, SQUARE, 3), tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    assert whole.endswith(b"}}")
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        missing = min(missing, len(archive.comment))
    (tmp_path / "x.npz").write_bytes(whole[:-missing])
    with pytest.raises(ValueError, match=r"x\.npz can't be read .* last bytes are missing"):
        load(tmp_path / "x.npz")


# ---------------------------------------------------------------- recognised by their content


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of each kind, and the parameters in it."""
    folder = tmp_path_factory.mktemp("written")
    checkpoint = make("B/16", shrunk(VARIANTS["B/16"]), WIDE, 3)
    for format, suffix in FILES:
        if suffix:
            save(checkpoint, folder / f"{format}{suffix}", format=format)
    return folder, checkpoint.params


@pytest.mark.peers
@pytest.mark.parametrize(
    "name", ["x.npz", "x.NPZ", "x.safetensors", "x.bin", "x.ckpt", "x", "x.h5"]
)
def test_a_suffix_decides_nothing(written, tmp_path, name):
    pytest.importorskip("torch")
    folder, params = written
    for file in folder.iterdir():
        (tmp_path / name).write_bytes(file.read_bytes())
        assert_same(load_params(tmp_path / name), params)
        assert load(tmp_path / name).image_shape == WIDE


@pytest.mark.peers
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_nor_does_the_name_of_a_file_in_a_folder(written, tmp_path, weights):
    """Of timm's hub: its weights may be PyTorch's under the name of safetensors, and reversed."""
    pytest.importorskip("torch")
    folder, params = written
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    for file in (folder / "timm.safetensors", folder / "timm.pth"):
        (tmp_path / weights).write_bytes(file.read_bytes())
        assert_same(load_params(tmp_path), params)


@pytest.mark.parametrize("destination", ["x.NPZ", "x.SafeTensors", "x.Npz"])
def test_suffixes_in_capitals_are_those_of_a_format(tmp_path, destination):
    assert format_of(destination) == format_of(destination.lower()) != "orbax"
    save(make("Nano/8", {}, SQUARE, 3), tmp_path / destination)
    assert (tmp_path / destination).is_file()


OTHERS = {
    "it is empty": b"",
    "it is a page of HTML or XML": b"\n<!DOCTYPE html><html><head><title>403</title></head></html>",
    "it is a page of HTML or XML, as": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>",
    "it is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "it is text: 'Not Found'": b"Not Found",
    'it is text: \'{"error": "Invalid': b'{"error": "Invalid credentials in Authorization header"}',
    "it is a pickle, perhaps of PyTorch before 1.6": b"\x80\x02}q\x00.",
    "it is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "it is compressed by gzip": b"\x1f\x8b\x08" + bytes(100),
    "it is a single array of NumPy": b"\x93NUMPY\x01\x00" + bytes(100),
    "it begins as a zip file does, but is cut off": b"PK\x03\x04" + bytes(100),
    "it begins with the bytes 01 02 03 04": bytes(range(1, 256)) * 2,  # a newline is among them
    "it is text: '花花": "花".encode() * 200,  # its first 512 bytes end within a character
    "it begins with the bytes ff d8 ff e0": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_what_is_no_file_of_weights_is_told(tmp_path, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    for name in ("x.npz", "x.safetensors", "x.pth", "x", "folder/model.safetensors"):
        path = tmp_path / name
        path.write_bytes(OTHERS[reason])
        with pytest.raises(ValueError) as error:
            load(path.parent if name.startswith("folder") else path)
        message = str(error.value)
        assert message.startswith(f"{path} is not a file of weights") and reason in message
        assert "\n" not in message and len(message) < 400


def test_a_zip_file_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("model/model.safetensors", b"")
    with pytest.raises(ValueError, match="a zip file without arrays of NumPy or PyTorch"):
        load(tmp_path / "x.npz")


def test_half_precision_in_a_file_of_ours_keeps_its_record(written, tmp_path):
    """A file that was rounded elsewhere opens as the same model, with the rounded numbers."""
    folder, params = written
    with safetensors.safe_open(folder / "timm.safetensors", "numpy") as file:
        arrays = {name: file.get_tensor(name).astype(np.float16) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata=metadata)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert_same(load_params(tmp_path / "x"), rounded)


# --------------------------------------------------------------------------- as commands do it


def test_converted_weights_answer_with_the_same_probabilities_and_names(tmp_path):
    pytest.importorskip("torch")
    checkpoint = load(REPOSITORY / "checkpoints" / "quickstart")
    checkpoint.config.data.crop_fraction = 0.875  # what a file without a place for it stands for
    save(checkpoint, tmp_path / "run")
    images = [np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)]
    expected = Classifier(tmp_path / "run").predict(images)
    for format, suffix in FILES:
        path = tmp_path / f"{format}{suffix}"
        convert.main([str(tmp_path / "run"), str(path), f"--format={format}"])
        found = Classifier(path).predict(images)
        if format == "hf":  # transformers always smoothes images as they shrink
            assert [p.label for p in found[0]][:1] == [p.label for p in expected[0]][:1]
        else:
            assert found == expected
