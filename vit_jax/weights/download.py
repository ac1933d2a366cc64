"""Downloads of single files over https: continued where they broke off, and checked."""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import os
import pathlib
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vit_jax.common.bars import progress_bar
from vit_jax.common.files import FULL_DISK, cannot_write, no_empty_folders

logger = logging.getLogger(__name__)

_ATTEMPTS = 5  # in a row that may fail without a single new byte
_PAUSE = 0.5  # seconds after a first failure, doubled after each further one
_TIMEOUT = 30  # seconds without a byte
_PATIENCE = _PAUSE * (2**_ATTEMPTS - 2)  # seconds of all pauses, without a single new byte
_CHUNK = 2**20  # bytes


def fetch(url: str, path: str | os.PathLike) -> None:
    """Downloads a file; an earlier attempt that broke off is continued.

    The file's size is checked if the server announces it, and so is its MD5 (Google's servers).

    Args:
      url: an https address, or http on this very machine.
      path: gets the file when it is complete.

    Raises:
      FileNotFoundError: the server has no such file.
      ValueError: the address is of another kind, the server refuses it or breaks off again and
        again, or the file is not what the server announced.
      OSError: the folder can't be written; or the disk is full, then nothing is left of the file.
    """
    _require_secure(url)
    path = pathlib.Path(path)
    with no_empty_folders(path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise OSError(
                f"{cannot_write(path.parent, error)} Downloads are kept there: make it writable, "
                f"or download {url} to another folder and give the path of the file."
            ) from error
        partial, announced = _receive_all(url, path)
        _check(partial, url, announced)
    partial.rename(path)


def _receive_all(url: str, path: pathlib.Path) -> tuple[pathlib.Path, _Announced]:
    """Downloads a file by several attempts; returns what `_continue` returns."""
    failures = most = 0
    has_warned = False
    while True:
        try:
            return _continue(url, path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(f"There is no {url}.") from error
            why = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):  # asking again won't help
                raise ValueError(f"{url} can't be downloaded: {why}.") from error
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)  # urllib wraps the system's own error
            if getattr(reason, "errno", None) in FULL_DISK:
                for partial in path.parent.glob(f".{path.name}.*.part"):
                    partial.unlink()
                raise OSError(cannot_write(path, reason)) from error
            why, problem = getattr(reason, "strerror", None) or str(reason), error
        received = _remove_empty_parts(path)
        failures = 0 if received > most else failures + 1
        most = max(most, received)
        if failures == _ATTEMPTS:
            kept = f" The {received} bytes that came are kept; the same command goes on from there."
            raise ValueError(
                f"{url} can't be downloaded: {why}. Check the network, or give the path of a file "
                f"that was downloaded elsewhere.{kept * (received > 0)}"
            ) from problem
        if not has_warned:
            logger.warning("%s: %s. Trying again for %d s or longer.", url, why, _PATIENCE)
            has_warned = True
        time.sleep(_PAUSE * 2**failures)


class _Announced(NamedTuple):
    """What a server says of a file.

    Attributes:
      version: changes when the file changes. None if the server does not say it.
      size: size in bytes. None if the server does not say it.
      md5: hexadecimal MD5. None if the server does not say it.
    """

    version: str | None
    size: int | None
    md5: str | None


def _continue(url: str, path: pathlib.Path) -> tuple[pathlib.Path, _Announced]:
    """Downloads the missing part of a file; returns its temporary path and what was announced.

    The temporary path depends on the file's version, so that two versions are never mixed.
    """
    with _open(url) as response:
        announced = _read_headers(response)
        mark = hashlib.sha256((announced.version or url).encode()).hexdigest()[:12]
        partial = path.with_name(f".{path.name}.{mark}.part")
        done = partial.stat().st_size if partial.exists() else 0
        version, size = announced.version, announced.size
        if not done or version is None or size is None or done > size:
            _receive(response, partial, "wb", path.name, size)
            return partial, announced
    if done < size:
        headers = {"Range": f"bytes={done}-", "If-Range": version}
        with _open(url, headers) as response:
            mode = "ab" if response.status == 206 else "wb"  # or the server sends all once more
            _receive(response, partial, mode, path.name, size)
    return partial, announced


def _remove_empty_parts(path: pathlib.Path) -> int:
    """Removes temporary files without a byte; returns the size of the largest other one."""
    largest = 0
    for partial in path.parent.glob(f".{path.name}.*.part"):
        if size := partial.stat().st_size:
            largest = max(largest, size)
        else:
            partial.unlink()
    return largest


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to secure addresses only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _require_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Returns the response of an address."""
    agent = {"User-Agent": "vit_jax", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**agent, **headers})
    return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)


def _require_secure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not local:
        raise ValueError(f"{url}: weights are downloaded over https only.")


def _receive(response: Any, partial: pathlib.Path, mode: str, name: str, size: int | None) -> None:
    """Writes a response to a file.

    Args:
      response: the server's response.
      partial: the file.
      mode: "wb", or "ab" if the response continues the file.
      name: stands beside the progress bar.
      size: size of the complete file, in bytes. None if it is not known.

    Raises:
      OSError: the server sends fewer bytes.
    """
    with (
        open(partial, mode) as file,
        progress_bar(desc=name, total=size, initial=file.tell(), unit="B", unit_scale=True) as bar,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        if size is not None and file.tell() < size:
            raise OSError(f"only {file.tell()} of {size} bytes came")


def _read_headers(response: Any) -> _Announced:
    headers, md5 = response.headers, None
    for entry in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, value = entry.strip().partition("=")
        if kind == "md5":
            md5 = base64.b64decode(value).hex()
    length = headers.get("Content-Length")
    version = headers.get("ETag") or headers.get("Last-Modified")
    return _Announced(version, int(length) if length else None, md5)


def _check(partial: pathlib.Path, url: str, announced: _Announced) -> None:
    """Compares a complete file with what was announced; removes it if it differs."""
    size = partial.stat().st_size
    problem = ""
    if announced.size not in (None, size):
        problem = f"it has {size} bytes, not {announced.size}"
    if announced.md5 is not None:
        with open(partial, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != announced.md5:
            problem = f"its md5 is {found}, not {announced.md5}"
    if problem:
        partial.unlink()
        raise ValueError(f"{url} came damaged: {problem}. It was removed; try again.")
