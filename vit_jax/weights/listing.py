"""The list of published checkpoints as text."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator

from vit_jax.weights.architectures import CLIP, IMAGENET
from vit_jax.weights.catalogue import Published
from vit_jax.weights.tensor_file import UNCHANGED

# Means and standard deviations that have a name; others are written out.
_SCALES = {
    (UNCHANGED, UNCHANGED): "0.5",
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)): "none",
    IMAGENET: "ImageNet",
    CLIP: "CLIP",
}
_HEADER = """
Two lines each: the name, and what it was trained on; then the parameters of the image model, the
side of its images in pixels, the size of the download, the mean and the standard deviation of its
images, what evaluation sees of them, its licence, and which model it is.
Mean and standard deviation, of pixels in [0, 1]: 0.5: both are 0.5; none: 0 and 1; ImageNet: 0.485
0.456 0.406 and 0.229 0.224 0.225; CLIP: 0.4815 0.4578 0.4082 and 0.2686 0.2613 0.2758; -: unknown.
Evaluation: the central share, or the whole image, and how it is resized. -: unknown.
""".strip()


def list_published(rows: Iterable[Published], pattern: str = "") -> str:
    """Returns lines on published checkpoints, each of at most 100 characters.

    Args:
      rows: the checkpoints.
      pattern: only those are listed whose name, model, data or licence holds it, whatever its
        case; `*` and `?` stand for any characters.

    Raises:
      ValueError: there is none.
    """
    found = [row for row in rows if any(_holds(text, pattern) for text in _searched(row))]
    if not found:
        raise ValueError(f"checkpoints/published.csv has nothing with {pattern!r}.")
    lines = [line for row in found for line in _lines(row)]
    count = f"{len(found)} checkpoint{'s' * (len(found) != 1)}."
    return "\n".join([_HEADER, "", *lines, "", count])


def _searched(row: Published) -> tuple[str, ...]:
    return row.name, row.variant, row.architecture, row.data, row.licence


def _holds(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(text.lower(), f"*{pattern.lower()}*")


def _lines(row: Published) -> Iterator[str]:
    yield f"{row.name:<62} {row.data or '-'}".rstrip()
    model = row.variant or ("" if row.architecture in row.name else row.architecture)
    scale = _SCALES.get((row.mean, row.std), "-") if row.mean and row.std else "-"
    size = f"{row.resolution}px"
    yield (
        f"  {row.parameters / 1e6:>5.0f}M {size:>5} {row.mebibytes:>4}MiB {scale:<8} "
        f"{_seen(row):<14} {row.licence or '-':<10} {model}"
    ).rstrip()


def _seen(row: Published) -> str:
    """Returns what evaluation sees of an image: "0.875 bicubic", or "whole bilinear"."""
    if not row.view:
        return "-"
    crop, share = row.view["eval_crop"], f"{row.view['crop_fraction']:.3g}"
    part = {"central": share, "whole": "whole"}.get(crop, f"{crop} {share}")
    return f"{part} {row.view['eval_resize'].removesuffix('_antialias')}"
