"""Images of odd shapes, sizes and kinds of pixels: memory, transparency, and what white is."""

import errno
import io
import resource
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from conftest import REPOSITORY, environment, random_checkpoint
from PIL import Image
from small_images import GREY, png, raw_tiff

from vit_jax.config.defaults import default
from vit_jax.data import pixels, transforms
from vit_jax.data.arrays import ArrayDataset
from vit_jax.inference.classifier import Classifier, read_image
from vit_jax.interpret.page import make_look
from vit_jax.interpret.report import write_report

KIB, MIB = 2**10, 2**20


def encode(image, format="PNG", **options):
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def blob(size=64):
    """Where a disc is, bool (size, size)."""
    rows, columns = np.mgrid[:size, :size]
    return (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 3) ** 2


# ------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("crop", ["central", "resize"])
def test_a_crop_has_the_pixels_of_the_resized_image(crop, rng):
    """OpenCV resizes the whole image here; the part must have the same bits."""
    options = default().data
    sides = (1, 2, 3, 5, 16, 31, 64, 150, 333)
    shapes = [(h, w) for h in sides for w in sides] + [(1, 5000), (4000, 2), (7, 2900), (900, 11)]
    for shape in shapes:
        image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
        size = tuple(int(side) for side in rng.integers(1, 50, 2))
        fraction = options.crop_fraction = float(rng.choice([0.2, 0.5, 0.875, 1.0]))
        if crop == "central":
            scale = max(size[0] / shape[0], size[1] / shape[1]) / fraction
            whole = [max(x, round(y * scale)) for x, y in zip(size, shape, strict=True)]
            corner = [(x - y) // 2 for x, y in zip(whole, size, strict=True)]
            found = transforms.evaluation_view(image, size, options)
        else:
            whole = [round(x / fraction) for x in size]
            draws = np.random.default_rng(1)
            corner = [draws.integers(x - y + 1) for x, y in zip(whole, size, strict=True)]
            found = transforms.TRAIN_CROPS[crop](image, size, np.random.default_rng(1), options)
        resized = cv2.resize(image, whole[::-1], interpolation=cv2.INTER_LINEAR)
        rows, columns = (slice(a, a + b) for a, b in zip(corner, size, strict=True))
        np.testing.assert_array_equal(found, resized[rows, columns], f"{shape} to {size}")


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 9_000)])
def test_strips_are_interpolated_as_float64_would(shape, rng):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    size, options = (48, 32), default().data
    options.crop_fraction = 0.875
    scale = max(x / y for x, y in zip(size, shape, strict=True)) / options.crop_fraction
    expected = image.astype(np.float64)
    for axis, (new, old) in enumerate(zip(size, shape, strict=True)):
        whole = max(new, round(old * scale))
        at = ((whole - new) // 2 + np.arange(new) + 0.5) * old / whole - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        before, after = (expected.take((low + i).clip(0, old - 1), axis) for i in (0, 1))
        expected = before * (1 - share) + after * share
    found = transforms.evaluation_view(image, size, options)
    assert np.abs(found - expected).max() < 2


# ------------------------------------------------------------------------------------ memory

# Prints what fails if this process may only take so many bytes more than it has.
LIMITED = """
import resource, sys
import numpy as np
from vit_jax.config.defaults import default
from vit_jax.data import transforms

def limited(allowed, function):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + allowed, resource.RLIM_INFINITY))
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

transforms.resize(np.zeros((9, 9, 3), np.uint8), (5, 5))  # OpenCV's threads are started
options = default().data
"""


def run_limited(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced")
@pytest.mark.parametrize(("resizing", "mebibytes"), [("bilinear", 16), ("lanczos_antialias", 64)])
def test_no_crop_takes_more_than_a_few_targets(resizing, mebibytes):
    code = f"""
size = (224, 224)
options.eval_resize = sys.argv[1]
for shape in [(1, 20_000), (20_000, 1), (1, 1), (2, 3_000_000), (3_000_000, 2), (40, 160_000)]:
    image = np.zeros((*shape, 3), np.uint8)
    for fraction in (0.875, 0.01):
        options.crop_fraction = fraction
        rng = np.random.default_rng(0)
        crops = [(name, lambda f=f: f(image, size, rng, options))
                 for name, f in transforms.TRAIN_CROPS.items()]
        crops += [(name, lambda f=f: f(image, size, fraction, options.eval_resize))
                  for name, f in transforms.EVAL_CROPS.items()]
        for name, crop in crops:
            found = limited({mebibytes * MIB}, crop)
            ok = isinstance(found, np.ndarray) and found.shape == (*size, 3)
            print("ok" if ok else (shape, fraction, name, found))
"""
    assert set(lines := run_limited(code, resizing)) == {"ok"}, lines
    crops = len(transforms.TRAIN_CROPS) + len(transforms.EVAL_CROPS)
    assert len(lines) == 6 * 2 * crops


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """Images of 3000 x 3000 pixels, 26 MiB as RGB, of every kind that is converted."""
    folder, side = tmp_path_factory.mktemp("large"), 3000
    gradient = np.broadcast_to(np.arange(side) % 256, (side, side)).astype(np.uint8)
    grey = Image.fromarray(gradient)
    colour, palette = Image.merge("RGB", (grey, grey, grey)), Image.fromarray(gradient, "P")
    palette.putpalette(bytes(768))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, options in (
        ("rgb.png", colour, {}),
        ("rgba.png", Image.merge("RGBA", (grey,) * 4), {}),
        ("palette.png", palette, {"transparency": 3}),
        ("16.png", Image.fromarray(gradient.astype(np.uint16) * 257), {}),
        ("turned.jpg", colour, {"exif": exif}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("float.tif", Image.fromarray(gradient.astype(np.float32)), {}),
        ("palette.gif", palette, {}),
        ("rgb.bmp", colour, {}),
        ("lzw.tif", colour, {"compression": "tiff_lzw"}),
        ("photo.webp", colour, {"method": 0}),
    ):
        more = {"compress_level": 1} if name.endswith("png") else {}
        image.save(folder / name, **options, **more)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced")
def test_decoding_makes_one_copy(large_files):
    """Pillow has 4 bytes a pixel, in blocks of 16 MiB, the result 3; no other copy fits."""
    code = f"""
import pathlib
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    found = limited(3000 * 3000 * 7 + {32 * MIB}, lambda: transforms.decode(data))
    print("ok" if isinstance(found, np.ndarray) and found.shape == (3000, 3000, 3)
          else (path.name, found))
    del data, found
"""
    assert set(lines := run_limited(code, large_files)) == {"ok"}, lines
    assert len(lines) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not enforced")
def test_too_little_memory_is_never_taken_for_damage(tmp_path):
    """Whatever a decoder says of it, and however much is free."""
    gradient = np.arange(1200, dtype=np.uint8).repeat(1200 * 3).reshape(1200, 1200, 3)
    image, exif = Image.fromarray(gradient), Image.Exif()
    exif[0x0112] = 6
    for name, options in (
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("turned.jpg", {"exif": exif, "progressive": True}),
        ("photo.webp", {"method": 0}),
        ("turned.webp", {"method": 0, "exif": exif}),
        ("rgb.png", {"compress_level": 1}),
    ):
        image.save(tmp_path / name, **options)
    code = f"""
import pathlib
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for allowed in range(0, 36, 2):
        found = limited(allowed * {MIB} + 1, lambda: transforms.decode(data))
        print(found.split(":")[0] if isinstance(found, str) else found.shape)
"""
    lines = run_limited(code, tmp_path)
    assert set(lines) == {"MemoryError", "(1200, 1200, 3)"} and len(lines) == 5 * 18


def test_damage_is_no_lack_of_memory():
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        data = encode(Image.fromarray(noise), format, exif=Image.Exif())
        with pytest.raises(ValueError, match="not a readable image"):
            transforms.decode(data[: len(data) // 2])


def test_tiles_much_larger_than_the_image_are_refused():
    """libtiff makes room for a whole tile: 1.6 GB here, for a file of 146 bytes."""
    content = zlib.compress(bytes(256))
    for side in (40_000, 16):
        places = {322: side, 323: side, 324: 0, 325: len(content)}
        data = raw_tiff({**GREY, 259: 8, **places}, content)
        if side == 16:
            assert transforms.decode(data).shape == (16, 16, 3)
            continue
        assert len(data) < 200
        with pytest.raises(ValueError, match="its tiles are of 40000 x 40000 pixels, much larger"):
            transforms.decode(data)
        with pytest.raises(ValueError, match="its tiles are of 40000 x 40000 pixels"):
            read_image(Image.open(io.BytesIO(data)))


def test_tiny_files_that_hold_much_are_refused_or_small():
    text = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * MIB)))
    profile = (b"iCCP", b"a\0\0" + zlib.compress(bytes(2 * MIB)))
    for bomb in (text, profile):
        with pytest.raises(ValueError, match="not a readable image: Decompressed data too large"):
            transforms.decode(png(1, 8, 0, b"\0", bomb))
    assert transforms.decode(png(1, 8, 0, bytes(9 * MIB))).shape == (1, 1, 3)
    frames = [Image.new("L", (40, 30), i) for i in range(50)]
    for format in ("GIF", "TIFF", "WEBP"):
        data = encode(frames[7], format, save_all=True, append_images=frames)
        assert abs(int(transforms.decode(data)[0, 0, 0]) - 7) <= 2  # the first frame, no other


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ESTALE, "stale"), OSError("out of memory error")]
)
def test_faults_of_the_machine_are_not_those_of_the_image(error, monkeypatch):
    def fail(*_, **__):
        raise error

    data = encode(Image.new("RGB", (4, 4)))
    monkeypatch.setattr(Image, "open", fail)
    kind = OSError if getattr(error, "errno", None) else MemoryError
    with pytest.raises(kind):
        transforms.decode(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_too_little_memory_for_a_jpeg_is_no_damage(progressive, monkeypatch):
    """A progressive JPEG needs memory of libjpeg's own, whose lack simplejpeg tells so."""

    def fail(*_, **__):
        raise ValueError("Insufficient memory (case 4)") if progressive else MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    with pytest.raises(MemoryError):
        transforms.decode(encode(Image.new("RGB", (8, 8)), "JPEG", progressive=progressive))


# ---------------------------------------------------------------------- odd shapes in commands


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("strips"), np.random.default_rng(0)
    for height, width in ((1, 20_000), (20_000, 1), (1, 1), (2, 1), (3, 30_000)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        image.save(folder / f"{height}x{width}.png")
    return folder


def test_strips_are_classified_and_drawn(strips, tmp_path):
    """By `predict`, by `visualize` and by the page, within 300 MB more than before."""
    checkpoint = random_checkpoint("Ti/16", width=16, depth=1, mlp_dim=16, num_heads=2)
    paths = sorted(map(str, strips.iterdir()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    classifier = Classifier(checkpoint)
    assert [len(answer) for answer in classifier.predict(paths)] == [3] * 5
    arrays = [np.asarray(Image.open(path)) for path in paths]
    assert [len(answer) for answer in classifier.predict(arrays)] == [3] * 5
    assert write_report(checkpoint, paths, tmp_path, shown=1).unreadable == ()
    look = make_look(checkpoint)
    assert {look(image).photo.shape for image in arrays} == {(384, 576, 3)}
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * KIB


# ------------------------------------------------------------------------------ transparency


def over_white(rgb, alpha):
    """The float64 colours (h, w, 3) of an image over white; alpha is (h, w), 0…255."""
    share = alpha[..., None] / 255.0
    return rgb * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_pillow_images_are_laid_over_white(mode, rng):
    alpha = np.where(blob(), 255, np.arange(64) * 2).astype(np.uint8)
    grey = np.full((64, 64), 40, np.uint8)
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    if mode in ("RGBA", "RGBa"):
        image = image.convert("RGBA").convert(mode)
    elif mode == "PA":
        palette = Image.fromarray(grey, "P")
        palette.putpalette(bytes(range(256)) * 3)
        image = palette.convert("PA")
        image.putalpha(Image.fromarray(alpha))
    image = image.convert(mode)
    found = pixels.from_pillow(image)
    colour = np.asarray(
        image.convert("RGBA") if mode == "PA" else Image.new("RGB", (1, 1), (40,) * 3)
    )
    expected = over_white(colour[..., :3].astype(float), alpha)
    premultiplied = mode in ("La", "RGBa")
    assert np.abs(found - expected).max() <= (3 if premultiplied else 0.51)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_a_black_logo_is_seen(format):
    logo = Image.fromarray(np.dstack([np.zeros((64, 64, 3)), blob() * 255]).astype(np.uint8))
    found = transforms.decode(
        encode(logo, format, **({"lossless": True} if format == "WEBP" else {}))
    )
    np.testing.assert_array_equal(found, np.where(blob()[..., None], 0, 255).repeat(3, -1))


@pytest.mark.parametrize("format", ["PNG", "GIF"])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_transparent_colour_is_white(format, mode):
    image = Image.fromarray(blob().astype(np.uint8), mode)
    if mode == "P":
        image.putpalette(bytes(768))
    found = transforms.decode(encode(image, format, transparency=0))
    assert (found[0, 0] == 255).all() and (found[32, 32] <= 1).all()


# By the depth and the colour type of a PNG file: its row, its transparent colour, and what is seen.
TRANSPARENT = {
    (1, 0): (b"\x40", b"\0\1", [0, 255]),
    (2, 0): (b"\x1b", b"\0\1", [0, 255, 170, 255]),
    (4, 0): (b"\x01\x23", b"\0\1", [0, 255, 34, 51]),
    (8, 0): (b"\x00\x01\x02\x03", b"\0\1", [0, 255, 2, 3]),
    (16, 0): (b"\0\0\x12\x34\x12\x35", b"\x12\x34", [0, 255, 0x12]),
    (8, 2): (b"\1\1\1\2\2\2", b"\0\1\0\1\0\1", [255, 2]),
    (16, 2): (b"\x12\x34" * 3 + b"\x34\x12" * 3, b"\x12\x34" * 3, [255, 0x34]),
    (2, 3): (b"\x1b", b"\xff\x00\x80", [0, 255, 127, 0]),
    (8, 3): (b"\0\1\2\3", b"\xff\x00\x80" + b"\xff" * 400, [0, 255, 127, 0]),
}


@pytest.mark.parametrize(("depth", "colour_type"), TRANSPARENT)
def test_transparent_colours_of_every_depth(depth, colour_type):
    row, colour, seen = TRANSPARENT[depth, colour_type]
    palette = [(b"PLTE", bytes(3 * 2 ** min(depth, 8)))] if colour_type == 3 else []
    data = png(len(seen), depth, colour_type, row, *palette, (b"tRNS", colour))
    assert transforms.decode(data)[0].tolist() == [[value] * 3 for value in seen]


@pytest.mark.parametrize(("depth", "colour_type"), TRANSPARENT)
def test_transparent_pixels_are_laid_over_a_background(depth, colour_type):
    """Where white shines through, the background does, by the same share."""
    row, colour, seen = TRANSPARENT[depth, colour_type]
    palette = [(b"PLTE", bytes(3 * 2 ** min(depth, 8)))] if colour_type == 3 else []
    data = png(len(seen), depth, colour_type, row, *palette, (b"tRNS", colour))
    over_black = transforms.decode(data, (0, 0, 0))[0].astype(int)
    background = np.array([200, 90, 10])
    shines = transforms.decode(data)[0] - over_black
    found = transforms.decode(data, tuple(background))[0]
    assert shines.max() == 255  # transparent at all
    assert np.abs(found - (over_black + shines * background / 255)).max() <= 1


OPAQUE = {
    "PNG": ("1", "L", "P", "RGB", "LA", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK", "LA", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("format", "mode"), [(f, mode) for f in OPAQUE for mode in OPAQUE[f]])
def test_opaque_images_keep_their_bits(format, mode, rng):
    """The values are those that Pillow and, for JPEG, simplejpeg return."""
    noise = Image.fromarray(rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)).convert(mode)
    data = encode(noise, format)
    if format == "JPEG":
        expected = simplejpeg.decode_jpeg(data)
    else:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(transforms.decode(data), expected)


# ----------------------------------------------------------------------------- what is white


@pytest.fixture
def grey():
    return np.tile(np.linspace(10, 240, 64), (48, 1))


def tiff(values):
    return encode(Image.fromarray(values), "TIFF")


def test_wide_pixels_whose_white_is_known_are_scaled(grey):
    for values in (
        grey.astype(np.int32),
        grey.astype(np.float32),
        (grey / 255).astype(np.float32),
        (grey * 257).astype(np.uint16),
        (grey * 257).astype(np.int32),
    ):
        found = transforms.decode(tiff(values))
        assert found.shape == (48, 64, 3) and np.abs(found[..., 1] - grey).max() <= 1


def test_twelve_bits_are_scaled():
    image = Image.fromarray(np.array([[0, 16, 2048, 4095]], np.uint16))
    data = bytearray(encode(image, "TIFF"))
    at = data.index(struct.pack("<HHI", 258, 3, 1)) + 8  # bits per sample
    data[at : at + 2] = struct.pack("<H", 12)
    (offset,) = struct.unpack_from("<I", data, data.index(struct.pack("<HHI", 273, 4, 1)) + 8)
    data[offset : offset + 6] = bytes([0x00, 0x00, 0x10, 0x80, 0x0F, 0xFF])  # 0, 16, 2048, 4095
    assert transforms.decode(bytes(data))[0, :, 0].tolist() == [0, 1, 128, 255]


RANGES = {  # values of 32 bits, and what is black and white
    "16 bits": ([[0, 300], [4000, 65535]], np.int32, (0, 65535)),
    "just above 8 bits": ([[0, 256]], np.int32, (0, 65535)),
    "above 16 bits": ([[70, 10**6], [300, 10**9]], np.int32, (70, 10**9)),
    "negative": ([[-1, 200]], np.int32, (-1, 200)),
    "floats above 1": ([[0, 0.3], [1.2, 1.5]], np.float32, (0, 1.5)),
    "negative floats": ([[-2.5, 0, 2.5]], np.float32, (-2.5, 2.5)),
    "large floats": ([[0, 300, 1e30]], np.float32, (0, 1e30)),
    "small floats": ([[0, 1e-3, 0.02]], np.float32, (0, 1)),
}


@pytest.mark.parametrize("kind", RANGES)
def test_wide_pixels_are_scaled_from_black_to_white(kind):
    values, dtype, (black, white) = RANGES[kind]
    expected = (np.array(values, np.float64) - black) / (white - black) * 255
    for found in (
        transforms.decode(tiff(np.array(values, dtype))),
        read_image(Image.fromarray(np.array(values, dtype))),
    ):
        assert np.abs(found - expected[..., None]).max() <= 0.51
    dataset = ArrayDataset([Image.fromarray(np.array(values, dtype))] * 2, [0, 0])
    np.testing.assert_array_equal(dataset.source("train")[0].image, found)


def test_unsigned_pixels_of_32_bits_have_no_sign():
    values = np.array([[2**31 + 5, 2**32 - 1], [2**30, 2**31]], np.uint32).repeat(8, 0).repeat(8, 1)
    data = raw_tiff({**GREY, 258: 32, 273: 0, 278: 16, 279: 1024}, values.tobytes())
    expected = (values - 2.0**30) / (2**32 - 1 - 2**30) * 255
    assert np.abs(transforms.decode(data)[..., 0] - expected).max() <= 0.51


def test_wide_pixels_of_one_value_are_black_unless_it_is_known(rng):
    for value, seen in ((70_000, 0), (-3, 0), (0, 0), (255, 255), (65535, 255)):
        assert (transforms.decode(tiff(np.full((4, 4), value, np.int32))) == seen).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_wide_pixels_that_are_no_numbers_are_refused(value):
    values = np.array([[0, value, 1]], np.float32)
    message = "some of its 32-bit pixels are NaN or infinite: .* 8 or 16 bits"
    with pytest.raises(ValueError, match=f"not a readable image: {message}"):
        transforms.decode(tiff(values))
    with pytest.raises(ValueError, match=f"A Pillow image can't be used: {message}"):
        read_image(Image.fromarray(values))
    with pytest.raises(ValueError, match=rf"images\[0\] can't be used: {message}"):
        ArrayDataset([Image.fromarray(values)], [0])


def test_the_range_is_that_of_the_whole_image(monkeypatch):
    values = np.array([[1, 300, 4], [5, -3, 6], [9, 9, 70000]], np.int32)
    whole = transforms.decode(tiff(values))
    monkeypatch.setattr(pixels, "_TILE", 4)
    np.testing.assert_array_equal(transforms.decode(tiff(values)), whole)
    assert whole.max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_zero_may_be_white(dtype, rng):
    values = rng.integers(0, 256, (16, 16))
    kept = values * 257 if dtype == np.uint16 else values / 255 if dtype == np.float32 else values
    bits = 8 * np.dtype(dtype).itemsize
    kind = {258: bits, 339: 3 if dtype == np.float32 else 1, 273: 0, 278: 16, 279: 32 * bits}
    for zero_is_black in (0, 1):
        data = raw_tiff({**GREY, **kind, 262: zero_is_black}, kept.astype(dtype).tobytes())
        found = transforms.decode(data)[..., 0]
        np.testing.assert_array_equal(found, values if zero_is_black else 255 - values)


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({339: 2}, "signed 8-bit pixels, which can't be read: save it as"),
        ({262: 6, 258: (8, 8, 8), 277: 3}, "uncompressed YCbCr pixels, which can't be read"),
        ({258: 64, 339: 3}, "a TIFF of a kind that can't be read: save it with 8 or 16 bits"),
        ({259: 12345}, "a TIFF of a kind that can't be read: save it with 8 or 16 bits, or as PNG"),
    ],
)
def test_tiff_files_that_would_be_read_wrongly_are_refused(tags, told):
    data = raw_tiff({**GREY, 273: 0, 278: 16, 279: 2048, **tags}, bytes(2048))
    with pytest.raises(ValueError, match=f"not a readable image: .*{told}"):
        transforms.decode(data)


def test_compressed_ycbcr_is_read_as_it_is():
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("YCbCr")
    found = transforms.decode(encode(image, "TIFF", compression="tiff_lzw"))
    assert np.abs(found.astype(int) - (200, 40, 90)).max() <= 2


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="there are no pixels"):
        pixels.from_pillow(Image.new("RGB", (0, 5)))
