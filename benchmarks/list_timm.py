"""Writes the rows of checkpoints/published.csv that are timm's: `python -m benchmarks.list_timm`.

It takes all that the installed timm says of its pretrained ViTs, DeiTs, hybrids and BiT ResNets
that are on Hugging Face's hub. Other rows stay as they are. Parameters are counted on PyTorch's
meta device, which takes some minutes.
"""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import import_torchvision

import_torchvision()  # before timm
import timm  # noqa: E402
import torch  # noqa: E402
from timm.models import get_pretrained_cfg, is_model_in_modules, list_pretrained  # noqa: E402

PATH = pathlib.Path(__file__).parents[1] / "checkpoints" / "published.csv"
MODULES = ("vision_transformer", "deit", "vision_transformer_hybrid", "resnetv2")

# The data that words of a tag stand for; the tag of DINO's and MAE's weights has the method alone.
_NAMED_AS_THEIR_DATA = (
    "bamboo|datacompxl|dfn2b|dfn5b|dfndr2b|laion2b|laion400m|lvd142m|metaclip2_worldwide|"
    "metaclip_2pt5b|metaclip_400m|webli|yfcc15m"
)
_DATA = {
    "in1k": "imagenet2012",
    "in12k": "imagenet12k",
    "in21k": "imagenet21k",
    "in22k": "imagenet22k",
    "dino": "imagenet2012",
    "mae": "imagenet2012",
    "openai": "wit400m",
    **{name: name for name in _NAMED_AS_THEIR_DATA.split("|")},
}


def rows() -> Iterator[dict[str, Any]]:
    """Yields a row for each of timm's weights, without the columns that need the model itself."""
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        known = get_pretrained_cfg(name)
        is_other = architecture.startswith("resnetv2") and "_bit" not in architecture
        if is_other or not is_model_in_modules(architecture, MODULES):
            continue
        if not (known.hf_hub_id or "").startswith("timm/"):
            continue
        _, height, width = known.input_size
        yield {
            "name": f"timm/{name}",
            "architecture": architecture,
            "resolution": height if height == width else f"{height}x{width}",
            "mean": _numbers(known.mean),
            "std": _numbers(known.std),
            "crop": _crop(known.crop_mode, known.crop_pct),
            "interpolation": f"{known.interpolation}_antialias",
            "data": _data(tag),
            "licence": known.license or "",
            "url": f"hf://{known.hf_hub_id}",
        }


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{x:.8g}" for x in (values[:1] if len(set(values)) == 1 else values))


def _crop(mode: str, share: float) -> str:
    return {"center": "", "squash": "squash "}[mode] + f"{share:g}"


def _data(tag: str) -> str:
    words = re.findall(rf"(?<![a-z0-9])({'|'.join(_DATA)})(?![a-z0-9])", tag)
    return "+".join(dict.fromkeys(_DATA[word] for word in words))


def parameters(architecture: str, num_classes: int) -> int:
    """Returns the number of a model's parameters, its head included."""
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=num_classes)
    return sum(x.numel() for x in model.parameters())


def main() -> None:
    """Replaces the rows of timm in `published.csv`."""
    with open(PATH, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames
        kept = [row for row in reader if not row["name"].startswith("timm/")]
    added = []
    for row in rows():
        num_classes = get_pretrained_cfg(row["name"].removeprefix("timm/")).num_classes
        count = parameters(row["architecture"], num_classes)
        added.append({**row, "parameters": count, "mebibytes": round(4 * count / 2**20)})
    with open(PATH, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *added])


if __name__ == "__main__":
    main()
