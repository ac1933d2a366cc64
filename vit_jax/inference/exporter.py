"""Writes a model into one file that other programs run, StableHLO or ONNX, and such a program."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common import files
from vit_jax.common.names import require_unicode
from vit_jax.common.repository import install_command
from vit_jax.data.transforms import view_of
from vit_jax.inference.classifier import prepare, require_image_shape
from vit_jax.inference.program import HIDING, program
from vit_jax.models.patches import to_float
from vit_jax.weights.surgery import with_learned_positions

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")  # which a StableHLO file is lowered for
_TOLERANCE = 1e-4  # largest difference of onnxruntime's outputs from JAX's, per largest output
_MOST_BYTES = 2**31 - 2**24  # of parameters: flatbuffers and protobuf end at 2 GiB


def export(
    checkpoint: Checkpoint,
    destination: str | os.PathLike,
    *,
    format: str | None = None,
    image_size: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Writes a model with its parameters into a file that runs without this package.

    The file maps uint8 RGB images (b, h, w, 3), for any b, to float32 logits (b, c), or to
    representations (b, d) if there is no head. It scales the images to [-1, 1] itself. In either
    format it comes with the dictionary that this function returns, and with a program beside it
    that prints the likeliest classes of images, which has the same name and the suffix .py.

    "stablehlo" is a serialized `jax.export.Exported` for `PLATFORMS`. It runs with JAX and the
    flatbuffers package. The dictionary is in a JSON file beside it, which has the same name and the
    suffix .json. JAX promises to run the file for 6 months after the JAX release that wrote it, and
    on releases that are up to 3 weeks older (docs.jax.dev/en/latest/export/export.html,
    "Compatibility guarantees"). Keep the checkpoint, to write the file again.

    "onnx" is a model that jax2onnx has converted. The dictionary is in its metadata: strings as
    they are, everything else as JSON. The file is written only if onnxruntime computes the same
    outputs from it as JAX, up to 1e-4 of the largest.

    Args:
      checkpoint: what `weights.api.load` returns.
      destination: a local path where nothing is yet.
      format: one of `FORMATS`. None goes by the suffix: "onnx" for .onnx, else "stablehlo".
      image_size: pixels, a side or (h, w), which the position embeddings are resized for (paper
        3.2). None for the checkpoint's own.

    Returns:
      What a user of the file has to know:
      `variant`;
      `input` and `output`, each with `name`, `dtype` and `shape`;
      `class_names`, in the order of the logits, empty if they are not known;
      `probabilities`, what makes them of the logits: "softmax", or "sigmoid" of each by itself;
      `eval_crop`, `crop_fraction` and `eval_resize`: how an image gets the input's size, see
      `config/defaults.py`;
      `parameters`, their number;
      `platforms`, in the format "stablehlo" only.

    Raises:
      ValueError: there is no such format, `destination` is no local path, or, of "stablehlo", not
        UTF-8; the model has 2 GiB of parameters or more, its image size is not known or not
        possible, or it can't be converted to ONNX.
      FileExistsError: there is something at `destination` or beside it, which is left as it is.
      ImportError: jax2onnx is not installed.
      OSError: a file can't be written; then none of them is there.
    """
    path = files.local_path(destination)
    format = format or ("onnx" if path.suffix == ".onnx" else "stablehlo")
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    if format == "stablehlo":
        require_unicode(path)  # JAX can't run a program there, and the one beside the file needs it
    json_path, program_path = path.with_suffix(".json"), path.with_suffix(".py")
    if path in (json_path, program_path):
        raise ValueError(
            f"{destination}: give a local path, such as model.stablehlo, which gets a model.json "
            f"and a model.py beside it."
        )
    if path.stem in HIDING:
        raise ValueError(
            f"{destination}: the program beside it, {program_path.name}, would hide Python's own "
            f"{path.stem}: give another name."
        )
    for file in (path, program_path, *([json_path] if format == "stablehlo" else [])):
        if file.exists():
            raise FileExistsError(f"There is something at {file} already; it is left as it is.")
    _check_size(checkpoint)
    checkpoint = prepare(checkpoint, image_size)
    description = _description(checkpoint)
    cpu = jax.devices("cpu")[0]  # other devices' matmuls have too few digits for the comparison
    with files.no_empty_folders(path.parent), contextlib.ExitStack() as undo:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as partial, jax.default_device(cpu):
            if format == "onnx":
                _write_onnx(checkpoint, description, partial)
            else:
                description["platforms"] = list(PLATFORMS)
                exported = jax.export.export(jax.jit(_forward(checkpoint)), platforms=PLATFORMS)
                partial.write_bytes(exported(_image_struct(checkpoint)).serialize())
                files.write_file(json_path, json.dumps(description, indent=2) + "\n")
                undo.callback(json_path.unlink)
            files.write_file(program_path, program(path, description))
            undo.callback(program_path.unlink)
        undo.pop_all()
    return description


def _check_size(checkpoint: Checkpoint) -> None:
    size = 4 * _parameter_count(checkpoint)
    if size > _MOST_BYTES:
        raise ValueError(
            f"{checkpoint.path} has {1e-9 * size:.2f} GB of parameters, and a file of either "
            f"format holds up to {1e-9 * _MOST_BYTES:.2f} GB: L/16, with 1.2 GB, is the largest of "
            f"the ViTs that fits."
        )


def _parameter_count(checkpoint: Checkpoint) -> int:
    """Counts without reading parameters that are still on disk."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(checkpoint.params))


def _forward(checkpoint: Checkpoint) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that is exported: uint8 (b, h, w, 3) -> float32 (b, c) or (b, d)."""
    model = models.plain(checkpoint.model())
    params = jax.tree.map(jnp.asarray, checkpoint.params)

    def forward(images):
        return model.apply({"params": params}, to_float(images))

    return forward


def _image_struct(checkpoint: Checkpoint) -> jax.ShapeDtypeStruct:
    """Returns the shape of the images, with a symbol for the batch's size."""
    (b,) = jax.export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((b, *require_image_shape(checkpoint), 3), jnp.uint8)


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    view = view_of(checkpoint.config.data)._asdict()
    shape = (*require_image_shape(checkpoint), 3)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    apply = checkpoint.model().apply
    outputs = jax.eval_shape(apply, {"params": checkpoint.params}, images).shape[1]
    name = "logits" if checkpoint.num_classes else "representations"
    return {
        "variant": checkpoint.config.model.variant,
        "input": {"name": "images", "dtype": "uint8", "shape": ["b", *shape], "channels": "RGB"},
        "output": {"name": name, "dtype": "float32", "shape": ["b", outputs]},
        "class_names": list(checkpoint.class_names),
        "probabilities": checkpoint.loss,
        **view,
        "background": list(view["background"]),  # as JSON has it
        "parameters": _parameter_count(checkpoint),
    }


def _write_onnx(checkpoint: Checkpoint, description: dict[str, Any], path: pathlib.Path) -> None:
    """Converts a model, writes it, and compares onnxruntime's outputs with JAX's; see `export`."""
    try:
        import jax2onnx  # an extra: with onnx and onnxruntime it has 150 MB
        import onnx
    except ImportError as error:
        raise ImportError(
            f"ONNX needs jax2onnx, which is not installed ({error}): {install_command('onnx')}."
        ) from error
    if checkpoint.config.model.positions == "sincos":
        checkpoint = with_learned_positions(
            checkpoint
        )  # jax2onnx 0.13 can't convert how it is made
    for name in ("jax2onnx", "onnx_ir"):  # they warn about operations that no model here has
        logging.getLogger(name).setLevel(logging.ERROR)
    with _conversion_errors(checkpoint), contextlib.redirect_stdout(io.StringIO()):  # it prints
        model = jax2onnx.to_onnx(
            _forward(checkpoint),
            [_image_struct(checkpoint)],
            model_name=description["variant"],
            input_names=[description["input"]["name"]],
            output_names=[description["output"]["name"]],
        )
    onnx.helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.items()}
    )
    serialized = model.SerializeToString()
    path.write_bytes(serialized)
    _check_outputs(checkpoint, serialized)


@contextlib.contextmanager
def _conversion_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turns what jax2onnx or onnxruntime raises, which may be of any kind, into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{checkpoint.path}: jax2onnx {metadata.version('jax2onnx')} can't convert this "
            f"{checkpoint.config.model.variant}; export it as .stablehlo. What failed is "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error


def _check_outputs(checkpoint: Checkpoint, serialized: bytes) -> None:
    """Raises ValueError if onnxruntime's outputs for two images of noise differ from JAX's."""
    import onnxruntime

    shape = (2, *require_image_shape(checkpoint), 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    apply = jax.jit(checkpoint.model().apply)
    wanted = np.asarray(apply({"params": checkpoint.params}, to_float(images)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    with _conversion_errors(checkpoint):
        session = onnxruntime.InferenceSession(
            serialized, options, providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"images": images})
    difference, largest = np.abs(found - wanted).max(), np.abs(wanted).max()
    if not difference <= _TOLERANCE * largest:
        raise ValueError(
            f"{checkpoint.path}: jax2onnx {metadata.version('jax2onnx')} converts this "
            f"{checkpoint.config.model.variant} wrongly; export it as .stablehlo. Outputs differ "
            f"by up to {difference:.2g} from JAX's, the largest of which is {largest:.2g}."
        )
