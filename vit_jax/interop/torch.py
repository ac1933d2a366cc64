"""PyTorch's files: timm's state dicts, and Hugging Face folders of ViTs."""

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

from vit_jax.checkpoint import Checkpoint
from vit_jax.interop import layouts
from vit_jax.interop.weights import TensorFile, arrays, side_or_sides

PICKLED = (".pth", ".pt", ".bin")
_GELUS = {"gelu": "exact", "gelu_python": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh",
          "gelu_fast": "tanh"}  # fmt: skip
_METADATA = "vit_jax"  # what we note in a safetensors file, besides the arrays


# ---------------------------------------------------------------------------------------- read
def read(path: str | os.PathLike) -> TensorFile:
    """Opens a `.safetensors` file, or a pickled state dict (which needs PyTorch), of timm.

    timm computes the exact GELU and adds 1e-8 to the variance of standardised kernels, so that is
    what such weights are for, unless we wrote the file and noted something else. Pickled files
    can't run code: PyTorch loads them with `weights_only=True`.

    Raises:
      ValueError: it can't be read, or is a file of a Hugging Face folder without its config.json.
    """
    path = pathlib.Path(path)
    shapes, read_one, metadata = _tensors(path)
    layout = layouts.recognise(layouts.TIMM + layouts.HUGGING_FACE, shapes)
    if layout in layouts.HUGGING_FACE:
        if (path.parent / "config.json").is_file():
            return _of_hugging_face(path)
        raise ValueError(
            f"{path} has Hugging Face's names, but no config.json beside it, which tells its GELU "
            f"and layer-norm epsilon: give the model's whole folder."
        )
    noted = _json(path, metadata.get(_METADATA, "{}"))
    model = {"kernel_epsilon": 1e-8} if any("conv" in name for name in shapes) else {}
    if "patch_embed.proj.weight" in shapes:
        model["gelu"] = "exact"
    try:
        for key, value in _of(dict, noted, "model", {}).items():
            model[key] = tuple(value) if isinstance(value, list) else value
        image_size = noted.get("image_size")
        image_size = None if image_size is None else _sides("image_size", image_size)
        class_names = tuple(map(str, _of(list, noted, "class_names", [])))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return TensorFile(str(path), shapes, read_one, layouts.TIMM, model, image_size, class_names)


def read_folder(folder: str | os.PathLike) -> TensorFile:
    """Opens a Hugging Face folder: config.json beside the weights, of transformers or timm.

    Sizes, GELU, layer-norm epsilon, image size and class names are config.json's.

    Raises:
      ValueError: it is not a ViT's, computes something that we don't, or can't be read.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    config = _json(path, path.read_bytes())
    weights = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    found = [file for file in weights if file.is_file()]
    if not found:
        names = " nor ".join(file.name for file in weights)
        raise ValueError(f"{folder} has a config.json, but neither {names}.")
    if "architecture" in config:  # a model of timm's
        return read(found[0])
    return _of_hugging_face(found[0])


def _of_hugging_face(path: pathlib.Path) -> TensorFile:
    """Opens a file of weights with Hugging Face's config.json beside it."""
    beside = path.with_name("config.json")
    config = _json(beside, beside.read_bytes())
    try:
        model, image_size, class_names = _described(config)
    except KeyError as error:
        raise ValueError(f"{beside} lacks the key {error}, so it isn't that of a ViT.") from None
    except ValueError as error:
        raise ValueError(f"{beside}: {error}") from None
    shapes, read_one, _ = _tensors(path)
    return TensorFile(
        str(path), shapes, read_one, layouts.HUGGING_FACE, model, image_size, class_names
    )


def _described(config: Mapping[str, Any]) -> tuple[dict, tuple[int, int], tuple[str, ...]]:
    """Returns attributes of the model, image size and class names that a config.json tells."""
    for key, fits in (("model_type", "vit"), ("num_channels", 3), ("qkv_bias", True),
                      ("pooler_act", "tanh")):  # fmt: skip
        if (value := config.get(key, fits)) != fits:
            raise ValueError(f"{key} is {value!r}, and only {fits!r} can be loaded.")
    if (act := str(config["hidden_act"])) not in _GELUS:
        raise ValueError(f"hidden_act is {act!r}; known are {', '.join(_GELUS)}.")
    model = {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "mlp_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "patch_size": side_or_sides(_sides("patch_size", config["patch_size"])),
        "norm_epsilon": config["layer_norm_eps"],
        "gelu": _GELUS[act],
    }
    labels = {int(number): str(name) for number, name in _of(dict, config, "id2label", {}).items()}
    names = tuple(labels[i] for i in sorted(labels))
    if names == tuple(f"LABEL_{i}" for i in range(len(names))):
        names = ()  # what transformers fills in where nobody gave names
    return model, _sides("image_size", config["image_size"]), names


def _of(kind: type, values: Mapping[str, Any], key: str, default: Any) -> Any:
    if not isinstance(value := values.get(key, default), kind):
        raise ValueError(f"{key} must be a {kind.__name__}, not {value!r}.")
    return value


def _sides(key: str, value: Any) -> tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} must be one or two whole numbers above 0, not {value!r}.")
    return sides[0], sides[1]


def _json(path: pathlib.Path, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def _tensors(
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
    """Returns what `_tensors` does, of a file that PyTorch pickled."""
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


# --------------------------------------------------------------------------------------- write
def write_timm(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Writes timm's state dict, as safetensors or, for the suffixes of pickled files, by PyTorch.

    A safetensors file also notes what timm's names and shapes don't tell (variant, GELU, image
    size), where `read` finds it.

    Raises:
      ValueError: timm has no such parameters, or PyTorch is missing.
    """
    path = pathlib.Path(path)
    tensors = dict(arrays(checkpoint, layouts.TIMM))
    if path.suffix in PICKLED:
        try:
            import torch
        except ImportError:
            raise ValueError(
                f"Writing {path} needs PyTorch: take the suffix .safetensors."
            ) from None
        torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
        return
    model = checkpoint.model()
    settings = {k: v for k, v in checkpoint.config.model.items() if v is not None}
    settings.pop("dropout", None)
    mathematics = ("gelu", "norm_epsilon", "kernel_epsilon")
    settings |= {k: getattr(model, k) for k in mathematics if hasattr(model, k)}
    noted = {
        "model": settings,
        "image_size": checkpoint.image_shape,
        "class_names": checkpoint.class_names,
    }
    metadata = {"format": "pt", _METADATA: json.dumps(noted)}
    _save(tensors, path, metadata)


def write_hugging_face(folder: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors.

    With a head, they are a `ViTForImageClassification`'s; without, a `ViTModel`'s, whose pooler
    is our `pre_logits`.

    Raises:
      ValueError: Hugging Face's ViT has no such parameters, or the image size is not known.
    """
    folder = pathlib.Path(folder)
    tensors = dict(arrays(checkpoint, layouts.HUGGING_FACE))
    model, image_shape = checkpoint.model(), checkpoint.image_shape
    if (model.pool, model.positions) != ("token", "1d"):
        raise ValueError(
            f"{checkpoint.path} has pool={model.pool!r} and positions={model.positions!r}, but "
            f"Hugging Face's ViT reads a class token and adds 1-D positions."
        )
    if image_shape is None:
        raise ValueError(
            f"{checkpoint.path}: the image size is not known, and a Hugging Face folder must tell "
            f"it: give image_size."
        )
    config = {
        "architectures": ["ViTForImageClassification" if checkpoint.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}[model.gelu],
        "layer_norm_eps": model.norm_epsilon,
        "patch_size": model.patch_size,
        "image_size": side_or_sides(image_shape),
        "num_channels": 3,
        "qkv_bias": True,
        "encoder_stride": model.stride[0],
    }
    if checkpoint.num_classes:
        names = checkpoint.class_names or [f"LABEL_{i}" for i in range(checkpoint.num_classes)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_shape[0], "width": image_shape[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _save(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, content in (("config", config), ("preprocessor_config", preprocessor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path, metadata: dict[str, str]) -> None:
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # as any file: safetensors makes it readable for its owner alone
