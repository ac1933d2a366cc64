"""Where weights are: paths, addresses, and the names of published checkpoints."""

from __future__ import annotations

import csv
import logging
import os
import pathlib
import urllib.parse
from typing import NamedTuple

from vit_jax import models
from vit_jax.common.files import local_path, looks_like_path
from vit_jax.common.messages import closest
from vit_jax.common.repository import IS_CLONE, REPOSITORY, find_in_repository
from vit_jax.weights.download import fetch
from vit_jax.weights.formats import SUFFIXES

logger = logging.getLogger(__name__)

CHECKPOINTS = REPOSITORY / "checkpoints"  # of a clone: downloads go there, see `_downloads`
_AUGREG = "vit_models/augreg"  # BUCKET/FOLDER in Google Cloud Storage


class Published(NamedTuple):
    """A row of checkpoints/published.csv: a public checkpoint.

    Attributes:
      name: what `load` knows it by, such as "imagenet21k/ViT-B_16".
      variant: a key of `models.VARIANTS`.
      resolution: a side of its images, in pixels.
      data: what it was trained on, such as "imagenet21k+imagenet2012".
      url: address of the file (`gs://`), or of the folder (`hf://`).
      mebibytes: size of the file.
    """

    name: str
    variant: str
    resolution: int
    data: str
    url: str
    mebibytes: int


def published() -> dict[str, Published]:
    """Returns the public checkpoints by name, from checkpoints/published.csv."""
    path = REPOSITORY / "checkpoints" / "published.csv"
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [
            Published(
                name=row["name"],
                variant=row["variant"],
                resolution=int(row["resolution"]),
                data=row["data"],
                url=row["url"],
                mebibytes=int(row["mebibytes"]),
            )
            for row in csv.DictReader(file)
        ]
    return {row.name: row for row in rows}


def published_source(variant: str) -> str | None:
    """Returns what `find` takes for published weights of a variant, or None if none are known.

    Args:
      variant: a key of `models.VARIANTS`.
    """
    names = [row.name for row in published().values() if row.variant == variant]
    if any(name.startswith("augreg/") for name in names):
        return variant  # the best of them
    return next(iter(names), None)


def find(source: str | os.PathLike) -> str:
    """Returns the path of weights on this machine, after a download if that is necessary.

    An Orbax checkpoint in a bucket is not downloaded: its path is returned as it is.

    Args:
      source: a path, an address or a name, see `api.load`.

    Raises:
      FileNotFoundError: the source is neither a path, nor an address, nor a known name; or the
        server has no such file.
      ValueError: the source can't be downloaded; says why.
    """
    source = os.fspath(source)
    if "://" not in source:
        if (path := local_path(find_in_repository(source))).exists():
            return str(path)
        return find(_address_of(source))
    scheme, rest = source.split("://", 1)
    if scheme == "hf":
        return _fetch_from_hub(rest)
    if scheme == "gs":
        if not rest.endswith(SUFFIXES):
            return source
        return _fetch_once(f"{_storage()}/{urllib.parse.quote(rest)}", rest)
    if scheme in ("https", "http"):
        parts = urllib.parse.urlsplit(source)
        if not parts.path.endswith(SUFFIXES):
            raise ValueError(f"{source} isn't the address of a file ({', '.join(SUFFIXES)}).")
        return _fetch_once(source, f"{parts.hostname}{urllib.parse.unquote(parts.path)}")
    raise ValueError(f"{source}: weights are read from hf://, gs:// and https:// addresses.")


def _address_of(name: str) -> str:
    """Returns the address of a published checkpoint; for a variant's name, of AugReg's best."""
    rows = {} if looks_like_path(name) else published()
    if name in rows:
        logger.info("%s: %d MiB from %s", name, rows[name].mebibytes, rows[name].url)
        return rows[name].url
    try:
        variant = models.canonical(name)
    except ValueError:
        raise FileNotFoundError(
            f"There is no {name}: neither a file or folder, nor a name in "
            f"checkpoints/published.csv, nor a model variant"
            f"{closest(name, rows, most=3, likeness=0.4)}."
        ) from None
    return _best_of_augreg(variant)


def _best_of_augreg(variant: str) -> str:
    """Returns the address of AugReg's best checkpoint of ImageNet-21k.

    The best has the highest accuracy on the validation split. AugReg is Steiner et al., arXiv
    2106.10270. Its index.csv has a row for each fine-tuning of each checkpoint.
    """
    logger.info("%s: looking for the best checkpoint in AugReg's index", variant)
    index = _fetch_once(f"{_storage()}/{_AUGREG}/index.csv", f"{_AUGREG}/index.csv")
    with open(index, encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["ds"] == "i21k"]
    of_variant = [row for row in rows if row["name"] == variant]
    if not of_variant:
        known = ", ".join(sorted({row["name"] for row in rows}))
        raise FileNotFoundError(f"AugReg has no checkpoint of {variant} on ImageNet-21k: {known}.")
    best = max(of_variant, key=lambda row: float(row["final_val"]))
    logger.info("%s: %s, %s on validation", variant, best["filename"], best["final_val"])
    return f"gs://{_AUGREG}/{best['filename']}.npz"


def _fetch_from_hub(name: str) -> str:
    """Returns the folder of a model of the Hugging Face hub, after downloading it.

    Args:
      name: ORGANISATION/NAME, or ORGANISATION/NAME@REVISION.
    """
    name, _, revision = name.strip("/").partition("@")
    revision = revision or "main"
    if name.count("/") != 1:
        raise ValueError(f"hf://{name} isn't hf://ORGANISATION/NAME.")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    folder = f"huggingface.co/{name}/{revision}"

    def fetch_file(file: str) -> str:
        return _fetch_once(f"{endpoint}/{name}/resolve/{revision}/{file}", f"{folder}/{file}")

    config = fetch_file("config.json")
    try:
        fetch_file("model.safetensors")
    except FileNotFoundError:  # an older model
        fetch_file("pytorch_model.bin")
    return str(pathlib.Path(config).parent)


def _storage() -> str:
    """Returns the address of Google Cloud Storage, or of the emulator that its clients use."""
    return os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")


def _downloads() -> pathlib.Path:
    """Returns the folder of downloads: of a clone, `checkpoints/`; of a wheel, the user's cache.

    Raises:
      FileNotFoundError: the user has no home folder, see `local_path`.
    """
    if IS_CLONE:
        return CHECKPOINTS
    cache = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache / "vit_jax" / "checkpoints"


def _fetch_once(url: str, name: str) -> str:
    """Returns the path of `name` among the downloads; `url` is downloaded if nothing is there."""
    path = _downloads().joinpath(*(part for part in name.split("/") if part not in ("", ".", "..")))
    if not path.exists():
        fetch(url, path)
    return str(path)
