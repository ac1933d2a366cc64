"""Each operation against timm's of the same name and against NumPy, and what is drawn."""

import random

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import randaugment
from vit_jax.data.randaugment import OPERATIONS, rand_augment

# What the paper's authors' TensorFlow code has in its list, in that order.
NAMES = [
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
]
ENHANCE = {0: 0.1, 3: 0.64, 5: 1.0, 10: 1.9, 30: 5.5}
SHEAR = {0: 0, 2: 0.06, 10: 0.3, 30: 0.9}

# Operation: timm's name of it, and timm's parameter by magnitude, for an image of 56 x 112.
AGAINST_TIMM = {
    "AutoContrast": ("auto_contrast", dict.fromkeys((0, 10, 30))),
    "Equalize": ("equalize", dict.fromkeys((0, 10, 30))),
    "Invert": ("invert", dict.fromkeys((0, 10, 30))),
    "Rotate": ("rotate", {0: 0, 5: 15, 10: 30, 30: 90}),
    "Posterize": ("posterize", {0: 1, 2.5: 1, 5: 2, 10: 4, 14.9: 5, 20: 8, 22.5: 1, 30: 1}),
    "Solarize": ("solarize", {0: 0, 5: 128, 9: 230, 10: 0, 15: 128, 19: 230, 30: 0}),
    "SolarizeAdd": ("solarize_add", {0: 0, 5: 55, 9: 99, 10: 110, 30: 330}),
    "Color": ("color", ENHANCE),
    "Contrast": ("contrast", ENHANCE),
    "Brightness": ("brightness", ENHANCE),
    "Sharpness": ("sharpness", ENHANCE),
    "ShearX": ("shear_x", SHEAR),
    "ShearY": ("shear_y", SHEAR),
    "TranslateX": ("translate_x_abs", {0: 0, 2: 10, 10: 50, 30: 150}),
    "TranslateY": ("translate_y_abs", {0: 0, 2: 5, 10: 25, 30: 75}),
}
SIGNED = ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]


@pytest.fixture
def image(rng):
    """56 x 112, of values 20 to 219 without 128, each channel of another range."""
    smooth = np.linspace(20, 180, 56 * 112).reshape(56, 112, 1) * [1.0, 0.8, 0.6]
    values = (smooth + rng.integers(0, 40, smooth.shape)).clip(20, 219).astype(np.uint8)
    return np.where(values == 128, 129, values).astype(np.uint8)


@pytest.fixture
def one(monkeypatch, rng):
    """Applies one named operation, the only one there is, once."""
    table = dict(OPERATIONS)

    def apply(name, image, magnitude, rng=rng):
        monkeypatch.setattr(randaugment, "OPERATIONS", {name: table[name]})
        return rand_augment(image, rng, operations=1, magnitude=magnitude)

    return apply


@pytest.fixture(scope="module")
def timm():
    import peers  # noqa: F401  (makes timm importable beside a CPU build of PyTorch)

    pytest.importorskip("timm")
    from timm.data import auto_augment

    return auto_augment


@pytest.mark.peers
@pytest.mark.parametrize("name", AGAINST_TIMM)
def test_operations_equal_timms(timm, one, image, name):
    """Pixel for pixel; of an operation with a sign, both signs come within twenty draws."""
    function, parameters = AGAINST_TIMM[name]
    signs, draws = ((1, -1), 20) if name in SIGNED else ((1,), 1)
    look = {"resample": Image.Resampling.NEAREST, "fillcolor": (128, 128, 128)}
    for magnitude, parameter in parameters.items():
        wanted = set()
        for sign in signs:
            arguments = [] if parameter is None else [sign * parameter]
            theirs = getattr(timm, function)(Image.fromarray(image), *arguments, **look)
            wanted.add(np.asarray(theirs).tobytes())
        assert {one(name, image, magnitude).tobytes() for _ in range(draws)} == wanted, magnitude
        assert magnitude != 10 or image.tobytes() not in wanted


@pytest.mark.parametrize(("name", "axis", "pixels"), [("TranslateX", 1, 50), ("TranslateY", 0, 25)])
def test_translations_move_by_a_share_of_the_side_and_fill_with_grey(
    one, image, name, axis, pixels
):
    x = np.moveaxis(image, axis, 0)
    grey = np.full_like(x[:pixels], 128)
    back = np.moveaxis(np.concatenate([x[pixels:], grey]), 0, axis)
    forth = np.moveaxis(np.concatenate([grey, x[:-pixels]]), 0, axis)
    found = {one(name, image, 10).tobytes() for _ in range(20)}
    assert found == {back.tobytes(), forth.tobytes()}


@pytest.mark.parametrize(("magnitude", "half"), [(10, (10, 20)), (5, (5, 10)), (9, (9, 18))])
def test_cutout_greys_one_rectangle_round_any_pixel(one, image, magnitude, half):
    """It is cut off at the borders, and every row and column is a centre."""
    found = [set(), set()]
    for _ in range(1500):
        cut = one("Cutout", image, magnitude)
        grey = (cut == 128).all(-1)
        np.testing.assert_array_equal(cut[~grey], image[~grey])
        (top, left), (bottom, right) = np.argwhere(grey).min(0), np.argwhere(grey).max(0) + 1
        assert grey[top:bottom, left:right].all() and grey.sum() == (bottom - top) * (right - left)
        found[0].add((top, bottom))
        found[1].add((left, right))
    for spans, side, h in zip(found, image.shape, half, strict=False):
        assert spans == {(max(0, c - h), min(side, c + h)) for c in range(side)}


def test_cutout_and_translations_have_the_published_pixels_at_224(one):
    black = np.zeros((224, 224, 3), np.uint8)
    for magnitude in range(1, 11):
        grey = [(one("Cutout", black, magnitude)[..., 0] == 128).sum() for _ in range(40)]
        assert max(grey) == (8 * magnitude) ** 2
        assert (one("TranslateX", black, magnitude)[0, :, 0] == 128).sum() == 10 * magnitude
        assert (one("TranslateY", black, magnitude)[:, 0, 0] == 128).sum() == 10 * magnitude
    for name in ("TranslateX", "TranslateY"):  # and 20 times that at 20 times that size
        larger = np.zeros((4480, 1, 3) if name == "TranslateY" else (1, 4480, 3), np.uint8)
        assert (one(name, larger, 10)[..., 0] == 128).sum() == 2000


@pytest.mark.parametrize("name", NAMES)
def test_magnitude_0(one, image, name):
    """No movement and no box, but all pixels inverted, one bit left, a tenth of the enhancement."""
    found = one(name, image, 0).astype(int)
    lowest, highest = image.min((0, 1)).astype(int), image.max((0, 1)).astype(int)
    stretched = (image - lowest) * 255 / (highest - lowest)
    grey = image @ [0.299, 0.587, 0.114]
    wanted, tolerance = {
        "Invert": (255 - image, 0),
        "Posterize": (image & 128, 0),
        "Solarize": (255 - image, 0),
        "AutoContrast": (stretched, 1),
        "Color": (0.1 * image + 0.9 * grey[..., None], 1.5),
        "Contrast": (0.1 * image + 0.9 * grey.mean(), 1.5),
        "Brightness": (0.1 * image, 1),
    }.get(name, (image, 0))
    if name == "Equalize":  # the same whatever the magnitude, and about uniform
        np.testing.assert_array_equal(found, one(name, image, 30))
        assert np.abs(np.quantile(found, [0.1, 0.5, 0.9]) - [25.5, 127.5, 229.5]).max() < 8
    elif name == "Sharpness":  # a blur: neighbours differ less, and borders keep their pixels
        before, after = (np.abs(np.diff(x.astype(int), axis=1)).mean() for x in (image, found))
        assert after < 0.7 * before
        np.testing.assert_array_equal(found[0], image[0])
    else:
        assert np.abs(found - wanted).max() <= tolerance


@pytest.mark.parametrize("magnitude", [10, 20, 30])
def test_solarize_wraps_round_where_its_threshold_is_256(one, image, magnitude):
    """As TensorFlow's comparison of uint8 pixels with it did; big_vision's issue 110."""
    np.testing.assert_array_equal(one("Solarize", image, magnitude), 255 - image)


def test_solarize_add_brightens_values_below_128_up_to_white(one):
    values = np.arange(256).repeat(3).reshape(16, 16, 3)
    for magnitude, addition in ((5, 55), (10, 110), (20, 220)):
        wanted = np.where(values < 128, np.minimum(255, values + addition), values)
        found = one("SolarizeAdd", values.astype(np.uint8), magnitude)
        np.testing.assert_array_equal(found, wanted)


def test_operations_are_drawn_uniformly_and_with_replacement(monkeypatch, image, rng):
    drawn = []

    def recorder(name):
        return lambda image, strength, rng: drawn.append((name, strength)) or image

    assert list(OPERATIONS) == NAMES
    monkeypatch.setattr(randaugment, "OPERATIONS", {name: recorder(name) for name in NAMES})
    for _ in range(2400):
        result = rand_augment(image, rng, operations=2, magnitude=7)
    np.testing.assert_array_equal(result, image)
    assert {strength for _, strength in drawn} == {0.7}
    names = [name for name, _ in drawn]
    counts = np.array([names.count(name) for name in NAMES])
    assert len(names) == 4800 and ((counts - 300) ** 2 / 300).sum() < 37.7  # p = 0.001
    twice = sum(a == b for a, b in zip(names[::2], names[1::2], strict=True))
    assert 100 < twice < 200  # 150 +- 12


@pytest.mark.parametrize("name", SIGNED)
def test_signs_are_drawn_evenly(one, image, name):
    results = [one(name, image, 10).tobytes() for _ in range(200)]
    assert len(set(results)) == 2 and image.tobytes() not in results
    assert 70 < results.count(results[0]) < 130


@pytest.mark.parametrize("operations", [0, 1, 2, 3])
def test_operations_follow_each_other(monkeypatch, image, rng, operations):
    monkeypatch.setattr(randaugment, "OPERATIONS", {"Invert": OPERATIONS["Invert"]})
    result = rand_augment(image, rng, operations=operations)
    np.testing.assert_array_equal(result, 255 - image if operations % 2 else image)
    assert (result is image) == (operations == 0)


def test_all_randomness_is_in_the_generator(image):
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1:]

    def results(seed):
        rng = np.random.default_rng(seed)
        return [rand_augment(image, rng).tobytes() for _ in range(20)]

    assert results(0) == results(0)
    assert results(0) != results(1)
    assert len(set(results(0))) > 15
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state()[1:], before[1])


@pytest.mark.parametrize("shape", [(32, 32), (20, 33), (33, 20), (1, 1), (1, 7)])
@pytest.mark.parametrize("name", NAMES)
def test_shape_dtype_and_the_given_image_stay(one, rng, name, shape):
    """Of a mirrored image, too, which is a view that nobody may write to."""
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)[:, ::-1]
    image.flags.writeable = False
    copy = image.copy()
    for magnitude in (0, 10, 17.3, 30):
        result = one(name, image, magnitude, np.random.default_rng(0))
        assert result.shape == image.shape and result.dtype == np.uint8
        of_copy = one(name, copy, magnitude, np.random.default_rng(0))
        np.testing.assert_array_equal(result, of_copy)
        np.testing.assert_array_equal(image, copy)
    given = Image.fromarray(image)
    OPERATIONS[name](given, 1.0, rng)
    np.testing.assert_array_equal(given, image)


@pytest.mark.parametrize("shape", [(224, 224), (48, 80)])
def test_shape_and_dtype_with_the_defaults(rng, shape):
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    for _ in range(50):
        result = rand_augment(image, rng)
        assert result.shape == image.shape and result.dtype == np.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": -1}, "operations=-1 must be 0 or more"),
        ({"magnitude": -0.1}, r"magnitude=-0.1 must be in \[0, 30\]"),
        ({"magnitude": 30.5}, r"magnitude=30.5 must be in \[0, 30\]"),
        ({"magnitude": float("nan")}, r"magnitude=nan must be in \[0, 30\]"),
    ],
)
def test_what_is_out_of_range_is_refused(image, rng, options, message):
    with pytest.raises(ValueError, match=message):
        rand_augment(image, rng, **options)
