"""Random damage to images and to files of weights: they are read, or an error says why not."""

import io
import json
import pathlib
import tempfile

import hypothesis
import jax
import numpy as np
import pytest
from conftest import TINY
from hypothesis import strategies as st
from PIL import Image

from vit_jax import interop, models, preprocess

FUZZED = hypothesis.settings(
    derandomize=True, deadline=None, database=None, max_examples=150,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def picture(format, mode="RGB"):
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


@st.composite
def damaged(draw, contents):
    """One of the contents after a few changes: bytes replaced, cut out, put in, or the end lost."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        if not content:
            break
        # Headers are short, and are where the trouble is: half of the changes are there.
        end = draw(st.sampled_from((min(64, len(content)), len(content))))
        start = draw(st.integers(0, end - 1))
        length = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(("replace", "cut", "insert", "truncate")))
        if kind == "truncate":
            del content[start:]
        elif kind == "cut":
            del content[start : start + length]
        else:
            new = draw(st.one_of(
                st.binary(min_size=length, max_size=length),
                st.sampled_from((b"\0" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\0\0\0")),
            ))  # fmt: skip
            content[start : start + (len(new) if kind == "replace" else 0)] = new
    return bytes(content)


def assert_decoded_or_refused(content):
    try:
        image = preprocess.decode(content)
    except ValueError as error:
        assert str(error).startswith("not a readable image: ")
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@FUZZED
@hypothesis.given(damaged([picture(format) for format in FORMATS]))
def test_damaged_images(content):
    assert_decoded_or_refused(content)


@FUZZED
@hypothesis.given(
    st.sampled_from((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF89a",
                     b"BM", b"II*\0", b"MM\0*")),
    st.binary(max_size=200),
)  # fmt: skip
def test_bytes_that_only_start_like_images(start, rest):
    assert_decoded_or_refused(start + rest)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "1"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "I;16"),
     ("GIF", "P"), ("TIFF", "F"), ("TIFF", "I"), ("TIFF", "LAB"), ("TIFF", "CMYK"),
     ("WEBP", "RGBA")],
)  # fmt: skip
def test_every_kind_of_pixel_is_decoded_or_refused(format, mode):
    base = "L" if mode == "I;16" else "RGB"
    image = Image.fromarray(np.full((6, 5, 3), 200, np.uint8)).convert(base)
    file = io.BytesIO()
    if mode == "LAB":
        image = Image.new("LAB", (5, 6))
    elif mode == "LA":
        image = image.convert("L").convert("LA")
    else:
        image = image.convert(mode)
    image.save(file, format)
    assert_decoded_or_refused(file.getvalue())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The bytes of a tiny model's file, by its ending."""
    params = models.build(num_classes=2, **TINY).init(
        jax.random.key(0), np.zeros((1, 16, 16, 3))
    )["params"]  # fmt: skip
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for ending, format in ((".npz", "npz"), (".safetensors", "timm")):
        interop.save(params, folder / f"x{ending}", format=format, **TINY)
        found[ending] = (folder / f"x{ending}").read_bytes()
    return found


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_damaged_weights(weights, ending):
    """They load in full, with finite numbers, or are refused by the name of the file."""

    @FUZZED
    @hypothesis.given(damaged([weights[ending], weights[ending][-400:]]))
    def check(content):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"weights{ending}"
            path.write_bytes(content)
            try:
                found = interop.load(path, **TINY)
            except ValueError as error:
                assert str(path) in str(error)
            else:
                assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found))

    check()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip


def test_nonsense_in_a_hugging_face_configuration(tmp_path):
    params = models.build(num_classes=2, **TINY).init(
        jax.random.key(0), np.zeros((1, 16, 16, 3))
    )["params"]  # fmt: skip
    folder = tmp_path / "hf"
    interop.save(params, folder, format="hf", **TINY)
    config = json.loads((folder / "config.json").read_text())

    @FUZZED
    @hypothesis.given(st.sampled_from(sorted(config)), VALUES)
    def check(key, value):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        try:
            interop.load(folder)
        except ValueError as error:
            assert str(folder) in str(error)

    check()
