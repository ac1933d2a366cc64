"""safetensors"""

from __future__ import annotations

import json
import os
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy the bfloat16 that safetensors asks it for)
import numpy as np
import safetensors
import safetensors.numpy

PICKLED = (".pth", ".pt", ".bin")
METADATA = "vit_jax"  # what we note in a safetensors file, besides the arrays


def parse_json(path: pathlib.Path, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def open_tensors(
    path: pathlib.Path,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray], dict[str, str]]:
    """Returns shapes by name, a function that reads one array, and the file's metadata."""
    if path.suffix in PICKLED:
        return _unpickled(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = file.keys()  # what it can't give is its names when iterated over
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}.") from error
    if twice := _repeated(path):  # of which safetensors would take the last
        raise ValueError(f"{path} can't be read as safetensors: two arrays are called {twice}.")

    def read_one(name: str) -> np.ndarray:
        # Opened anew each time: what an open file has mapped would stay in memory.
        try:
            with safetensors.safe_open(path, "numpy") as file:
                return file.get_tensor(name)
        except Exception as error:  # of many kinds, for numbers and sizes that NumPy has not
            raise ValueError(f"{path}: the array {name} can't be read: {error}.") from error

    return shapes, read_one, metadata


def _repeated(path: pathlib.Path) -> str | None:
    """Returns a name that the header of a safetensors file has twice, None where there is none."""
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    names = Counter(name for name, _ in json.loads(header, object_pairs_hook=list))
    return next((name for name, count in names.items() if count > 1), None)


def _unpickled(
    path: pathlib.Path,
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray], dict[str, str]]:
    """Returns what `open_tensors` does, of a file that PyTorch pickled."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a pickled PyTorch file, which only PyTorch can read: pip install torch, "
            f"or save it as safetensors."
        ) from None
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is cut off, or no zip file, as PyTorch's are since version 1.6")
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which PyTorch's own files are not")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # PyTorch raises whatever its parts do
        raise ValueError(
            f"{path} can't be read as a PyTorch state dict: {_reason(error)}."
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(x) for name, x in state.items()
    ):
        raise ValueError(f"{path} holds no state dict, that is, names with a tensor each.")
    size = path.stat().st_size

    def read_one(name: str) -> np.ndarray:
        tensor = state[name].detach()
        try:
            if tensor.nbytes > size:
                raise ValueError(f"{tensor.nbytes} bytes don't fit in a file of {size}")
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except Exception as error:  # it is sparse, quantised…
            raise ValueError(
                f"{path}: the array {name} can't be read: {_reason(error)}."
            ) from error

    return {name: tuple(x.shape) for name, x in state.items()}, read_one, {}


def _reason(error: Exception) -> str:
    """Returns why PyTorch refuses a file, without its advice to let the file run code."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {found[1]}, and of pickled objects nothing but tensors is ever loaded"
    return str(error).partition(". ")[0].partition("\n")[0].rstrip(".") or type(error).__name__


def write_tensors(
    tensors: dict[str, np.ndarray], path: pathlib.Path, metadata: dict[str, str]
) -> None:
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # as any file: safetensors makes it readable for its owner alone


def typed(kind: type, values: Mapping[str, Any], key: str, default: Any) -> Any:
    if not isinstance(value := values.get(key, default), kind):
        raise ValueError(f"{key} must be a {kind.__name__}, not {value!r}.")
    return value


def sides(key: str, value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} must be one or two whole numbers above 0, not {value!r}.")
    return sides[0], sides[1]
