"""State dicts in files: safetensors, and what PyTorch pickled, of which only tensors are loaded."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (gives NumPy the bfloat16 that safetensors asks it for)
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.common.messages import first_few
from vit_jax.common.names import as_unicode
from vit_jax.weights.checked_json import get_typed, parse_json
from vit_jax.weights.contents import explain_other, kind_of
from vit_jax.weights.layout import Shape
from vit_jax.weights.record import KEY, read_comment

PICKLED = (".pth", ".pt", ".bin")  # suffixes of PyTorch's files
SUFFIXES = (".safetensors", *PICKLED)
# Keys of training states that have a model's parameters: the one that is evaluated comes first.
_STATES = ("teacher", "target_encoder", "state_dict_ema", "model_ema", "state_dict", "model")
_INDEX = ".safetensors.index.json"  # the end of its name: weights in several files have it


class Tensors(NamedTuple):
    """The arrays of an opened file.

    Attributes:
      shapes: shapes of the arrays, by name.
      read: returns the array of a name; raises ValueError if it can't be read.
      record: what the file records of its model, as `record.read_record` takes it.
      changes: what was left out or renamed, a sentence each.
      keys: those of a training state under which the arrays were, the outermost first.
    """

    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    record: str
    changes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def open_tensors(path: pathlib.Path) -> Tensors:
    """Opens a state dict: a file of PyTorch if it is a zip file, else safetensors.

    Pickled files can't run code: PyTorch loads them with `weights_only=True`. Of a training state,
    which has more than one model's parameters, those of the first key in `_STATES` are taken. An
    index (model.safetensors.index.json) stands for the safetensors files that it names.

    Raises:
      ValueError: the file can't be read, or is pickled and PyTorch is not installed.
    """
    if path.name.endswith(_INDEX):
        return _open_parts(path)
    if (kind := kind_of(path)) is None:
        raise ValueError(explain_other(path))
    return _open_pickled(path) if kind == "pytorch" else _open_safetensors(path)


def _open_safetensors(path: pathlib.Path) -> Tensors:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = file.keys()  # the opened file itself can't be iterated over
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}.") from error
    if twice := _repeated_name(path):  # safetensors would read the last of the two
        raise ValueError(f"{path} can't be read as safetensors: two arrays are called {twice}.")

    def read_array(name: str) -> np.ndarray:
        # The file is opened for each array, because what it has mapped stays in memory.
        try:
            with safetensors.safe_open(path, "numpy") as file:
                return file.get_tensor(name)
        except Exception as error:  # of many kinds, if NumPy lacks a type or can't have a size
            raise ValueError(f"{path}: the array {name} can't be read: {error}.") from error

    return Tensors(shapes, read_array, metadata.get(KEY, "{}"))


def _open_parts(index: pathlib.Path) -> Tensors:
    """Opens the files beside an index, whose `weight_map` has the file of each array."""
    content = parse_json(index, index.read_bytes())
    try:
        places = {name: str(x) for name, x in get_typed(content, "weight_map", {}).items()}
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from None
    parts = {}
    for file in sorted(set(places.values())):
        path = index.parent / file
        if path.parent != index.parent or not path.is_file():
            raise ValueError(f"{index} names {file}, which is not beside it: download it, too.")
        parts[file] = _open_safetensors(path)
    for name, file in places.items():
        if name not in parts[file].shapes:
            raise ValueError(f"{index} says that {file} has the array {name}, but it has not.")
    shapes = {name: parts[file].shapes[name] for name, file in places.items()}
    return Tensors(shapes, lambda name: parts[places[name]].read(name), "{}")


def _repeated_name(path: pathlib.Path) -> str | None:
    """Returns a name that is twice in the header of a safetensors file. None if there is none."""
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    names = Counter(name for name, _ in json.loads(header, object_pairs_hook=list))
    return next((name for name, count in names.items() if count > 1), None)


def _open_pickled(path: pathlib.Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path} is a pickled PyTorch file, which only PyTorch can read: pip install torch, "
            f"or save it as safetensors."
        ) from None
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    "it is a TorchScript archive, as OpenAI's CLIP files are: load it with "
                    "torch.jit.load, and save its state_dict() with torch.save"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which PyTorch's own files are not")
            record = read_comment(file, archive)
        # Training states have the arguments of a command, of a class that only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            if path.suffix.lower() != ".safetensors" and as_unicode(str(path)) == str(path):
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:  # PyTorch takes that suffix for safetensors, and can't open names not in UTF-8
                with open(path, "rb") as file:
                    state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises whatever its parts do
        raise ValueError(
            f"{path} can't be read as a PyTorch state dict: {_reason(error)}."
        ) from error
    state, keys, changes = _find_parameters(state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(x) for name, x in state.items()
    ):
        raise ValueError(f"{path} holds no state dict, that is, names with a tensor each.")
    size = path.stat().st_size

    def read_array(name: str) -> np.ndarray:
        tensor = state[name].detach()
        try:
            if tensor.nbytes > size:
                raise ValueError(f"{tensor.nbytes} bytes don't fit in a file of {size}")
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except Exception as error:  # the tensor is sparse, quantised, …
            raise ValueError(
                f"{path}: the array {name} can't be read: {_reason(error)}."
            ) from error

    shapes = {name: tuple(x.shape) for name, x in state.items()}
    return Tensors(shapes, read_array, record, changes, keys)


def _find_parameters(state: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Returns the parameters in a training state, their keys, and what was left out, in words."""
    taken: list[str] = []
    others: list[str] = []
    for _ in range(2):  # a state may hold itself
        parts = state if isinstance(state, dict) else {}
        found = [key for key in _STATES if isinstance(parts.get(key), dict) and parts[key]]
        if not found:
            break
        others += [name for name in state if name != found[0]]
        taken.append(found[0])
        state = state[found[0]]
    if not others:
        return state, tuple(taken), ()
    return state, tuple(taken), (f"Only {'/'.join(taken)} is taken, not {first_few(others)}.",)


def _reason(error: Exception) -> str:
    """Returns why PyTorch refuses a file, without its advice to let the file run code."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it holds {found[1]}, and of pickled objects nothing but tensors is ever loaded"
    return str(error).partition(". ")[0].partition("\n")[0].rstrip(".") or type(error).__name__


def write_tensors(
    tensors: dict[str, np.ndarray], path: pathlib.Path, metadata: dict[str, str]
) -> None:
    """Writes a safetensors file.

    Args:
      tensors: C-contiguous arrays, by name.
      path: the file.
      metadata: texts that the file gets beside the arrays.

    Raises:
      OSError: the file can't be written.
    """
    try:
        safetensors.numpy.save_file(tensors, path, metadata=metadata)
    except safetensors.SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # safetensors lets only the owner read its files


def write_pickled(tensors: dict[str, np.ndarray], path: pathlib.Path, comment: bytes) -> None:
    """Writes a state dict as PyTorch does, a zip file.

    Args:
      tensors: arrays, by name.
      path: the file.
      comment: of the zip file.

    Raises:
      ValueError: PyTorch is not installed.
      OSError: the file can't be written.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"Writing {path} needs PyTorch: take the suffix .safetensors.") from None
    writable = {name: np.require(x, requirements="W") for name, x in tensors.items()}
    state = {name: torch.from_numpy(x) for name, x in writable.items()}
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # raised while the system's error was handled
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
