"""Exported models, run without the package, against the model's own forward pass."""

import json
import pathlib
import re
import runpy
import subprocess
import sys
import zlib

import jax
import jax.export
import numpy as np
import pytest
from conftest import CLASSES, IMAGE, REPOSITORY
from PIL import ExifTags, Image
from small_images import GREY, png, raw_tiff

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.data.resizing import EVAL_CROPS, EVAL_RESIZES
from vit_jax.export import main
from vit_jax.inference.classifier import read_image, view_image
from vit_jax.inference.exporter import export
from vit_jax.inference.program import program
from vit_jax.models.params import parameter_shapes
from vit_jax.models.patches import to_float
from vit_jax.weights import recognise
from vit_jax.weights.api import adapt, save

NAMES = tuple("abcdefg")
SMALL = dict(width=24, depth=1, mlp_dim=32, num_heads=2)
KINDS = {
    "token": ("Ti/16", dict(patch_size=8, **SMALL)),
    "gap": ("Ti/16", dict(patch_size=8, pool="gap", pre_logits=True, gelu="exact", **SMALL)),
    "grid": ("Ti/16", dict(patch_size=8, positions="2d", positions_at="layers", **SMALL)),
    "relative": ("Ti/16", dict(patch_size=8, positions="relative", **SMALL)),
    "sincos": ("Ti/16", dict(patch_size=8, positions="sincos", **SMALL)),
    "axial": ("Axial-B/16", dict(patch_size=8, **SMALL)),
    "hybrid": ("R50+B/32", dict(stem=(1, 2), kernel_epsilon=1e-8, **SMALL)),
    "resnet": ("R50x1", dict(layers=(1, 1))),
    "axial resnet": ("AxialResNet50", dict(layers=(1, 1))),
}
FORMATS = {"stablehlo": 1e-5, "onnx": 1e-4}  # of the largest output: what they may differ by
SLOW = pytest.mark.slow
BOTH = ["stablehlo", pytest.param("onnx", marks=SLOW)]


def make(kind="token", num_classes=CLASSES, image_size=(IMAGE, IMAGE)):
    """A checkpoint whose parameters are all random."""
    variant, attributes = KINDS[kind]
    model = models.build(variant, num_classes=num_classes, **attributes)
    rng = np.random.default_rng(0)

    def draw(x):
        mean, deviation = (0.5, 0.3) if len(x.shape) == 1 else (0, 0.2)
        return rng.normal(mean, deviation, x.shape).astype(np.float32)

    return Checkpoint(
        path=f"a tiny {variant}",
        params=jax.tree.map(draw, parameter_shapes(model, IMAGE)),
        config=recognise.config_for(variant, image_size, **attributes),
        class_names=NAMES[:num_classes],
        step=0,
    )


def outputs(checkpoint, images):
    model, images = checkpoint.model(), to_float(images)
    return np.asarray(jax.jit(model.apply)({"params": checkpoint.params}, images))


def run(path, images):
    """What a file computes of images, in this process."""
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        (found,) = session.run(None, {"images": images})
        return found
    artifact = jax.export.deserialize(path.read_bytes())
    return np.asarray(jax.jit(artifact.call)(images))


def close(found, wanted, tolerance):
    assert found.shape == wanted.shape and found.dtype == np.float32
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * largest)
    if len(wanted) > 1:  # else the images would not matter
        assert wanted.std(0).max() > 0.01 * largest


@pytest.fixture
def need():
    """Skips a test of a format for which a converter is missing."""
    return lambda format: format == "stablehlo" or pytest.importorskip("jax2onnx")


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize(
    "kind", ["token", *(pytest.param(k, marks=SLOW) for k in KINDS if k != "token")]
)
def test_every_kind_of_model_computes_its_own_outputs(kind, format, batch, tmp_path, need):
    need(format)
    checkpoint = make(kind)
    export(checkpoint, tmp_path / f"model.{format}")
    found = run(tmp_path / f"model.{format}", batch["image"][:3])
    close(found, outputs(checkpoint, batch["image"][:3]), FORMATS[format])


# A program's first lines, with which an import of what it does not name fails.
ALONE = """
import sys
for name in ("vit_jax", "flax", "orbax", "optax", "ml_collections", "jax2onnx", "onnx", "absl"):
    sys.modules[name] = None
"""


def run_program(path, *images):
    """Runs the program beside an exported file, without the package and in another folder."""
    code = f"{ALONE}\nimport runpy\nsys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, path.with_suffix(".py"), *map(str, images)],
        cwd=path.parent.parent,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def answers(text):
    """{image: [(class, per cent)]} of the lines that the program and `predict` print."""
    found = {}
    for line in text.splitlines():
        image, *cells = line.split("  ")
        pairs = (re.fullmatch(r"(.+) ([\d.]+) %", cell) for cell in cells if cell)
        found[image.strip()] = [(pair[1], float(pair[2])) for pair in pairs]
    return found


def write_photos(folder):
    """Writes images that are not upright, not of 8 bits, transparent, grey, narrow or very wide."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    wide = Image.fromarray(small).resize((90, 61), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    wide.save(folder / "turned.jpg", exif=exif)
    wide.convert("CMYK").save(folder / "cmyk.jpg")
    wide.resize((31, 77)).save(folder / "narrow.png")
    wide.resize((3000, 4)).save(folder / "strip.png")
    logo = wide.resize((50, 40))
    logo.putalpha(Image.linear_gradient("L").resize((50, 40)))
    logo.save(folder / "logo.png")
    wide.convert("RGBA").save(folder / "alpha.webp")
    grey = np.asarray(wide.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "sixteen bits.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "crop", "resizing"),
    [("onnx", "central", "bicubic_antialias"), ("stablehlo", "whole", "bilinear")],
)
def test_the_printed_program_says_what_predict_says(format, crop, resizing, tmp_path, need):
    """From a run's folder, by both commands, to the likeliest classes of photos of all kinds."""
    need(format)
    checkpoint, path = adapt(make(), image_size=(24, 16)), tmp_path / "export" / f"model.{format}"
    view = dict(eval_crop=crop, crop_fraction=0.7, eval_resize=resizing)
    checkpoint.config.data.update(view)
    save(checkpoint, tmp_path / "run", format="orbax")
    command = [sys.executable, "-m", "vit_jax.export", tmp_path / "run", path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"Images are seen as .*run.* says: data.eval_crop='{crop}', "
        rf"(data.crop_fraction=0.7, )?data.eval_resize='{resizing}'\.\n",
        done.stderr,
    )
    assert done.stdout.startswith(f"{path}: Ti/16, 0.1 MB.\nBeside it: {path.with_suffix('.py')}")
    assert done.stdout.endswith("\n\n" + path.with_suffix(".py").read_text())

    (tmp_path / "photos").mkdir()
    photos = write_photos(tmp_path / "photos")
    found = run_program(path, *photos)
    assert found.returncode == 0, found.stderr
    command = [sys.executable, "-m", "vit_jax.predict", tmp_path / "run", *photos]
    wanted = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found, wanted = answers(found.stdout), answers(wanted.stdout)
    assert len(found) == len(photos) and found.keys() == wanted.keys()
    assert len({str(answer) for answer in wanted.values()}) == len(photos)
    for image, answer in wanted.items():
        assert [label for label, _ in found[image]] == [label for label, _ in answer]
        for (_, share), (_, expected) in zip(found[image], answer, strict=True):
            assert abs(share - expected) < 0.11  # both are rounded to 0.1 %

    (tmp_path / "words.jpg").write_text("no image")
    stopped = run_program(path, tmp_path / "words.jpg")
    assert stopped.returncode == 1 and "words.jpg: cannot identify image file" in stopped.stderr
    assert "PHOTO.jpg" in run_program(path).stderr


def test_the_program_reads_the_pixels_that_predict_reads(tmp_path):
    """Also of odd files; what `predict` refuses, it refuses in one line."""
    grey12 = raw_tiff({**GREY, 258: 12, 273: 0, 278: 16, 279: 384}, bytes(range(128)) * 3)
    inverted = raw_tiff({**GREY, 258: 16, 262: 0, 273: 0, 278: 16, 279: 512}, bytes(range(256)) * 2)
    palette = [(b"PLTE", bytes(12)), (b"tRNS", b"\xff\0\x80" + b"\xff" * 400)]
    good = {
        "grey12.tif": grey12,
        "inverted.tif": inverted,
        "grey2.png": png(4, 2, 0, b"\x1b", (b"tRNS", b"\0\1")),
        "grey16.png": png(2, 16, 0, b"\x12\x34\x12\x35", (b"tRNS", b"\x12\x34")),
        "rgb16.png": png(2, 16, 2, b"\x12\x34" * 3 + b"\x34\x12" * 3, (b"tRNS", b"\x12\x34" * 3)),
        "palette.png": png(4, 8, 3, b"\0\1\2\3", *palette),
    }
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))
    bad = {
        "Decompressed data too large": png(1, 8, 0, b"\0", bomb),
        "signed 8-bit": raw_tiff({**GREY, 339: 2, 273: 0, 278: 16, 279: 256}, bytes(256)),
        "cannot identify": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "12345": raw_tiff({**GREY, 259: 12345, 273: 0, 278: 16, 279: 256}, bytes(256)),
    }
    for name, data in {**good, **bad}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "export").mkdir()
    export(make(), tmp_path / "export" / "model.stablehlo")
    read = runpy.run_path(str(tmp_path / "export" / "model.py"))["read_image"]
    for name in good:
        np.testing.assert_array_equal(read(tmp_path / name), read_image(tmp_path / name), name)
    for told in bad:
        with pytest.raises(OSError, match=told):
            read(tmp_path / told)


@pytest.mark.parametrize("crop", EVAL_CROPS)
def test_the_program_cuts_out_what_evaluation_does(crop, tmp_path, rng):
    """The same bits, whatever the view; the description tells it."""
    checkpoint = make(image_size=(24, 16))
    images = [rng.integers(0, 256, (*s, 3)).astype(np.uint8) for s in [(50, 70), (3, 900), (9, 5)]]
    for number, resizing in enumerate(EVAL_RESIZES):
        view = dict(eval_crop=crop, crop_fraction=0.7, eval_resize=resizing)
        checkpoint.config.data.update(view)
        path = tmp_path / f"model{number}.stablehlo"
        description = {"platforms": [], "class_names": [], "probabilities": "softmax", **view}
        description |= {"variant": "Ti/16", "input": {"shape": ["b", 24, 16, 3]}}
        description |= {"output": {"name": "logits", "shape": ["b", CLASSES]}}
        source = program(path, description).replace("call = jax.jit", "call = lambda: jax.jit")
        path.with_suffix(".json").write_text(json.dumps(description))
        path.with_suffix(".py").write_text(source)
        cut = runpy.run_path(str(path.with_suffix(".py")))["crop"]
        for image in images:
            np.testing.assert_array_equal(cut(image), view_image(image, checkpoint))


@pytest.mark.slow
def test_the_program_of_a_model_without_head_prints_representations(tmp_path):
    checkpoint, path = make(num_classes=0), tmp_path / "export" / "model.stablehlo"
    export(checkpoint, path)
    (photo, *_) = write_photos(tmp_path)
    numbers = run_program(path, photo).stdout.removeprefix(str(photo)).split()
    view = view_image(read_image(photo), checkpoint)
    close(np.float32([numbers]), outputs(checkpoint, view[None]), 1e-4)


@pytest.mark.parametrize("format", BOTH)
def test_representations_at_another_size(format, batch, tmp_path, rng, need):
    """A checkpoint without head, whose position embeddings are resized to 24 x 16 pixels."""
    need(format)
    checkpoint, path = make(num_classes=0), tmp_path / "new" / f"model.{format}"
    about = export(checkpoint, path, image_size=(24, 16))
    assert about["input"]["shape"] == ["b", 24, 16, 3]
    assert about["output"] == {"name": "representations", "dtype": "float32", "shape": ["b", 24]}
    images = rng.integers(0, 256, (2, 24, 16, 3)).astype(np.uint8)
    resized = adapt(checkpoint, image_size=(24, 16))
    close(run(path, images), outputs(resized, images), FORMATS[format])


def test_an_artifact_of_jax_is_for_all_devices_and_has_notes_beside_it(tmp_path):
    about = export(make(), tmp_path / "model.stablehlo")
    assert json.loads((tmp_path / "model.json").read_text()) == about
    assert about["variant"] == "Ti/16" and about["class_names"] == list(NAMES)
    assert (about["eval_crop"], about["crop_fraction"]) == ("central", 0.875)
    assert about["eval_resize"] == "bilinear"
    artifact = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    assert list(artifact.platforms) == about["platforms"] == ["cpu", "cuda", "tpu"]
    (images,), (logits,) = artifact.in_avals, artifact.out_avals
    assert [str(n) for n in images.shape] == [str(n) for n in about["input"]["shape"]]
    assert [str(n) for n in logits.shape] == [str(n) for n in about["output"]["shape"]]
    assert (images.dtype, logits.dtype) == (about["input"]["dtype"], about["output"]["dtype"])


@pytest.mark.slow
def test_onnx_holds_its_notes(tmp_path):
    pytest.importorskip("jax2onnx")
    about = export(make(), tmp_path / "model", format="onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.py"]
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "model")
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["variant"] == "Ti/16"
    assert {k: json.loads(v) for k, v in notes.items() if not isinstance(about[k], str)} == {
        k: v for k, v in about.items() if not isinstance(v, str)
    }
    for value, noted in zip(
        session.get_inputs() + session.get_outputs(), (about["input"], about["output"]), strict=True
    ):
        assert (value.name, value.shape) == (noted["name"], noted["shape"])


@pytest.mark.slow
def test_what_jax2onnx_converts_wrongly_or_not_at_all_is_not_written(tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip("jax2onnx")
    onnx = pytest.importorskip("onnx")
    convert, path = jax2onnx.to_onnx, tmp_path / "model.onnx"

    def wrongly(*args, **options):
        model = convert(*args, **options)
        (head,) = (x for x in model.graph.initializer if list(x.dims) == [CLASSES])
        head.CopyFrom(onnx.numpy_helper.from_array(np.ones(CLASSES, np.float32), head.name))
        return model

    def unreadably(*args, **options):
        model = convert(*args, **options)
        model.graph.node[0].op_type = "Unknown"
        return model

    def never(*args, **options):
        raise NotImplementedError("no plugin\nfor it")

    for fake, message in (
        (wrongly, "converts this Ti/16 wrongly; export it as .stablehlo. Outputs differ by up to"),
        (unreadably, "can't convert this Ti/16; export it as .stablehlo. What failed is "),
        (never, "What failed is NotImplementedError: no plugin$"),
    ):
        monkeypatch.setattr(jax2onnx, "to_onnx", fake)
        with pytest.raises(ValueError, match=message):
            export(make(), path)
        assert not list(tmp_path.iterdir())


def test_what_exceeds_two_gigabytes_is_refused_before_it_is_read():
    model = models.build("H/14", num_classes=0)
    huge = make()._replace(params=parameter_shapes(model, 224))
    with pytest.raises(ValueError, match=r"has 2\.52 GB of parameters, .* holds up to 2\.13 GB"):
        export(huge, "never.stablehlo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "there.stablehlo"], "FileExistsError: There is something at there.stablehlo"),
        (["run", "there.onnx"], "FileExistsError: There is something at there.onnx"),
        (["run", "noted.stablehlo"], "FileExistsError: There is something at noted.json"),
        (["run", "coded.onnx"], "FileExistsError: There is something at coded.py"),
        (["run", "jax.stablehlo"], "jax.py, would hide Python's own jax: give another name"),
        (["run", "x.py"], "ValueError: x.py: give a local path"),
        (["nowhere.npz", "x.onnx"], "FileNotFoundError: There is no nowhere.npz"),
        (["run", "x.json"], "ValueError: x.json: give a local path"),
        (["run", "gs://bucket/x.onnx"], "ValueError: gs://bucket/x.onnx is in a bucket, but"),
        (["run", "x.onnx", "--image_size=20"], "20x20 pixels can't be cut into patches"),
        (["run", "x.stablehlo", "--image_size=20"], "20x20 pixels can't be cut into patches"),
        (["unsized", "x.stablehlo"], "doesn't say the size of its images: give image_size"),
        (["run", "x.onnx"], "ImportError: ONNX needs jax2onnx"),
        (["run"], "the following arguments are required: OUT"),
    ],
)
def test_mistakes_get_one_clear_message(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    save(make(), "run", format="orbax")
    save(make(image_size=None), "unsized", format="orbax")
    for name in ("there.stablehlo", "there.onnx", "noted.json", "coded.py"):
        (tmp_path / name).write_text("old")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert message in f"{stop.value.code} {capsys.readouterr().err}"
    assert "\n" not in str(stop.value.code)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["~/m.stablehlo", "~/a\x1b.stablehlo"])
def test_the_command_names_what_it_wrote(name, tmp_path, monkeypatch, capsys, batch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(make(), tmp_path / "run", format="orbax")
    main([str(tmp_path / "run"), name])
    path, said = pathlib.Path(name).expanduser(), capsys.readouterr().out
    shown = str(path).replace("\x1b", r"\x1b")
    assert said.startswith(f"{shown}: Ti/16, 0.1 MB.\nBeside it: {shown[:-9]}py and {shown[:-9]}j")
    assert "\x1b" not in said.partition('"""')[0]
    found = runpy.run_path(str(path.with_suffix(".py")))["run"](batch["image"][:3])
    close(found, outputs(make(), batch["image"][:3]), FORMATS["stablehlo"])


@pytest.mark.slow
def test_names_that_are_not_utf8_are_for_onnx_alone(tmp_path, batch):
    """JAX raises std::bad_cast in a program whose path is not UTF-8."""
    with pytest.raises(ValueError, match=r"a\\xe9\.stablehlo has bytes in its name that are not"):
        export(make(), tmp_path / "a\udce9.stablehlo")
    assert not list(tmp_path.iterdir())
    pytest.importorskip("jax2onnx")
    export(make(), tmp_path / "a\udce9.onnx")
    found = runpy.run_path(str(tmp_path / "a\udce9.py"))["run"](batch["image"][:3])
    close(found, outputs(make(), batch["image"][:3]), FORMATS["onnx"])


def test_the_program_escapes_names_in_its_messages(tmp_path):
    (tmp_path / "export").mkdir()
    path = tmp_path / "export" / "m.stablehlo"
    export(make(), path)
    stopped = run_program(path, tmp_path / "a\x1b.jpg")
    assert f"{tmp_path}/a\\x1b.jpg: [Errno 2] No such file" in stopped.stderr
    assert "\x1b" not in stopped.stderr


def test_there_is_no_other_format():
    with pytest.raises(ValueError, match="There is no format 'tflite': stablehlo, onnx"):
        export(make(), "x", format="tflite")
