"""The formats of weights: `FORMATS` has a row for each.

A new format is a module with the functions that read and write it, and a row here.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn

from vit_jax.checkpoints.checkpoint import Checkpoint, write_checkpoint
from vit_jax.models.resnet import BIT_EPSILON, STEM_EPSILON, ResNet
from vit_jax.weights import (
    contents,
    hugging_face,
    hugging_face_writing,
    meta,
    npz,
    open_clip,
    safetensors,
    timm,
    timm_model,
)
from vit_jax.weights.checked_json import parse_json
from vit_jax.weights.tensor_file import TensorFile


class Format(NamedTuple):
    """A format that weights are read from and written in.

    Attributes:
      title: what is written, in a few words.
      matches: returns True if a path on this machine is in this format.
      read: opens such a path; raises ValueError if it can't be read. It also takes timm's name of
        the model, "" if that is not known. None for Orbax, whose checkpoints record their
        configuration: `read_checkpoint` reads them.
      write: writes a checkpoint to a path that does not exist yet; raises ValueError if the format
        can't store it.
      suffixes: the suffixes of the format's files. () if the format is a folder.
      assumed: values of the attributes that the format does not record, as its other readers
        assume them.
      fixed_positions: True if the format can record that positions are computed
        (positions="sincos"). If False, they are written as a table.
      buckets: True if the format can be written to a bucket. Its `write` then leaves nothing behind
        if it fails.
    """

    title: str
    matches: Callable[[pathlib.Path], bool]
    read: Callable[[pathlib.Path, str], TensorFile] | None
    write: Callable[[Checkpoint, Any], None]
    suffixes: tuple[str, ...] = ()
    assumed: Mapping[str, Any] = MappingProxyType({})
    fixed_positions: bool = False
    buckets: bool = False


# The weights in a folder, by the configuration beside them.
_FOLDERS: Mapping[str, tuple[str, ...]] = {
    hugging_face.CONFIG: ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    open_clip.CONFIG: open_clip.WEIGHTS,
}


def _is_hugging_face(path: pathlib.Path) -> bool:
    return any((path / name).is_file() for name in _FOLDERS)


def _read_folder(folder: pathlib.Path, architecture: str) -> TensorFile:
    """Opens a folder of Hugging Face's hub: a configuration beside weights.

    They are those of transformers or timm (config.json), or else of open_clip.
    """
    wanted = {
        config: [folder / name for name in names]
        for config, names in _FOLDERS.items()
        if (folder / config).is_file()
    }
    found = [(config, file) for config, files in wanted.items() for file in files if file.is_file()]
    name, weights = found[0] if found else (next(iter(wanted)), None)
    config = parse_json(folder / name, (folder / name).read_bytes())
    if weights is None:
        names = " nor ".join(_FOLDERS[name])
        raise ValueError(f"{folder} has a {name}, but neither {names}.")
    if name == open_clip.CONFIG:
        return open_clip.read_open_clip(weights, architecture=architecture)
    if "architecture" in config:
        return timm.read_timm_folder(weights, config, architecture)
    return hugging_face.read_hugging_face(weights)


def _read_npz(path: pathlib.Path, _: str) -> TensorFile:
    return npz.read_npz(path)


def _read_state_dict(path: pathlib.Path, architecture: str) -> TensorFile:
    """Opens a state dict, of timm or, if its names are those, of transformers."""
    if path.is_dir():
        return _read_folder(path, architecture)
    tensors = safetensors.open_tensors(path)
    if open_clip.has_names(tensors.shapes):
        return open_clip.read_open_clip(path, tensors, architecture)
    if not hugging_face.has_names(tensors.shapes):
        return meta.read_meta(path, tensors, architecture)
    if path.with_name(hugging_face.CONFIG).is_file():
        return hugging_face.read_hugging_face(path, tensors)
    raise ValueError(
        f"{path} has Hugging Face's names, but no config.json beside it, which records its "
        f"GELU and layer-norm epsilon: give the model's whole folder."
    )


# The first match wins, and Orbax matches any folder.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "hf": Format(
            "a folder of Hugging Face's transformers",
            _is_hugging_face,
            _read_folder,
            hugging_face_writing.write_hugging_face,
        ),
        "timm": Format(
            "a state dict of timm",
            lambda path: contents.kind_of(path) in ("safetensors", "pytorch"),
            _read_state_dict,
            timm_model.write_timm,
            suffixes=safetensors.SUFFIXES,
            assumed={"gelu": "exact", "norm_epsilon": 1e-6, "kernel_epsilon": 1e-8},
        ),
        "npz": Format(
            "arrays in the published JAX layout",
            lambda path: contents.kind_of(path) == "npz",
            _read_npz,
            npz.write_npz,
            suffixes=(".npz",),
            assumed={"gelu": "tanh", "norm_epsilon": 1e-6, "kernel_epsilon": None},
        ),
        "orbax": Format(
            "an Orbax checkpoint",
            pathlib.Path.is_dir,
            None,
            write_checkpoint,
            fixed_positions=True,
            buckets=True,
        ),
    }
)
SUFFIXES = tuple(suffix for row in FORMATS.values() for suffix in row.suffixes)


def open_file(path: pathlib.Path, architecture: str = "") -> TensorFile | None:
    """Opens a file or folder of weights; its arrays are read when they are used.

    Args:
      path: a path on this machine.
      architecture: timm's name of the model that a state dict is of. "" if it is not known.

    Returns:
      The opened file. None for a folder that can only be a checkpoint of our own.

    Raises:
      ValueError: the path is in no format, or can't be read.
    """
    for row in FORMATS.values():
        if row.matches(path):
            return None if row.read is None else row.read(path, architecture)
    raise ValueError(contents.explain_other(path))


def format_of(destination: str | os.PathLike) -> str:
    """Returns the format that a path's suffix stands for, "orbax" if it stands for none."""
    suffix = pathlib.PurePath(destination).suffix.lower()
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "orbax")


def differences_for_readers(model: nn.Module, format: str) -> str:
    """Returns what other readers of a format would compute differently.

    Args:
      model: the module that is written.
      format: a key of `FORMATS`.

    Returns:
      The model's attributes, such as "gelu=exact". "" if others compute the same.
    """
    assumed = dict(FORMATS[format].assumed)
    if getattr(model, "stem", ()) is None:  # a plain ViT has no kernels to standardise
        assumed.pop("kernel_epsilon", None)
    own = {key: getattr(model, key, value) for key, value in assumed.items()}
    texts = {key: f"{key}={value}" for key, value in own.items() if value != assumed[key]}
    if "kernel_epsilon" in texts and own["kernel_epsilon"] is None:
        texts["kernel_epsilon"] = (
            f"kernel_epsilon={BIT_EPSILON}"
            if isinstance(model, ResNet)
            else f"{STEM_EPSILON} added to the deviation of kernels"  # not to their variance
        )
    return " and ".join(texts.values())
