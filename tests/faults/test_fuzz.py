"""Random damage to images and to files of weights: they are read, or an error says why not."""

import io
import json
import pathlib
import struct
import tempfile
import zlib

import hypothesis
import jax
import numpy as np
import pytest
from conftest import TINY
from hypothesis import strategies as st
from PIL import Image

from vit_jax import models
from vit_jax.data import transforms
from vit_jax.weights.api import load_params, save_params

FUZZED = hypothesis.settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=list(hypothesis.HealthCheck),
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def picture(format, mode="RGB", **options):
    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
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
            new = draw(
                st.one_of(
                    st.binary(min_size=length, max_size=length),
                    st.sampled_from((b"\0" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\0\0\0")),
                )
            )
            content[start : start + (len(new) if kind == "replace" else 0)] = new
    return bytes(content)


def assert_decoded_or_refused(content):
    try:
        image = transforms.decode(content)
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
    st.sampled_from(
        (
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\0\0\0\0WEBP",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"MM\0*",
        )
    ),
    st.binary(max_size=200),
)
def test_bytes_that_only_start_like_images(start, rest):
    assert_decoded_or_refused(start + rest)


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
        ("PNG", "1"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "I;16"),
        ("GIF", "P"),
        ("TIFF", "F"),
        ("TIFF", "I"),
        ("TIFF", "LAB"),
        ("TIFF", "CMYK"),
        ("WEBP", "RGBA"),
    ],
)
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


def patched(content, *changes):
    """Returns bytes with some replaced: pairs of an offset and what stands there then."""
    content = bytearray(content)
    for at, new in changes:
        content[at : at + len(new)] = new
    return bytes(content)


def gigantic(kind):
    """Returns a picture of a few hundred bytes whose header claims 16,000 x 16,000 or more."""
    format, _, what = kind.partition(" ")
    data = picture(format, progressive=what == "progressive")
    if format == "JPEG":  # ITU-T T.81, B.2.2: marker, length, precision, height, width
        at = data.index(b"\xff\xc2" if what == "progressive" else b"\xff\xc0")
        return patched(data, (at + 5, struct.pack(">HH", 65_500, 65_500)))
    if format == "PNG":
        head = b"IHDR" + struct.pack(">II", 10**6, 10**6) + data[24:29]
        return patched(data, (12, head + struct.pack(">I", zlib.crc32(head))))
    if format == "GIF":  # of the screen, or of a frame on a small one
        at = 6 if what == "screen" else data.index(b"\x2c" + bytes(4)) + 5
        return patched(data, (at, struct.pack("<HH", 65_500, 65_500)))
    if format == "BMP":
        return patched(data, (18, struct.pack("<ii", 10**6, 10**6)))
    if format == "WEBP":
        at = data.index(b"\x9d\x01\x2a") + 3  # RFC 6386, 9.1: 14 bits each
        return patched(data, (at, struct.pack("<HH", 16_383, 16_383)))
    entries = struct.unpack("<I", data[4:8])[0] + 2  # of a TIFF: tag, type, count, value
    tags = [struct.unpack("<H", data[at : at + 2])[0] for at in range(entries, len(data) - 12, 12)]
    at = [entries + 12 * tags.index(tag) for tag in (256, 257)]
    return patched(
        data,
        *[
            (x, struct.pack("<HHII", tag, 4, 1, 10**6))
            for x, tag in zip(at, (256, 257), strict=True)
        ],
    )


GIGANTIC = ("JPEG", "JPEG progressive", "PNG", "GIF screen", "GIF frame", "BMP", "TIFF", "WEBP")


@pytest.mark.parametrize("kind", GIGANTIC)
def test_gigantic_sizes_are_refused_by_the_header(kind):
    with pytest.raises(ValueError, match=r"not a readable image: Image size .* exceeds limit"):
        transforms.decode(gigantic(kind))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The bytes of a tiny model's file, by its ending."""
    params = models.build(num_classes=2, **TINY).init(jax.random.key(0), np.zeros((1, 16, 16, 3)))[
        "params"
    ]
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for ending, format in ((".npz", "npz"), (".safetensors", "timm")):
        save_params(params, folder / f"x{ending}", format=format, **TINY)
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
                found = load_params(path, **TINY)
            except ValueError as error:
                assert str(path) in str(error)
            else:
                assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found))

    check()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def test_nonsense_in_a_hugging_face_configuration(tmp_path):
    params = models.build(num_classes=2, **TINY).init(jax.random.key(0), np.zeros((1, 16, 16, 3)))[
        "params"
    ]
    folder = tmp_path / "hf"
    save_params(params, folder, format="hf", **TINY)
    config = json.loads((folder / "config.json").read_text())

    @FUZZED
    @hypothesis.given(st.sampled_from(sorted(config)), VALUES)
    def check(key, value):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        try:
            load_params(folder)
        except ValueError as error:
            assert str(folder) in str(error)

    check()
