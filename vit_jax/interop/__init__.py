"""Weights of other runs and other code bases: opened, fitted to another task, written.

`restore` opens whatever `config.init_from` may name, `load` gives its parameters fitted to a
resolution and number of classes, `save` and `write` write them in the formats of others.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from vit_jax import checkpoint as checkpoint_lib
from vit_jax import cost, data, models
from vit_jax.checkpoint import Checkpoint
from vit_jax.interop import download, layouts, npz, surgery, torch, weights
from vit_jax.models.positions import sincos_table

logger = logging.getLogger(__name__)

FORMATS = ("npz", "orbax", "timm", "hf")

__all__ = [
    "FORMATS", "Checkpoint", "adapt", "grid", "learned_positions", "load", "replacing", "restore",
    "save", "write",
]  # fmt: skip


def restore(
    source: str | os.PathLike, *, variant: str | None = None, **overrides: Any
) -> Checkpoint:
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
    path = download.find(source)
    in_bucket = path.startswith("gs://")
    if not in_bucket and (file := _tensor_file(pathlib.Path(path))) is not None:
        return weights.checkpoint(file, variant, **overrides)
    found = checkpoint_lib.load(path, lazy=True)
    if variant is not None and models.canonical(variant) != found.config.model.variant:
        raise ValueError(f"{found.path} is a {found.config.model.variant}, not a {variant}.")
    return found


def _tensor_file(path: pathlib.Path) -> weights.TensorFile | None:
    """Opens a file of arrays, or a folder with one and its config.json; None for other folders."""
    if (path / "config.json").is_file():
        return torch.read_folder(path)
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix in (".safetensors", *torch.PICKLED) or start[8:] == b"{":
        return torch.read(path)
    if path.suffix == ".npz" or start.startswith(b"PK"):
        return npz.read(path)
    raise ValueError(f"{path} is no file of weights: neither .npz nor safetensors nor PyTorch's.")


def load(
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
      source, variant, **overrides: see `restore`.
      image_size: pixels, a side or (h, w), that position embeddings are resized for; None keeps
        their size (paper 3.2).
      num_classes: gives a new head of zeros (0: none) in the place of what belongs to
        pre-training (paper B.1.1, see `surgery.HEAD`); None keeps that.
      pool: "token" or "gap"; adds (at zero) or drops the class token and its position.
      resize: "linear", as the public JAX loader, or "cubic", as timm: see `surgery.resize`.

    Raises:
      ValueError, FileNotFoundError: as `restore`, or the positions can't be resized.
    """
    found = adapt(
        restore(source, variant=variant, **overrides),
        image_size=image_size, num_classes=num_classes, pool=pool, resize=resize,
    )  # fmt: skip
    return jax.tree.map(np.asarray, found.params)


def adapt(
    checkpoint: Checkpoint,
    *,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    resize: str = "linear",
) -> Checkpoint:
    """Returns a checkpoint fitted to a resolution and task; arguments and errors are `load`'s."""
    if image_size is None and num_classes is None and pool is None:
        return checkpoint
    changes: dict[str, Any] = {} if pool is None else {"pool": pool}
    if num_classes is not None and "pre_logits" in checkpoint.params:
        changes["pre_logits"] = False
    new_head = {} if num_classes is None else {"num_classes": num_classes}
    model = checkpoint.model(**changes, **new_head)
    image_shape = checkpoint.image_shape
    if image_size is not None:
        image_shape = data.image_shape(image_size)
    any_shape = image_shape or weights.image_shape_like(checkpoint)
    wanted = cost.parameter_shapes(model, any_shape)
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
        config.data.image_size = weights.side_or_sides(image_shape)
    names = () if new_head else checkpoint.class_names
    return checkpoint._replace(params=params, config=config, class_names=names, average=None)


def grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Returns the (rows, columns) of patches that a checkpoint is for, None where not known."""
    shape = checkpoint.image_shape
    return None if shape is None else checkpoint.model().grid(shape)


def save(
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
    file = weights.TensorFile(
        path=f"params (for {destination})",
        shapes={name: tuple(x.shape) for name, x in flat.items()},
        read=lambda name: np.asarray(flat[name]),
        layouts=(layouts.OURS,),
        image_size=None if image_size is None else data.image_shape(image_size),
        class_names=tuple(class_names),
    )
    write(weights.checkpoint(file, variant, **overrides), destination, format=format)


def write(checkpoint: Checkpoint, destination: str | os.PathLike, *, format: str) -> None:
    """Writes a checkpoint in one of `FORMATS`; arguments and errors are `save`'s.

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
        checkpoint_lib.save(checkpoint, path)
        return
    if checkpoint.config.model.positions == "sincos":
        checkpoint = learned_positions(checkpoint)
    with replacing(pathlib.Path(path)) as partial:
        if format == "npz":
            npz.write(partial, weights.arrays(checkpoint, layouts.NPZ))
        elif format == "timm":
            torch.write_timm(partial, checkpoint)
        else:
            torch.write_hugging_face(partial, checkpoint)
    if note := _untold(checkpoint.model(), format):
        logger.warning("%s: other readers of this format don't know that it is for %s.", path, note)


def learned_positions(checkpoint: Checkpoint) -> Checkpoint:
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
    params = {
        **checkpoint.params, "Transformer": {**checkpoint.params["Transformer"], **tables}
    }  # fmt: skip
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


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, which takes its place if all goes well, else vanishes."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.rename(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
