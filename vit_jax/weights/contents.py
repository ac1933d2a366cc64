"""What kind of weights a file holds, by its content: its suffix may say something else."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Literal

Kind = Literal["npz", "safetensors", "pytorch"]

# What else may lie where weights were expected, by its first bytes.
_OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, a text in place of the weights: run "
    "`git lfs pull`",
    b"\x80": "it is a pickle, perhaps of PyTorch before 1.6: load it with PyTorch and save it "
    "again",
    b"\x89HDF": "it is an HDF5 file, as Keras writes",
    b"\x93NUMPY": "it is a single array of NumPy",
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
    b"PK": "it begins as a zip file does, but is cut off or damaged: copy or download it again",
}
_BEGINNING = 512  # bytes that are looked at


def kind_of(path: pathlib.Path) -> Kind | None:
    """Returns the kind of a file of weights. None if it is none, or no file.

    Args:
      path: a path on this machine.
    """
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # after the length of the header, in eight bytes
        return "safetensors"
    names = _names_in_zip(path) if start.startswith(b"PK") else []
    if any(name.endswith("/data.pkl") for name in names):
        return "pytorch"
    return "npz" if any(name.endswith(".npy") for name in names) else None


def explain_other(path: pathlib.Path) -> str:
    """Returns a sentence that says what a path is for which `kind_of` is None."""
    return f"{path} is not a file of weights (safetensors, .npz or PyTorch): {_what_else(path)}."


def _what_else(path: pathlib.Path) -> str:
    if not path.is_file():
        return "it is not a regular file"
    with open(path, "rb") as file:
        start = file.read(_BEGINNING)
    if not start:
        return "it is empty: copy or download it again"
    if start.startswith(b"PK") and _names_in_zip(path):
        return "it is a zip file without arrays of NumPy or PyTorch: unpack it if weights are in it"
    for first, meaning in _OTHERS.items():
        if start.startswith(first):
            return meaning
    text = start.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        return f"it is a page of HTML or XML, as servers send in place of a file: {text[:60]!r}"
    if "\0" not in text and "\ufffd" not in text[:-1]:  # the last character may be cut off
        return f"it is text: {text[:60]!r}"
    return f"it begins with the bytes {start[:8].hex(' ')}"


def _names_in_zip(path: pathlib.Path) -> list[str]:
    """Returns the names of a zip file's members. [] if it is no zip file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # a damaged directory makes Python's parser raise errors of all kinds
        return []
