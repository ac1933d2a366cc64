import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vit_jax.config.defaults import default
from vit_jax.data import resizing, transforms
from vit_jax.models.patches import to_float


def encode(image, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def picture():
    """A smooth picture, so that lossy formats stay close to it: red grows right, green down."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([x * 4, y * 5, np.full_like(x, 100)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_decode_reads_every_format(picture, format):
    decoded = transforms.decode(encode(Image.fromarray(picture), format=format, quality=95))
    assert decoded.dtype == np.uint8 and decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("alpha", [0, 7, 128, 254, 255])
def test_decode_lays_transparent_images_over_white(picture, alpha):
    rgba = Image.fromarray(np.dstack([picture, np.full(picture.shape[:2], alpha, np.uint8)]))
    decoded = transforms.decode(encode(rgba, format="PNG"))
    expected = picture * (alpha / 255) + (255 - alpha)
    assert np.abs(decoded - expected).max() <= (0 if alpha in (0, 255) else 0.51)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decode_repeats_grey(picture, format):
    decoded = transforms.decode(encode(Image.fromarray(picture[..., 0]), format=format))
    assert decoded.shape == picture.shape
    assert (decoded == decoded[..., :1]).all()
    assert np.abs(decoded[..., 0].astype(int) - picture[..., 0]).max() < 12


def test_decode_scales_16_bit_grey(picture):
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    decoded = transforms.decode(encode(deep, format="PNG"))
    np.testing.assert_array_equal(decoded[..., 0], picture[..., 0])


def test_decode_converts_cmyk_jpeg(picture):
    cmyk = Image.fromarray(picture).convert("CMYK")
    decoded = transforms.decode(encode(cmyk, format="JPEG", quality=95))
    assert np.abs(decoded.astype(int) - picture).mean() < 5


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_decode_turns_exif_images_upright(picture, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(picture), format="JPEG", quality=95, exif=exif)
    upright = np.rot90(picture, turns)
    decoded = transforms.decode(data)
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(ValueError, match="not a readable image"):
        transforms.decode(data)


def test_decode_refuses_a_truncated_jpeg(picture):
    data = encode(Image.fromarray(picture), format="JPEG")
    with pytest.raises(ValueError, match="not a readable image"):
        transforms.decode(data[: len(data) // 2])


def test_decode_opens_few_formats(picture):
    """Pillow would hand EPS to another program, whatever the file is named."""
    with pytest.raises(ValueError, match="not a readable image: expected JPEG, PNG, WEBP, GIF"):
        transforms.decode(encode(Image.fromarray(picture), format="EPS"))


def test_decode_refuses_a_decompression_bomb(picture):
    data = encode(Image.fromarray(picture), format="JPEG")
    at = data.index(b"\xff\xc0") + 5  # where the frame's height and width are
    sides = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match=r"not a readable image: .*decompression bomb"):
        transforms.decode(data[:at] + sides + data[at + 4 :])


def test_resize_samples_pixel_centres():
    """Halving with bilinear interpolation at pixel centres averages 2x2 blocks."""
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    blocks = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(resizing.resize(image, (4, 6)) - blocks).max() <= 0.5


IMAGE_SIZES = [(375, 500), (400, 400), (500, 333), (32, 32)]
SAME = 1.63 * (2 / 20_000) ** 0.5  # Kolmogorov-Smirnov, 20,000 draws each, at 1 %


def areas_and_aspects(windows):
    height, width = np.array(windows, np.float64).T[-2:]
    return height * width, width / height


@pytest.fixture
def drawn(rng):
    return lambda draw, size: [draw(*size, rng) for _ in range(20_000)]


def heights_of_the_public_crop(size, ratio, rng):
    """TensorFlow's draw of a height by its documentation, for all aspect ratios at once."""
    low, high = (np.rint(np.sqrt(share * np.prod(size) / ratio)) for share in (0.05, 1.0))
    high = np.where(np.rint(high * ratio) > size[1], (size[1] + 0.5 - 1e-7) // ratio, high)
    high = np.minimum(high, size[0])
    return np.floor(low + rng.random(len(ratio)) * (np.maximum(high, low) - low + 1))


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_inception_windows_are_drawn_as_by_the_public_code(size, rng, drawn):
    ratio = rng.uniform(0.75, 1.33, 60_000).astype(np.float32)
    height = heights_of_the_public_crop(size, ratio, rng)
    width = np.rint(height * ratio)
    share = height * width / np.prod(size)
    fits = (share >= 0.05) & (share <= 1) & (height <= size[0]) & (width <= size[1])
    public = np.stack([height, width], axis=1)[fits][:20_000]
    found, others = (
        areas_and_aspects(drawn(draw, size))
        for draw in (transforms.inception_window, transforms.torchvision_window)
    )
    for ours, theirs in zip(found, areas_and_aspects(public), strict=True):
        # Where a side has few pixels, the public code also mends what rounding left outside.
        assert stats.ks_2samp(ours, theirs).statistic < SAME + 0.01 * (min(size) < 100)
    assert stats.ks_2samp(others[0], areas_and_aspects(public)[0]).statistic > 0.1


@pytest.mark.peers
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_inception_windows_are_drawn_as_by_tensorflow(size, drawn):
    tf = pytest.importorskip("tensorflow")
    boxes = tf.zeros([0, 0, 4])

    @tf.function
    def draw():
        return tf.image.sample_distorted_bounding_box(
            (*size, 3), boxes, area_range=(0.05, 1.0), min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )[1]  # fmt: skip

    theirs = areas_and_aspects([draw().numpy()[:2] for _ in range(20_000)])
    ours = areas_and_aspects(drawn(transforms.inception_window, size))
    assert all(stats.ks_2samp(a, b).statistic < SAME for a, b in zip(ours, theirs, strict=True))


def test_an_image_of_no_such_crop_is_taken_whole(rng):
    for draw in (transforms.inception_window, transforms.torchvision_window):
        assert draw(1, 20_000, rng) == (0, 0, 1, 20_000)


@pytest.mark.parametrize("crop", ["inception", "torchvision"])
def test_random_crops_stay_within_area_and_aspect(rng, crop):
    """The crop of a coordinate image shows which rectangle was taken."""
    y, x = np.mgrid[0:200, 0:250]
    coordinates = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)
    options = default().data
    options.crop_area = 0.2
    areas, aspects = [], []
    for _ in range(300):
        found = transforms.TRAIN_CROPS[crop](coordinates, (101, 101), rng, options)
        assert found.shape == (101, 101, 3)
        found = found.astype(float)
        w = (found[50, 100, 0] - found[50, 0, 0]) * 101 / 100
        h = (found[100, 50, 1] - found[0, 50, 1]) * 101 / 100
        areas.append(w * h / (200 * 250))
        aspects.append(w / h)
    assert 0.18 < min(areas) < 0.3 and 0.7 < max(areas) <= 1.03
    assert 0.72 < min(aspects) < 0.85 and 1.2 < max(aspects) < 1.37


def test_random_crops_cover_the_image_and_keep_its_pixels(rng):
    image = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    corners = set()
    for _ in range(100):
        crop = transforms.resize_and_random_crop(image, (14, 14), rng, fraction=14 / 16)
        top, left = divmod(int(np.argwhere((image == crop[0, 0]).all(-1))[0] @ [16, 1]), 16)
        np.testing.assert_array_equal(crop, image[top : top + 14, left : left + 14])
        corners.add((top, left))
    assert corners == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (16, 16), (15, 100)])
@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_central_crop_keeps_the_centre_and_the_aspect(shape, size):
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    image = np.stack([x * 2, y * 2, x * 0], axis=-1).astype(np.uint8)
    crop = resizing.central_crop(image, size, fraction=0.875).astype(float)
    assert crop.shape == (*size, 3)
    centre = crop[size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1]
    np.testing.assert_allclose(centre.mean((0, 1))[:2], [shape[1] - 1, shape[0] - 1], atol=5)
    step_x = np.diff(crop[size[0] // 2, 1:-1, 0]).mean()
    step_y = np.diff(crop[1:-1, size[1] // 2, 1]).mean()
    assert abs(step_x / step_y - 1) < 0.15


@pytest.mark.parametrize("name", transforms.TRAIN_CROPS)
def test_crops_in_training_have_the_size_and_repeat_with_the_generator(name, picture):
    options = default().data
    first, again, other = (
        transforms.TRAIN_CROPS[name](picture, (20, 30), np.random.default_rng(seed), options)
        for seed in (0, 0, 1)
    )
    assert first.shape == (20, 30, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("settings", "left"), [(dict(crop_fraction=1.0), 16), (dict(eval_crop="whole"), 0)]
)
def test_what_a_model_sees_begins_where_the_crop_says(settings, left):
    """A picture twice as wide as high, in which a pixel's red is its column."""
    image = np.broadcast_to(np.arange(64)[None, :, None], (32, 64, 3)).astype(np.uint8)
    options = default().data
    options.update(settings)
    view = transforms.evaluation_view(image, (32, 32), options)
    assert view.shape == (32, 32, 3) and abs(int(view[0, 0, 0]) - left) <= 1


def test_flip_mirrors_half_of_the_images(rng):
    image = np.arange(12).reshape(2, 2, 3)
    flipped = [transforms.random_flip(image, rng) for _ in range(400)]
    mirrored = sum((f[:, 0] == image[:, 1]).all() for f in flipped)
    assert 150 < mirrored < 250


def test_to_float_spans_minus_one_to_one():
    np.testing.assert_allclose(to_float(np.array([0, 255], np.uint8)), [-1.0, 1.0])
