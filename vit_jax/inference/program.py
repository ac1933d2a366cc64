"""The program that is written beside an exported model: it classifies images without this package.

It reads an image and cuts out what evaluation does, see `data.pixels` and `data.resizing`.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import string
import sys
import types
from typing import Any

from vit_jax.data import pixels, resizing
from vit_jax.data.decoding import FORMATS
from vit_jax.data.transforms import view_of

# A file of one of these names would be imported in the place of what the program needs.
HIDING = {*sys.stdlib_module_names, "PIL", "cv2", "flatbuffers", "jax", "jaxlib", "ml_dtypes"}
HIDING |= {"numpy", "onnx", "onnxruntime", "opt_einsum", "scipy"}

_PROGRAM = string.Template('''\
"""Prints the $purpose of images, by the $variant in the file beside this one.

It needs these packages, and not vit_jax:

  pip install $packages
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

$imports
from PIL import ExifTags, Image

MODEL = pathlib.Path(__file__).with_name($file)
SIZE = $size  # height and width, in pixels, of the model's images
$load


def run(images):
    """Returns the model's $output, float32 (b, $outputs), of uint8 RGB images ($shape)."""
    return $run


def read_image(file):
    """Returns an image as uint8 RGB (height, width, 3), upright."""
    try:
        with Image.open(file, formats=$formats) as image:
$reduce            return from_pillow(image, $background)
    except Exception as error:  # damaged files make decoders raise errors of many kinds
        raise OSError(str(error) or type(error).__name__) from error


$pixels

$resizing

def crop(image):
    """Returns the part of the image that the model sees, resized to SIZE."""
    return EVAL_CROPS[$eval_crop](image, SIZE, $crop_fraction, $eval_resize)


$answer


def shown(text):
    """Returns a text with what a terminal can't show, such as a newline, as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(f"python {sys.argv[0]} PHOTO.jpg")
    sys.stdout.reconfigure(errors="backslashreplace")
    for file in sys.argv[1:]:
        try:
            print(*map(shown, [file, *answer(file)]), sep="  ")
        except OSError as error:
            sys.exit(f"{shown(file)}: {shown(error)}")
''')

_REDUCE = """\
            if image.format in ("JPEG", "MPO"):
                height, width = image.height, image.width
                sides = (width, height) if read_orientation(image) > 4 else (height, width)
                factor = find_view_factor(sides, SIZE, $eval_crop, $crop_fraction)
                image.draft(image.mode, (max(1, width // factor), max(1, height // factor)))
"""  # of `config.data.decode="scaled"`

_JAX = {
    "packages": "jax flatbuffers",
    "imports": "import cv2\nimport jax\nimport jax.export\nimport numpy as np",
    "load": """\
NAMES = json.loads(MODEL.with_suffix(".json").read_text("utf-8"))["class_names"]
call = jax.jit(jax.export.deserialize(bytearray(MODEL.read_bytes())).call)""",
    "run": "np.asarray(call(images))",
}

_ONNX = {
    "packages": "onnxruntime",
    "imports": "import cv2\nimport numpy as np\nimport onnxruntime",
    "load": """\
session = onnxruntime.InferenceSession(
    MODEL.read_bytes(), providers=onnxruntime.get_available_providers()
)
NAMES = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])""",
    "run": 'session.run(None, {"images": images})[0]',
}

_CLASSES = '''\
def classify(file, top=3):
    """Returns the likeliest classes of an image: [(name, probability)]."""
    (logits,) = run(crop(read_image(file))[None])
    shares = $shares
    best = np.argsort(-shares, kind="stable")[:top]
    return [(NAMES[i] if NAMES else f"class {i}", float(shares[i])) for i in best]


def answer(file):
    """Returns the likeliest classes of an image, as text."""
    return [f"{name} {100 * share:.1f} %" for name, share in classify(file)]'''

_SHARES = {  # by the loss that the head was trained with
    "softmax": "np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()",
    "sigmoid": "0.5 + 0.5 * np.tanh(0.5 * logits)  # of each class by itself",
}

_REPRESENTATION = '''\
def answer(file):
    """Returns the representation of an image."""
    return run(crop(read_image(file))[None])[0]'''


def program(destination: str | os.PathLike, description: dict[str, Any]) -> str:
    """Returns a program, as text, that prints the likeliest classes of images.

    It runs an exported file, which it finds in its own folder. For a model without a head, it
    prints representations.

    Args:
      destination: the exported file's path.
      description: what `exporter.export` returned when it wrote the file.
    """
    images, outputs = description["input"], description["output"]
    has_head = outputs["name"] == "logits"
    view = view_of(description)
    shown = {key: repr(value) for key, value in view._asdict().items()}
    parts = _JAX if "platforms" in description else _ONNX
    answer = _CLASSES.replace("$shares", _SHARES[description["probabilities"]])
    return _PROGRAM.substitute(
        parts,
        packages=f"numpy pillow opencv-python-headless {parts['packages']}",
        purpose="likeliest classes" if has_head else "representations",
        variant=description["variant"],
        file=repr(pathlib.Path(destination).name),
        size=tuple(images["shape"][1:3]),
        output=outputs["name"],
        outputs=outputs["shape"][1],
        shape=", ".join(map(str, images["shape"])),
        formats=FORMATS,
        reduce=string.Template(_REDUCE).substitute(shown) * (view.decode == "scaled"),
        pixels=_source(pixels, "_TILE = ", "def from_array"),
        resizing=_source(resizing, "def resize("),
        **shown,
        answer=answer if has_head else _REPRESENTATION,
    )


def _source(module: types.ModuleType, first: str, after: str = "") -> str:
    """Returns the source of a module from one text to before another, or to its end."""
    source = inspect.getsource(module)
    end = source.index(after) if after else len(source)
    return source[source.index(first) : end].rstrip() + "\n"
