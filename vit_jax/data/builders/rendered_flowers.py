"""Five kinds of flowers, drawn by a program: a data set that needs no download.

Every image is drawn from its own random numbers. They decide the flower's colours, size, place,
rotation and tilt, its stem and leaves, the background, leaves in front of the flower, the light,
and the noise of a camera. The kinds share most of their colours, so that a model has to tell them
apart by shape and texture.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

logger = logging.getLogger(__name__)

SIZE = 64  # pixels
SPLITS = {"train": 3000, "test": 600}  # images
_SEED, _SEED_OF_EXAMPLES = 2010, 8
_SHIFT = 4  # binary places of the coordinates that cv2 gets
_SUPERSAMPLING = 3  # pixels of the canvas on each side of a pixel of the result
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
_ALONG = np.linspace(0, 1, 9)  # places along a petal
_BULGE = np.sin(np.pi * _ALONG**0.8)  # its half width there
Colour = np.ndarray | tuple[int, int, int]  # RGB, 0 to 255
WHITE, CREAM, YELLOW, ORANGE = (246, 244, 238), (244, 232, 180), (244, 208, 40), (236, 140, 40)
RED, PINK, PURPLE, BROWN = (196, 30, 44), (232, 130, 160), (140, 80, 170), (84, 52, 28)
GREEN = (70, 130, 54)


class _Canvas:
    """A picture on which shapes are drawn in a flower's own coordinates.

    Attributes:
      pixels: uint8 RGB (side, side, 3).
      pose: a matrix (2, 3) that maps a flower's coordinates to pixels. In these coordinates, the
        flower's centre is the origin and its radius is 1.
    """

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        self.pose = np.eye(2, 3)

    def fill(self, outline: np.ndarray, colour: np.ndarray) -> None:
        """Fills a polygon with a colour (3,); `outline` are its corners (n, 2)."""
        points = outline @ self.pose[:, :2].T + self.pose[:, 2]
        points = np.round(points * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self.pixels, [points], colour.tolist(), lineType=cv2.LINE_AA, shift=_SHIFT)


def _vary(rng: np.random.Generator, colour: Colour, amount: float = 18) -> np.ndarray:
    """Returns the colour (3,), made lighter or darker, and shifted a little."""
    return np.asarray(colour) + rng.normal(0, amount) + rng.normal(0, amount / 2, 3)


def _choose(rng: np.random.Generator, *colours: Colour) -> np.ndarray:
    """Returns one of the colours, varied."""
    return _vary(rng, colours[rng.integers(len(colours))])


def _rotate(outline: np.ndarray, angle: float) -> np.ndarray:
    """Returns points (n, 2) rotated round the origin; the angle is in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return outline @ np.array([[c, s], [-s, c]])


def _disc(radius: float, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Returns the outline (n, 2) of a disc."""
    return _CIRCLE * radius + centre


class _Petal(NamedTuple):
    """The shape of a petal along the x axis, from `start` to `length`.

    A `tip` of 1 is round, a larger one is pointed, a smaller one is blunt.
    """

    length: float
    width: float
    start: float
    tip: float

    def outline(self, stretch: float = 1.0) -> np.ndarray:
        """Returns the corners (n, 2), with the length multiplied by `stretch`."""
        half = self.width * _BULGE ** (0.6 * self.tip)
        along = self.start + (self.length * stretch - self.start) * _ALONG
        return np.array([[*along, *along[::-1]], [*half, *-half[::-1]]]).T


def _ring(
    canvas: _Canvas, rng: np.random.Generator, colour: np.ndarray, count: int, petal: _Petal
) -> None:
    """Draws a ring of petals, each a little different."""
    phase = rng.uniform(0, 6.3)
    for i in range(count):
        angle = phase + 2 * np.pi * (i + rng.normal(0, 0.12)) / count
        outline = petal.outline(stretch=rng.uniform(0.88, 1.06))
        canvas.fill(_rotate(outline, angle), _vary(rng, colour, 9))


def _speckle(
    canvas: _Canvas, rng: np.random.Generator, colour: Colour, radius: float, count: int, dot: float
) -> None:
    """Draws dots along the spiral of a sunflower's seeds, which covers a disc evenly."""
    for i in range(count):
        distance, angle = radius * np.sqrt((i + 0.5) / count), i * 2.39996
        centre = (distance * np.cos(angle), distance * np.sin(angle))
        canvas.fill(_disc(dot, centre), _vary(rng, colour, 26))


def _draw_daisy(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws many narrow petals round a small yellow disc."""
    colour = _choose(rng, WHITE, WHITE, PINK, RED, PURPLE, YELLOW)
    count = int(rng.integers(12, 20))
    for layer in range(2):
        _ring(
            canvas,
            rng,
            colour - 16 * (1 - layer),
            count,
            _Petal(length=1.0 - 0.06 * layer, width=0.11, start=0.15, tip=0.8),
        )
    radius = rng.uniform(0.24, 0.32)
    disc = _choose(rng, YELLOW, ORANGE)
    canvas.fill(_disc(radius), disc - 25)
    _speckle(canvas, rng, disc, radius * 0.9, 16, 0.06)


def _draw_dandelion(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws a dense head of thin rays, or the white ball of seeds."""
    if rng.random() < 0.3:
        colour = _choose(rng, WHITE, CREAM)
        for _ in range(70):
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
            ray = _rotate(_Petal(length, 0.012, 0.0, 1.0).outline(), angle)
            canvas.fill(ray, _vary(rng, colour - 40, 14))
            tuft = (length * np.cos(angle), length * np.sin(angle))
            canvas.fill(_disc(0.07, tuft), _vary(rng, colour, 14))
        canvas.fill(_disc(0.14), _vary(rng, BROWN))
        return
    colour = _vary(rng, YELLOW)
    for radius in (1.0, 0.8, 0.6, 0.4, 0.22):
        _ring(
            canvas,
            rng,
            colour + 28 * (0.6 - radius),
            int(34 * radius) + 8,
            _Petal(length=radius, width=0.045, start=0.0, tip=0.35),
        )


def _draw_rose(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws broad petals in a spiral, each over the one before, and darker towards the centre."""
    colour = _choose(rng, RED, RED, PINK, PURPLE, WHITE)
    phase, turns = rng.uniform(0, 6.3), int(rng.integers(13, 18))
    for i in range(turns):
        share = i / turns
        angle, distance = phase + i * 2.4, 0.5 * (1 - share) ** 0.8
        radius = 0.52 * (1 - share) + 0.12
        centre = (distance * np.cos(angle), distance * np.sin(angle))
        shade = _vary(rng, colour - 45 * share, 7)
        canvas.fill(_disc(radius, centre), shade - 55)
        inner = (centre[0] * 0.9, centre[1] * 0.9)
        canvas.fill(_disc(radius * 0.88, inner), shade)


def _draw_sunflower(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws pointed petals round a large dark disc."""
    colour = _choose(rng, YELLOW, YELLOW, YELLOW, ORANGE)
    count = int(rng.integers(14, 22))
    for layer in range(2):
        _ring(
            canvas,
            rng,
            colour - 22 * (1 - layer),
            count,
            _Petal(length=1.04 - 0.1 * layer, width=0.13, start=0.35, tip=1.7),
        )
    radius = rng.uniform(0.45, 0.58)
    disc = _vary(rng, BROWN, 14)
    canvas.fill(_disc(radius), disc)
    _speckle(canvas, rng, disc + 24, radius * 0.92, 40, 0.045)
    canvas.fill(_disc(radius * 0.4), _vary(rng, disc - 10, 10))


def _draw_tulip(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draws a cup of a few tall petals, seen from the side."""
    colour = _choose(rng, RED, PINK, PURPLE, WHITE, ORANGE)
    spread = rng.uniform(0.1, 0.4)
    back, front = _Petal(1.75, 0.4, 0.0, 1.2).outline(), _Petal(1.6, 0.44, 0.0, 1.1).outline()
    base = (0, 0.85)
    for outline, angle, shade in (
        (back, -spread * 0.7, -34),
        (back, spread * 0.7, -26),
        (front, -spread - 0.3, -8),
        (front, spread + 0.3, 2),
        (front, rng.normal(0, 0.06), 14),
    ):
        upright = _rotate(outline, angle - np.pi / 2) + base
        canvas.fill(upright, _vary(rng, colour + shade, 6))
        vein = _rotate(_Petal(1.3, 0.02, 0.2, 1.0).outline(), angle - np.pi / 2) + base
        canvas.fill(vein, colour + shade - 24)


_DRAW: dict[str, Callable[[_Canvas, np.random.Generator], None]] = {
    "daisy": _draw_daisy,
    "dandelion": _draw_dandelion,
    "rose": _draw_rose,
    "sunflower": _draw_sunflower,
    "tulip": _draw_tulip,
}
KINDS = tuple(_DRAW)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Returns a background, uint8 RGB (side, side, 3): smooth noise between two colours, and blobs.

    It may look like sky, grass, soil, or something out of focus.
    """
    tones = [(120, 170, 220), GREEN, (50, 90, 44), (110, 84, 60), (190, 200, 190), (40, 46, 50)]
    first, second = (_choose(rng, *tones) for _ in range(2))
    grain = int(rng.integers(2, 9))
    share = cv2.resize(rng.random((grain, grain)), (side, side), interpolation=cv2.INTER_CUBIC)
    picture = first + np.clip(share, 0, 1)[..., None] * (second - first)
    picture = np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 5)):
        centre = tuple(int(c) for c in rng.integers(0, side, 2))
        colour = _choose(rng, *tones, WHITE, YELLOW, PINK).tolist()
        cv2.circle(picture, centre, int(side * rng.uniform(0.03, 0.12)), colour, -1, cv2.LINE_AA)
    blur = int(side * rng.uniform(0.01, 0.05)) * 2 + 1
    return cv2.GaussianBlur(picture, (blur, blur), 0)


def _pose(
    rng: np.random.Generator, side: int, centre: np.ndarray, radius: float, upright: bool
) -> np.ndarray:
    """Returns a random pose, see `_Canvas`: a scale, a tilt, a rotation and a place.

    The tilt makes the flower shorter along one direction.
    """
    if upright:
        width, height = rng.uniform(0.65, 0.85), rng.uniform(0.9, 1.05)
        matrix = _rotate(np.eye(2), rng.normal(0, 0.25)) * (width, height)
    else:
        tilt = np.diag([1.0, rng.uniform(0.7, 1.0)])
        first, second = (_rotate(np.eye(2), a) for a in rng.uniform(0, 2 * np.pi, 2))
        matrix = first @ tilt @ second
    return np.hstack([matrix * radius * side, (centre * side)[:, None]])


def _leaf(canvas: _Canvas, rng: np.random.Generator, start: np.ndarray, length: float) -> None:
    """Draws a leaf in a random direction; `start` and `length` are shares of the picture's side."""
    side = canvas.pixels.shape[0]
    canvas.pose = np.hstack([np.eye(2) * side, (start * side)[:, None]])
    outline = _Petal(length, length * rng.uniform(0.08, 0.2), 0.0, 1.3).outline()
    canvas.fill(_rotate(outline, rng.uniform(0, 2 * np.pi)), _vary(rng, GREEN, 22))


def _plant(canvas: _Canvas, rng: np.random.Generator, kind: str, radius: float) -> None:
    """Draws one flower with its stem and leaves."""
    side = canvas.pixels.shape[0]
    centre = rng.uniform(0.28, 0.72, 2)
    foot = np.array([centre[0] + rng.normal(0, 0.15), 1.05])
    width = max(1, int(side * rng.uniform(0.015, 0.035)))
    head, root = ([int(c) for c in point * side] for point in (centre, foot))
    cv2.line(canvas.pixels, head, root, _vary(rng, GREEN, 20).tolist(), width, cv2.LINE_AA)
    for _ in range(rng.integers(0, 3)):
        _leaf(canvas, rng, centre + (foot - centre) * rng.uniform(0.4, 1), rng.uniform(0.15, 0.4))
    canvas.pose = _pose(rng, side, centre, radius, upright=kind == "tulip")
    _DRAW[kind](canvas, rng)


def _photograph(rng: np.random.Generator, pixels: np.ndarray, size: int) -> np.ndarray:
    """Returns the picture as a camera takes it, uint8 RGB (size, size, 3).

    It is reduced to its final size, and gets light from one side, a white balance, blur and noise.
    """
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    image: np.ndarray = small.astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = 1 + rng.uniform(0, 0.5) * (np.cos(angle) * x + np.sin(angle) * y)
    image *= light[..., None] * rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    image += rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def render(kind: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Returns an image of one or two flowers of a kind.

    Args:
      kind: one of `KINDS`.
      rng: where everything random is drawn from.
      size: side of the image in pixels.

    Returns:
      uint8 RGB (size, size, 3).

    Raises:
      KeyError: there is no such kind.
    """
    side = size * _SUPERSAMPLING
    canvas = _Canvas(_background(rng, side))
    flowers = int(rng.choice([1, 2], p=[0.94, 0.06]))
    for _ in range(flowers):
        _plant(canvas, rng, kind, rng.uniform(0.34, 0.47) / flowers**0.4)
    if rng.random() < 0.5:
        _leaf(canvas, rng, rng.uniform(0, 1, 2), rng.uniform(0.2, 0.4))
    return _photograph(rng, canvas.pixels, size)


def examples() -> dict[str, np.ndarray]:
    """Returns a flower of each kind, {kind: uint8 RGB (128, 128, 3)}, which the data set has not.

    They are always the same; the repository has them in docs/flowers.
    """
    rng = np.random.default_rng(_SEED_OF_EXAMPLES)
    return {kind: render(kind, rng, size=128) for kind in KINDS}


class RenderedFlowers(tfds.core.GeneratorBasedBuilder):
    """3,000 images to train on and 600 to test on, 64 x 64 pixels, as many of each kind."""

    VERSION = tfds.core.Version("1.0.0")

    def download_and_prepare(self, **options: Any) -> None:
        """Draws and stores the images; logs one line in place of tfds's lines and bars."""
        logger.info(
            "Drawing %d images of flowers, once, into %s", sum(SPLITS.values()), self.data_path
        )
        tfds.display_progress_bar(enable=False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                super().download_and_prepare(**options)
        finally:
            tfds.display_progress_bar(enable=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=KINDS),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {
            split: self._generate_examples(number, count)
            for number, (split, count) in enumerate(SPLITS.items())
        }

    def _generate_examples(self, split: int, count: int) -> Iterator[tuple[int, dict]]:
        for i in range(count):
            rng = np.random.Generator(np.random.Philox(key=[_SEED + split, i]))
            kind = KINDS[i % len(KINDS)]
            jpeg = simplejpeg.encode_jpeg(render(kind, rng), quality=90)
            yield i, {"image": io.BytesIO(jpeg), "label": kind}
