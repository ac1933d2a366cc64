"""catalogue"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from vit_jax import models
from vit_jax.weights.download import fetch

logger = logging.getLogger(__name__)

CHECKPOINTS = pathlib.Path(__file__).parents[2] / "checkpoints"
AUGREG = "gs://vit_models/augreg"
FILES = (".npz", ".safetensors", ".pth", ".pt", ".bin")


class Published(NamedTuple):
    """A row of checkpoints/published.csv: a public checkpoint, its images' side and its size."""

    name: str
    variant: str
    resolution: int
    data: str
    url: str
    mebibytes: int


def published() -> dict[str, Published]:
    """Returns the public checkpoints by name.

    Raises:
      FileNotFoundError: the package was installed without its repository, which has the list.
    """
    path = CHECKPOINTS / "published.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: names of published checkpoints are known in a checkout of the "
            f"repository alone. Give a path or a URL instead."
        )
    with open(path, newline="", encoding="utf-8") as file:
        rows = [
            Published(
                r["name"],
                r["variant"],
                int(r["resolution"]),
                r["data"],
                r["url"],
                int(r["mebibytes"]),
            )
            for r in csv.DictReader(file)
        ]
    return {row.name: row for row in rows}


def find(source: str | os.PathLike) -> str:
    """Returns the path of a source of weights, after downloading it if need be.

    Args:
      source: see `vit_jax.interop.restore`.

    Raises:
      FileNotFoundError: it is neither a path, nor an address, nor a known name.
      ValueError: it can't be downloaded; says why.
    """
    source = os.fspath(source)
    if "://" not in source:
        if pathlib.Path(source).expanduser().exists():
            return str(pathlib.Path(source).expanduser())
        return find(_named(source))
    scheme, rest = source.split("://", 1)
    if scheme == "hf":
        return _hugging_face(rest)
    if scheme == "gs":
        if not rest.endswith(FILES):
            return source  # a folder of Orbax, which reads buckets itself
        return _fetched(f"{_gcs()}/{urllib.parse.quote(rest)}", rest)
    if scheme in ("https", "http"):
        parts = urllib.parse.urlsplit(source)
        if not parts.path.endswith(FILES):
            raise ValueError(f"{source} isn't the address of a file ({', '.join(FILES)}).")
        return _fetched(source, f"{parts.hostname}{urllib.parse.unquote(parts.path)}")
    raise ValueError(f"{source}: weights are read from hf://, gs:// and https:// addresses.")


def _named(name: str) -> str:
    """Returns the address of a published checkpoint, or of AugReg's best for a bare variant."""
    rows = published() if not name.startswith(("/", ".", "~")) else {}
    if name in rows:
        logger.info("%s: %d MiB from %s", name, rows[name].mebibytes, rows[name].url)
        return rows[name].url
    try:
        variant = models.canonical(name)
    except ValueError:
        pass
    else:
        return _augreg(variant)
    close = difflib.get_close_matches(name, rows, n=3, cutoff=0.4)
    hint = f" Names close to it: {', '.join(close)}." if close else ""
    raise FileNotFoundError(
        f"There is no {name}: neither a file or folder, nor a name in checkpoints/published.csv, "
        f"nor a model variant.{hint}"
    )


def _augreg(variant: str) -> str:
    """Returns the best AugReg checkpoint of ImageNet-21k, by accuracy on its validation split.

    (Steiner et al., arXiv 2106.10270; the index has a row for each fine-tuning.)
    """
    url = f"{_gcs()}/{AUGREG.removeprefix('gs://')}/index.csv"
    with open(_fetched(url, f"{AUGREG.removeprefix('gs://')}/index.csv"), encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["ds"] == "i21k"]
    of_variant = [row for row in rows if row["name"] == variant]
    if not of_variant:
        known = ", ".join(sorted({row["name"] for row in rows}))
        raise FileNotFoundError(f"AugReg has no checkpoint of {variant} on ImageNet-21k: {known}.")
    best = max(of_variant, key=lambda row: float(row["final_val"]))
    logger.info("%s: %s, %s on validation", variant, best["filename"], best["final_val"])
    return f"{AUGREG}/{best['filename']}.npz"


def _hugging_face(name: str) -> str:
    """Downloads a model of the Hugging Face hub: ORGANISATION/NAME, or …/NAME@REVISION."""
    name, _, revision = name.strip("/").partition("@")
    revision = revision or "main"
    if name.count("/") != 1:
        raise ValueError(f"hf://{name} isn't hf://ORGANISATION/NAME.")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    folder = f"huggingface.co/{name}/{revision}"

    def fetched(file):
        return _fetched(f"{endpoint}/{name}/resolve/{revision}/{file}", f"{folder}/{file}")

    config = fetched("config.json")
    try:
        fetched("model.safetensors")
    except FileNotFoundError:
        fetched("pytorch_model.bin")  # what older models have
    return str(pathlib.Path(config).parent)


def _gcs() -> str:
    """Google Cloud Storage, or the emulator that its own clients would take."""
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def _fetched(url: str, name: str) -> str:
    """Returns CHECKPOINTS/name, downloaded from `url` unless it is there."""
    path = CHECKPOINTS.joinpath(*(part for part in name.split("/") if part not in ("", ".", "..")))
    if not path.exists():
        fetch(url, path)
    return str(path)
