"""JPEG files: orientation, colours, damaged metadata, and decoding at a reduced scale."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from vit_jax.config.defaults import default
from vit_jax.data import decoding, pipeline, transforms
from vit_jax.data.dataset import Example
from vit_jax.data.resizing import find_factor


def encode(image, format="JPEG", **options):
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def smooth(height, width, seed=0):
    """A picture with details of all sizes down to a few pixels, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0)
    for octave in range(7):
        shape = (min(height, 3 * 2**octave), min(width, 4 * 2**octave), 3)
        noise = rng.normal(0, 40 * 0.5**octave, shape)
        for channel in range(3):
            grown = Image.fromarray(noise[..., channel].astype(np.float32))
            picture[..., channel] += np.asarray(grown.resize((width, height), Image.BICUBIC))
    return picture.clip(0, 255).astype(np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# ------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation, factor):
    data = encode(Image.fromarray(smooth(53, 86)), exif=exif(orientation), quality=92)
    image = Image.open(io.BytesIO(data))
    if factor > 1:
        image.draft("RGB", (image.width // factor, image.height // factor))
    upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(transforms.decode(data, factor=factor), upright)
    height, width, found = decoding.read_header(data)
    assert found == orientation and upright.shape[:2] == (-(-height // factor), -(-width // factor))


def test_pillow_decodes_no_photo_of_a_phone(monkeypatch):
    """It reads the metadata alone: decoding takes it four times as long."""
    data = encode(Image.fromarray(smooth(40, 60)), exif=exif(6))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("Pillow decodes it"))
    assert transforms.decode(data).shape == (60, 40, 3)


def segment(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


ONE_TAG = struct.pack(">HHHI", 1, 0x0112, 3, 1)
TIFF = b"MM\0*\0\0\0\x08"
EXIF_BLOCKS = {  # and the orientation that they tell
    "upside down": (b"Exif\0\0" + TIFF + ONE_TAG + b"\0\3\0\0" + bytes(4), 3),
    "little endian": (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0),
        6,
    ),
    "empty": (b"Exif\0\0", 1),
    "no TIFF": (b"Exif\0\0nonsense and more of it", 1),
    "cut": (b"Exif\0\0" + TIFF + ONE_TAG[:5], 1),
    "far away": (b"Exif\0\0MM\0*\xff\xff\xff\xff", 1),
    "too many tags": (b"Exif\0\0" + TIFF + b"\xff\xff" + ONE_TAG[2:], 1),
    "orientation 0": (b"Exif\0\0" + TIFF + ONE_TAG + b"\0\0\0\0" + bytes(4), 1),
    "orientation 9": (b"Exif\0\0" + TIFF + ONE_TAG + b"\0\x09\0\0" + bytes(4), 1),
    "a text": (
        b"Exif\0\0" + TIFF + struct.pack(">HHHI", 1, 0x0112, 2, 4) + b"six\0" + bytes(4),
        1,
    ),
    "two values": (
        b"Exif\0\0" + TIFF + struct.pack(">HHHI", 1, 0x0112, 3, 2) + b"\0\6\0\6" + bytes(4),
        6,
    ),
    "a fraction by zero": (
        b"Exif\0\0" + TIFF + struct.pack(">HHHII", 1, 0x0112, 5, 1, 26) + bytes(12),
        1,
    ),
    "XMP": (b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>", 1),
}


@pytest.mark.parametrize("kind", EXIF_BLOCKS)
def test_damaged_metadata_break_no_image(kind):
    block, orientation = EXIF_BLOCKS[kind]
    plain = encode(Image.fromarray(smooth(32, 48)))
    data = plain[:2] + segment(block) + plain[2:]
    assert decoding.read_header(data).orientation == orientation
    stored = Image.fromarray(simplejpeg.decode_jpeg(plain))
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
    upright = stored.transpose(turns[orientation]) if orientation in turns else stored
    np.testing.assert_array_equal(transforms.decode(data), np.asarray(upright))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_damaged_metadata_of_other_formats_break_no_image(format):
    picture = smooth(32, 48)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(Image.fromarray(picture), format, exif=b"Exif\0\0nonsense", **options)
    np.testing.assert_array_equal(transforms.decode(data), picture)


# ----------------------------------------------------------------------------------- colours


def inks(height, width):
    """A CMYK image; black covers up to a half."""
    black = smooth(height, width, 1)[..., 0] // 2
    return Image.fromarray(np.dstack([smooth(height, width), black]), "CMYK")


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_cmyk_is_what_its_inks_give(orientation, factor):
    """Red is (255 - C) (255 - K) / 255, and so on."""
    image = inks(48, 64)
    light = 255 - np.asarray(image).astype(float)
    expected = light[..., :3] * light[..., 3:] / 255
    expected = expected.reshape(48 // factor, factor, 64 // factor, factor, 3).mean((1, 3))
    expected = np.rot90(expected, -1) if orientation == 6 else expected
    data = encode(image, quality=95, subsampling=0, exif=exif(orientation))
    found = transforms.decode(data, factor=factor)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 2


@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "without Adobe's segment"])
def test_four_colours_are_what_pillow_shows(kind):
    data = encode(inks(48, 64), quality=95)
    start = data.index(b"Adobe") - 4
    if kind == "YCCK":  # the same numbers, which the segment's last byte says to be YCCK
        data = data[: start + 15] + b"\2" + data[start + 16 :]
        assert simplejpeg.decode_jpeg_header(data)[2] == "YCCK"
    elif kind != "CMYK":
        data = data[:start] + data[start + 16 :]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert expected.std() > 10 and np.abs(transforms.decode(data) - expected).max() <= 2


# ---------------------------------------------------------------------------- reduced scales


def test_a_factor_is_the_largest_that_still_covers():
    for side in range(1, 200):
        for target in (1, 3, 16, 31):
            allowed = [f for f in (1, 2, 4, 8) if side / f >= target] or [1]
            assert find_factor((side, 10**6), (target, 1)) == max(allowed)
            assert find_factor((10**6, side), (1, target)) == max(allowed)


def options(**changes):
    found = default().data
    found.update(changes)
    return found


CROPS = ("inception", "torchvision", "resize")


def seen(data, size, seed, **changes):
    return transforms.training_view(data, size, np.random.default_rng(seed), options(**changes))


@pytest.mark.parametrize("crop", CROPS)
def test_small_photos_keep_their_pixels(crop):
    """No crop of these is twice as large as the target."""
    for shape in ((31, 31), (30, 24), (16, 16), (5, 40), (1, 1)):
        data = encode(Image.fromarray(smooth(*shape)), exif=exif(5))
        for seed in range(5):
            whole = transforms.TRAIN_CROPS[crop](
                transforms.decode(data), (16, 16), np.random.default_rng(seed), options(crop=crop)
            )
            np.testing.assert_array_equal(seen(data, (16, 16), seed, crop=crop), whole)
        view = options(decode="scaled")
        np.testing.assert_array_equal(
            transforms.evaluation_view(data, (16, 16), view),
            transforms.evaluation_view(transforms.decode(data), (16, 16), view),
        )


@pytest.mark.parametrize("orientation", [1, 6, 7])
@pytest.mark.parametrize("shape", [(333, 500), (431, 297)])
def test_a_reduced_crop_is_near_the_antialiased_one(shape, orientation, monkeypatch):
    """It is compared with Pillow's resize, with antialiasing, of the same window of the whole."""
    data = encode(Image.fromarray(smooth(*shape)), exif=exif(orientation), quality=95)
    whole = Image.fromarray(transforms.decode(data))
    decode, factors = transforms.decode, []

    def note(data, background, *, factor):
        factors.append(factor)
        return decode(data, background, factor=factor)

    monkeypatch.setattr(transforms, "decode", note)
    errors = {"scaled": [], "whole": []}
    size = (24, 20)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sides = whole.height, whole.width
        top, left, h, w = transforms.inception_window(*sides, rng, area=(0.05, 1.0))
        near = whole.resize(size[::-1], Image.BILINEAR, box=(left, top, left + w, top + h))
        for name, found in errors.items():
            image = seen(data, size, seed, decode=name)
            found.append(np.abs(image - np.asarray(near).astype(int)).mean())
    assert {1, 2, 4, 8} == set(factors)
    assert max(errors["scaled"]) < 4 and np.mean(errors["scaled"]) < 2
    assert np.mean(errors["scaled"]) < 0.8 * np.mean(errors["whole"])


@pytest.mark.parametrize(
    ("crop", "resizing"),
    [
        ("whole", "bilinear"),
        *[(crop, "bicubic_antialias") for crop in ("central", "squash", "whole")],
    ],
)
def test_a_reduced_view_is_near_the_antialiased_one(crop, resizing):
    view = dict(eval_crop=crop, eval_resize=resizing)
    near = view | dict(eval_resize=f"{resizing.removesuffix('_antialias')}_antialias")
    for shape in ((256, 320), (251, 323)):
        data = encode(Image.fromarray(smooth(*shape)), exif=exif(8), quality=95)
        expected = transforms.evaluation_view(transforms.decode(data), (28, 21), near).astype(int)
        found = transforms.evaluation_view(data, (28, 21), view | dict(decode="scaled"))
        assert 0 < np.abs(found - expected).mean() < 4


@pytest.mark.parametrize("crop", ["central", "squash", "whole"])
def test_a_reduced_view_has_no_stripes(crop):
    """Stripes two pixels wide are grey, where the four nearest pixels alone have them."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, 1::4] = image[:, 2::4] = 255
    data = encode(Image.fromarray(image), quality=95)
    spread = {
        name: np.ptp(transforms.evaluation_view(data, (15, 15), dict(eval_crop=crop, decode=name)))
        for name in ("whole", "scaled")
    }
    assert spread["scaled"] < 10 and spread["whole"] > 60


@pytest.mark.parametrize("name", ["bilinear", "lanczos_antialias"])
def test_published_weights_see_the_whole_photo(name):
    """Nothing says "scaled" of them: the pixels are those of other libraries."""
    data = encode(Image.fromarray(smooth(300, 400)))
    found = transforms.evaluation_view(data, (16, 16), dict(eval_resize=name))
    expected = transforms.evaluation_view(transforms.decode(data), (16, 16), dict(eval_resize=name))
    np.testing.assert_array_equal(found, expected)


class Photos:
    """A source of JPEG files, of which some are damaged."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Example(image=self.files[index], label=index, id=f"photo {index}")


def test_batches_are_those_of_each_photo_and_draw_nothing_for_a_damaged_one():
    """A damaged photo's place has the same window of the next one as if it stood there."""
    files = [encode(Image.fromarray(smooth(120, 90 + i, seed=i)), exif=exif(6)) for i in range(4)]
    good = Photos(files[:1] * 4)
    cut = Photos([files[0], files[1][:-200], files[0], files[0]])
    config = options(image_size=16, on_error="skip", threads=1)
    arguments = dict(num_classes=4, batch_size=4, seed=3)
    first, second = (
        next(pipeline.train_batches(source, config, **arguments)) for source in (good, cut)
    )
    np.testing.assert_array_equal(first["image"], second["image"])
    config.decode = "whole"
    third = next(pipeline.train_batches(good, config, **arguments))
    assert (first["image"] != third["image"]).any()
    assert np.abs(first["image"].astype(int) - third["image"]).mean() < 20  # the same windows
