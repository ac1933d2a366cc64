"""Where weights are: paths, addresses, and the names of published checkpoints."""

from __future__ import annotations

import csv
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax import models
from vit_jax.checkpoints.best import BEST
from vit_jax.checkpoints.checkpoint import find_checkpoint, run_of_best
from vit_jax.common.files import local_path, looks_like_path
from vit_jax.common.messages import closest
from vit_jax.common.names import printable
from vit_jax.common.repository import IS_CLONE, REPOSITORY, find_in_repository
from vit_jax.weights import hub
from vit_jax.weights.download import fetch
from vit_jax.weights.formats import SUFFIXES

logger = logging.getLogger(__name__)

CHECKPOINTS = REPOSITORY / "checkpoints"  # of a clone: downloads go there, see `_downloads`
_AUGREG = "vit_models/augreg"  # BUCKET/FOLDER in Google Cloud Storage


class Published(NamedTuple):
    """A row of checkpoints/published.csv: a public checkpoint.

    Attributes:
      name: what `load` knows it by, such as "imagenet21k/ViT-B_16".
      variant: a key of `models.VARIANTS`. "" if `architecture` says what it is.
      architecture: timm's name of the model, or the name of transformers' class. "" if the
        checkpoint is of neither.
      attributes: attributes of the model that no array of the file shows.
      resolution: a side of its images, in pixels.
      mean, std: what is subtracted from pixels in [0, 1], and what the difference is divided by,
        for red, green and blue. None if that is not known.
      view: how images are resized and cut in evaluation: keys of `config.data`. {} if that is not
        known.
      data: what it was trained on, such as "imagenet21k+imagenet2012". "" if that is not known.
      licence: its identifier, such as "apache-2.0". "" if that is not known.
      parameters: the number of parameters of the image model.
      mebibytes: size of the file.
      url: address of the file (`gs://`), or of the folder (`hf://`).
    """

    name: str
    variant: str
    architecture: str
    attributes: Mapping[str, str]
    resolution: int
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    view: Mapping[str, Any]
    data: str
    licence: str
    parameters: int
    mebibytes: int
    url: str


def published() -> dict[str, Published]:
    """Returns the public checkpoints by name, from checkpoints/published.csv."""
    path = REPOSITORY / "checkpoints" / "published.csv"
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [
            Published(
                name=row["name"],
                variant=row["variant"],
                architecture=row["architecture"],
                attributes=dict(pair.split("=") for pair in row["attributes"].split()),
                resolution=int(row["resolution"]),
                mean=_three_numbers(row["mean"]),
                std=_three_numbers(row["std"]),
                view=_view(row["crop"], row["interpolation"]),
                data=row["data"],
                licence=row["licence"],
                parameters=int(row["parameters"]),
                mebibytes=int(row["mebibytes"]),
                url=row["url"],
            )
            for row in csv.DictReader(file)
        ]
    return {row.name: row for row in rows}


def _three_numbers(text: str) -> tuple[float, float, float] | None:
    """Returns the numbers of a column such as "0.5", which stands for three, or "0.5 0.4 0.3"."""
    numbers = [float(x) for x in text.split()]
    if not numbers:
        return None
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _view(crop: str, interpolation: str) -> dict[str, Any]:
    """Returns keys of `config.data` for the columns `crop` and `interpolation`."""
    if not crop or not interpolation:
        return {}
    kind, _, share = crop.rpartition(" ")
    if crop in ("whole", "squash 1"):
        kind, share = "whole", "1"
    return {
        "eval_crop": kind or "central",
        "crop_fraction": float(share),
        "eval_resize": interpolation,
    }


def published_source(variant: str) -> str | None:
    """Returns what `find` takes for published weights of a variant, or None if none are known.

    Args:
      variant: a key of `models.VARIANTS`.
    """
    names = [row.name for row in published().values() if row.variant == variant]
    if any(name.startswith("augreg/") for name in names):
        return variant  # the best of them
    return next(iter(names), None)


def published_row(source: str | os.PathLike) -> Published | None:
    """Returns the row of a published checkpoint. None if `source` is no such checkpoint.

    Args:
      source: as for `find`: the checkpoint's name or address, or the path of its download.
    """
    source = os.fspath(source)
    rows = published()
    if source in rows and not local_path(source).exists():
        return rows[source]
    place = source.replace(os.sep, "/")
    for row in rows.values():
        scheme, _, rest = row.url.partition("://")
        if source == row.url or (scheme == "gs" and place.endswith(f"/{rest}")):
            return row
    return None


def timm_row(name: str) -> Published | None:
    """Returns the row of timm's weights with a name; without a tag, what all its weights share.

    Args:
      name: such as "vit_base_patch16_clip_224.openai", also with "timm/" before it.

    Returns:
      The row. Of a name without a tag, `mean` and `std` are None and `view` is {} where its weights
      differ, and only these and `architecture` have a meaning. None if timm publishes no weights of
      this name.
    """
    name = name.removeprefix("timm/")
    rows = published()
    if (row := rows.get(f"timm/{name}")) is not None:
        return row
    found = [row for row in rows.values() if row.architecture == name and _is_timms(row)]
    if not found:
        return None
    first, *others = found
    if any((row.mean, row.std) != (first.mean, first.std) for row in others):
        first = first._replace(mean=None, std=None)
    if any(row.view != first.view for row in others):
        first = first._replace(view={})
    return first


def _is_timms(row: Published) -> bool:
    return row.name.startswith("timm/")


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
    if source.startswith(hub.PREFIXES):
        return _download_from_hub(source)
    if "://" not in source:
        if (path := local_path(find_in_repository(source))).exists():
            return str(path)
        if run := run_of_best(source):
            return str(find_checkpoint(find_in_repository(run) + BEST))
        return find(_address_of(source))
    scheme, rest = source.split("://", 1)
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
        may_be_on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
        on_hub = f" A model of the Hugging Face hub is hf://{name}." * may_be_on_hub
        raise FileNotFoundError(
            f"There is no {name}: neither a file or folder, nor a name in "
            f"checkpoints/published.csv, nor a model variant"
            f"{closest(name, rows, most=3, likeness=0.4)}."
            f"{on_hub}"
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


def _download_from_hub(address: str) -> str:
    """Returns the folder of a model of the Hugging Face hub, after downloading it."""
    name, revision = hub.split_name(address)
    older = _downloads() / "huggingface.co" / name / revision
    if older.is_dir():
        logger.warning(
            "%s holds an older download of hf://%s, which is not read any more: it may lack the "
            "mean and standard deviation of its images. Delete it.",
            printable(older),
            name,
        )
    return hub.download(address)


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
