"""download"""

from __future__ import annotations

import base64
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

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # that may fail one after the other without a single new byte
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 2**20  # bytes


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


def _receive(response: Any, partial: pathlib.Path, mode: str, name: str, size: int | None) -> None:
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
