"""Finding weights: from a path, address or name to a file or folder on this machine.

Downloads go to `checkpoints/` under a temporary name that tells the version on the server, so
that what broke off goes on where it stopped and a file is there only when it is whole.
"""

from __future__ import annotations

import base64
import csv
import difflib
import hashlib
import http.client
import logging
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import tqdm

from vit_jax import models

logger = logging.getLogger(__name__)

CHECKPOINTS = pathlib.Path(__file__).parents[2] / "checkpoints"
AUGREG = "gs://vit_models/augreg"
FILES = (".npz", ".safetensors", ".pth", ".pt", ".bin")

_ATTEMPTS = 5  # that may fail one after the other without a single new byte
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20  # bytes


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
            Published(r["name"], r["variant"], int(r["resolution"]), r["data"], r["url"],
                      int(r["mebibytes"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip
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


def fetch(url: str, path: str | os.PathLike) -> None:
    """Downloads a file, going on from where an earlier attempt broke off.

    Its size is checked, and its MD5 or SHA-256 where the server tells one (as Google's and
    Hugging Face's do).

    Args:
      url: https, or http on this very machine.
      path: where the file comes to be when it is whole.

    Raises:
      FileNotFoundError: the server has no such file.
      ValueError: not such an address; the server refuses it or breaks off again and again; or
        what came is not what the server said it would be.
    """
    _secure(url)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = most = 0
    while True:
        try:
            partial, told = _continue(url, path)
            break
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(f"There is no {url}.") from error
            if error.code < 500 and error.code not in (408, 429):  # asking again won't help
                why = f"{error.code} {error.reason}"
                raise ValueError(f"{url} can't be downloaded: {why}.") from error
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        came = _received(path)
        failures = 0 if came > most else failures + 1
        most = max(most, came)
        if failures == _ATTEMPTS:
            raise ValueError(
                f"{url} can't be downloaded: {problem}. The {came} bytes that came are kept; the "
                f"same command goes on from there."
            ) from problem
        logger.info("%s broke off (%s); going on at byte %d", url, problem, came)
        time.sleep(_PAUSE * 2**failures)
    _check(partial, url, told)
    partial.rename(path)


_PAUSE = 0.5  # seconds after a first failure, doubled after each further one


class _Told(NamedTuple):
    """What a server tells of a file: its version, bytes, and hashes ("md5" or "sha256")."""

    version: str | None
    size: int | None
    hashes: dict[str, str]


def _continue(url: str, path: pathlib.Path) -> tuple[pathlib.Path, _Told]:
    """Downloads what is missing of a file; returns its temporary path."""
    with _open(url) as response:
        told = _told(response)
        mark = hashlib.sha256((told.version or url).encode()).hexdigest()[:12]
        partial = path.with_name(f".{path.name}.{mark}.part")
        done = partial.stat().st_size if partial.exists() else 0
        if not done or None in (told.version, told.size) or done > told.size:
            _receive(response, partial, "wb", path.name, told.size)
            return partial, told
    if done < told.size:
        headers = {"Range": f"bytes={done}-", "If-Range": told.version}
        with _open(url, headers) as response:
            mode = "ab" if response.status == 206 else "wb"  # or it sends all of it once more
            _receive(response, partial, mode, path.name, told.size)
    return partial, told


def _received(path: pathlib.Path) -> int:
    return max((p.stat().st_size for p in path.parent.glob(f".{path.name}.*.part")), default=0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to secure addresses alone, and keeps the headers of what redirected.

    Hugging Face tells a file's hash before it sends on to where the file is.
    """

    def __init__(self):
        self.headers: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _secure(newurl)
        self.headers |= {name.lower(): value for name, value in headers.items()}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Returns the response of an address, with the headers of redirects to it as `linked`."""
    agent = {"User-Agent": "vit_jax", "Accept-Encoding": "identity"}
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={**agent, **headers})
    response = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT)
    response.linked = redirects.headers
    return response


def _secure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not local:
        raise ValueError(f"{url}: weights are downloaded over https only.")


def _receive(
    response: Any, partial: pathlib.Path, mode: str, name: str, size: int | None
) -> None:
    with (
        open(partial, mode) as file,
        tqdm(desc=name, total=size, initial=file.tell(), unit="B", unit_scale=True) as bar,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        if size is not None and file.tell() < size:
            raise OSError(f"only {file.tell()} of {size} bytes came")


def _told(response: Any) -> _Told:
    headers, hashes = response.headers, {}
    for entry in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, value = entry.strip().partition("=")
        if kind == "md5":
            hashes["md5"] = base64.b64decode(value).hex()
    linked = response.linked.get("x-linked-etag", "").strip('"')
    if re.fullmatch("[0-9a-f]{64}", linked):
        hashes["sha256"] = linked
    length = headers.get("Content-Length")
    version = headers.get("ETag") or headers.get("Last-Modified")
    return _Told(version, int(length) if length else None, hashes)


def _check(partial: pathlib.Path, url: str, told: _Told) -> None:
    """Compares a whole file with what the server told of it; removes it where it differs."""
    size = partial.stat().st_size
    problem = f"it has {size} bytes, not {told.size}" if told.size not in (None, size) else ""
    for kind, expected in told.hashes.items():
        with open(partial, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != expected:
            problem = f"its {kind} is {found}, not {expected}"
    if problem:
        partial.unlink()
        raise ValueError(f"{url} came damaged: {problem}. It was removed; try again.")
