"""api"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vit_jax.common.files import replacing
from vit_jax.config.keys import image_shape
from vit_jax.models.params import parameter_shapes
from vit_jax.models.positions import sincos_table
from vit_jax.weights import catalogue, npz, recognise, surgery, tables
from vit_jax.weights.hugging_face import write_hugging_face
from vit_jax.weights.safetensors import PICKLED
from vit_jax.weights.timm import read_folder, read_state_dict, write_timm

logger = logging.getLogger(__name__)

FORMATS = ("npz", "orbax", "timm", "hf")


def load(source: str | os.PathLike, *, variant: str | None = None, **overrides: Any) -> Checkpoint:
    """Opens weights from anywhere; the parameters of a file are read when NumPy asks for them.

    Args:
      source: a run's workdir or a folder of one checkpoint (Orbax), also in a bucket
        (`gs://BUCKET/PATH`); an `.npz` file in the layout of the published JAX checkpoints; a
        state dict of timm's (`.safetensors`, `.pth`, `.pt`, `.bin`); such a file at a `https://`
        or `gs://` address; a Hugging Face folder (`config.json` beside the weights) or
        `hf://ORGANISATION/NAME`; a name in `checkpoints/published.csv`; or a variant such as
        "B/16", for the best AugReg checkpoint of ImageNet-21k. Downloads are kept in
        `checkpoints/`.
      variant: the model it must be of; None takes what the source says or its shapes show.
      **overrides: attributes that depart from the variant's row, for files that don't tell them.

    Raises:
      ValueError: the source can't be read, or isn't of that model; every difference is named.
      FileNotFoundError: there is no such source.
    """
    path = catalogue.find(source)
    in_bucket = path.startswith("gs://")
    if not in_bucket and (file := _tensor_file(pathlib.Path(path))) is not None:
        return recognise.to_checkpoint(file, variant, **overrides)
    found = read_checkpoint(path, lazy=True)
    if variant is not None and models.canonical(variant) != found.config.model.variant:
        raise ValueError(f"{found.path} is a {found.config.model.variant}, not a {variant}.")
    return found


def _tensor_file(path: pathlib.Path) -> recognise.TensorFile | None:
    """Opens a file of arrays, or a folder with one and its config.json; None for other folders."""
    if (path / "config.json").is_file():
        return read_folder(path)
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix in (".safetensors", *PICKLED) or start[8:] == b"{":
        return read_state_dict(path)
    if path.suffix == ".npz" or start.startswith(b"PK"):
        return npz.read(path)
    raise ValueError(f"{path} is no file of weights: neither .npz nor safetensors nor PyTorch's.")


def load_params(
    source: str | os.PathLike,
    *,
    variant: str | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    resize: str = "linear",
    **overrides: Any,
) -> Any:
    """Returns parameters from anywhere: a nested dictionary of float32 arrays, Linen names.

    Args:
      source, variant, **overrides: see `load`.
      image_size: pixels, a side or (h, w), that position embeddings are resized for; None keeps
        their size (paper 3.2).
      num_classes: gives a new head of zeros (0: none) in the place of what belongs to
        pre-training (paper B.1.1, see `surgery.HEAD`); None keeps that.
      pool: "token" or "gap"; adds (at zero) or drops the class token and its position.
      resize: "linear", as the public JAX loader, or "cubic", as timm: see `surgery.resize`.

    Raises:
      ValueError, FileNotFoundError: as `load`, or the positions can't be resized.
    """
    found = adapt(
        load(source, variant=variant, **overrides),
        image_size=image_size,
        num_classes=num_classes,
        pool=pool,
        resize=resize,
    )
    return jax.tree.map(np.asarray, found.params)


def adapt(
    checkpoint: Checkpoint,
    *,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    resize: str = "linear",
) -> Checkpoint:
    """Returns a checkpoint fitted to a resolution and task; arguments and errors are `load_params`'s."""
    if image_size is None and num_classes is None and pool is None:
        return checkpoint
    changes: dict[str, Any] = {} if pool is None else {"pool": pool}
    if num_classes is not None and "pre_logits" in checkpoint.params:
        changes["pre_logits"] = False
    new_head = {} if num_classes is None else {"num_classes": num_classes}
    model = checkpoint.model(**changes, **new_head)
    image_shape = checkpoint.image_shape
    if image_size is not None:
        image_shape = image_shape(image_size)
    any_shape = image_shape or recognise.image_shape_like(checkpoint)
    wanted = parameter_shapes(model, any_shape)
    head = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32), {k: wanted[k] for k in surgery.HEAD if k in wanted}
    )
    params = surgery.adapt(
        checkpoint.params,
        wanted,
        old_grid=grid(checkpoint),
        new_grid=model.grid(any_shape),
        where=checkpoint.path,
        head=head if new_head else None,
        method=resize,
    )
    config = checkpoint.config.copy_and_resolve_references()
    with config.ignore_type():
        config.model.update(changes)
        config.data.image_size = recognise.side_or_sides(image_shape)
    names = () if new_head else checkpoint.class_names
    return checkpoint._replace(params=params, config=config, class_names=names, average=None)


def grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Returns the (rows, columns) of patches that a checkpoint is for, None where not known."""
    shape = checkpoint.image_shape
    return None if shape is None else checkpoint.model().grid(shape)


def save_params(
    params: Any,
    destination: str | os.PathLike,
    *,
    variant: str,
    format: str,
    image_size: int | Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    **overrides: Any,
) -> None:
    """Writes parameters in a format of others.

    Args:
      params: nested dictionary of arrays with our (Linen) names.
      destination: a path where nothing is yet: a file for "npz" and "timm", else a folder; of
        "orbax" it may be in a bucket, `gs://…`.
      variant: the model they are of.
      format: "npz", the published JAX layout; "orbax"; "timm", a state dict; "hf", a folder.
      image_size: pixels, a side or (h, w); needed where position embeddings are not of a square.
      class_names: one for each logit, for the formats that note them.
      **overrides: attributes that depart from the variant's row and that names and shapes don't
        show (`gelu`, `norm_epsilon`, `positions_at`, and sizes).

    Raises:
      ValueError: the parameters are not those of the model, or the format can't hold them.
      FileExistsError: there is something at `destination`; it is left as it is.
    """
    flat = flatten_dict(params, sep="/")
    file = recognise.TensorFile(
        path=f"params (for {destination})",
        shapes={name: tuple(x.shape) for name, x in flat.items()},
        read=lambda name: np.asarray(flat[name]),
        layouts=(tables.OURS,),
        image_size=None if image_size is None else image_shape(image_size),
        class_names=tuple(class_names),
    )
    save(recognise.to_checkpoint(file, variant, **overrides), destination, format=format)


def save(checkpoint: Checkpoint, destination: str | os.PathLike, *, format: str) -> None:
    """Writes a checkpoint in one of `FORMATS`; arguments and errors are `save_params`'s.

    Files and folders come to be under another name first, so none is ever half there.
    """
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    path = epath.Path(destination)
    if "://" in os.fspath(path) and format != "orbax":
        raise ValueError(f"{path}: only Orbax checkpoints are written to a bucket.")
    if path.exists():
        raise FileExistsError(f"There is something at {path} already; it is left as it is.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "orbax":
        write_checkpoint(checkpoint, path)
        return
    if checkpoint.config.model.positions == "sincos":
        checkpoint = with_learned_positions(checkpoint)
    with replacing(pathlib.Path(path)) as partial:
        if format == "npz":
            npz.write(partial, recognise.file_arrays(checkpoint, tables.NPZ))
        elif format == "timm":
            write_timm(partial, checkpoint)
        else:
            write_hugging_face(partial, checkpoint)
    if note := _untold(checkpoint.model(), format):
        logger.warning("%s: other readers of this format don't know that it is for %s.", path, note)


def with_learned_positions(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint with its fixed positions as a learned table, as other formats have.

    Raises:
      ValueError: its image size, on which they depend, is not known.
    """
    if checkpoint.image_shape is None:
        raise ValueError(f"{checkpoint.path} has positions='sincos': give its image_size.")
    model = checkpoint.model()
    places = ["input"] if model.positions_at != "layers" else range(model.depth)
    table = np.asarray(
        sincos_table(model.grid(checkpoint.image_shape), model.width, int(model.pool == "token"))
    )[None]
    tables = {f"posembed_{place}": {"pos_embedding": table} for place in places}
    params = {**checkpoint.params, "Transformer": {**checkpoint.params["Transformer"], **tables}}
    config = checkpoint.config.copy_and_resolve_references()
    config.model.positions = "1d"
    return checkpoint._replace(params=params, config=config)


def _untold(model: Any, format: str) -> str:
    """Returns what other readers of a format would compute otherwise, empty where nothing."""
    if format == "hf":  # config.json tells
        return ""
    usual = {"gelu": "tanh" if format == "npz" else "exact", "norm_epsilon": 1e-6}
    if getattr(model, "stem", ()) is not None:  # there are standardised kernels
        usual["kernel_epsilon"] = None if format == "npz" else 1e-8
    settings = {key: getattr(model, key, value) for key, value in usual.items()}
    return " and ".join(f"{k}={v}" for k, v in settings.items() if v != usual[k])
