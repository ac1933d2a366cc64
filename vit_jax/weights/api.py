"""Weights of any format: loaded, adapted to a task, and saved."""

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
from vit_jax.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vit_jax.common.files import is_bucket, local_path, no_empty_folders, replacing
from vit_jax.common.names import printable
from vit_jax.config import keys
from vit_jax.config.defaults import default
from vit_jax.models import attributes
from vit_jax.models.params import parameter_shapes
from vit_jax.models.positions import sincos_table
from vit_jax.weights import catalogue, parameter_names, recognise, surgery
from vit_jax.weights.formats import (
    FORMATS,
    Format,
    differences_for_readers,
    format_of,
    open_file,
)
from vit_jax.weights.tensor_file import TensorFile, refused_head

logger = logging.getLogger(__name__)


def load(
    source: str | os.PathLike,
    *,
    variant: str | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    resize: str = "linear",
    **attributes: Any,
) -> Checkpoint:
    """Returns weights of any format, adapted to a resolution and a task if that is asked for.

    Parameters that need no change are read when NumPy asks for them.

    Args:
      source: one of these. Downloads are kept in the folder `checkpoints/` of a clone of the
        repository; of an installed wheel, in `~/.cache/vit_jax/checkpoints/`.
        - a run's workdir, or the folder of one of its checkpoints; also in a bucket
          (`gs://BUCKET/PATH`)
        - an `.npz` file with the names of the published JAX checkpoints
        - a state dict of timm (`.safetensors`, `.pth`, `.pt`, `.bin`)
        - the `https://` or `gs://` address of such a file
        - a folder of Hugging Face (`config.json` beside the weights), or `hf://ORGANISATION/NAME`
        - a name in `checkpoints/published.csv`
        - a variant such as "B/16", for the best AugReg checkpoint of ImageNet-21k
      variant: name of the model that the weights must be of. None takes it from the source, or
        recognises it from the shapes.
      image_size: pixels, one side or (height, width). Position embeddings are resized for it (paper
        3.2). None keeps their size.
      num_classes: size of a new head of zeros, 0 for no head. It takes the place of everything that
        belongs to pre-training (paper B.1.1): see `surgery.HEAD`. None keeps the head.
      pool: "token" or "gap". The class token and its position are dropped, or are added as zeros.
        None keeps the pooling.
      resize: how positions are resized: "linear" as in the public JAX loader, "cubic" as in timm.
      **attributes: attributes of the model, such as `gelu`, for files that don't record them. An
        Orbax checkpoint records all, and ignores these.

    Raises:
      ValueError: the source can't be read, or is of another model; every difference is named. Or
        its head is kept and gives something else than one class an image. Or the positions can't
        be resized.
      FileNotFoundError: there is no such source.

    Example:
      >>> checkpoint = vit_jax.load("checkpoints/quickstart", image_size=96)
      >>> checkpoint.class_names, checkpoint.image_shape
      (('daisy', 'dandelion', 'rose', 'sunflower', 'tulip'), (96, 96))
    """
    found, refusal = _open(source, variant, pool or "token", attributes)
    if refusal and num_classes is None:
        raise ValueError(refusal)
    return adapt(found, image_size=image_size, num_classes=num_classes, pool=pool, resize=resize)


def load_for_new_head(
    source: str | os.PathLike, *, variant: str | None = None, **attributes: Any
) -> Checkpoint:
    """Returns weights as `load` does, also if their head gives something else than classes.

    It is for callers that take a head of their own.

    Args:
      source, variant, **attributes: as for `load`.

    Raises:
      ValueError, FileNotFoundError: as `load`.
    """
    return _open(source, variant, "token", attributes)[0]


def _open(
    source: str | os.PathLike, variant: str | None, pool: str, attributes: dict[str, Any]
) -> tuple[Checkpoint, str]:
    """Returns weights as they are, and why their head can't be kept, "" if it can.

    Args:
      source, variant, attributes: as for `load`.
      pool: the pooling, where the arrays don't show it.
    """
    path = catalogue.find(source)
    file = None if is_bucket(path) else open_file(pathlib.Path(path))
    if file is not None:
        found = recognise.to_checkpoint(file, variant, assumed_pool=pool, **attributes)
        return found, refused_head(file, found.num_classes)
    found = read_checkpoint(path, lazy=True)
    if variant is not None and models.canonical(variant) != found.config.model.variant:
        raise ValueError(f"{found.path} is a {found.config.model.variant}, not a {variant}.")
    return found, ""


def load_params(source: str | os.PathLike, **options: Any) -> Any:
    """Returns the parameters of weights of any format: a nested dictionary of float32 arrays.

    All are read and are in memory. Their names are those of our Linen modules.

    Args:
      source: as for `load`.
      **options: as for `load`.

    Raises:
      ValueError, FileNotFoundError: as `load`; also if a parameter can't be read or is not finite.
    """
    return jax.tree.map(np.asarray, load(source, **options).params)


def adapt(
    checkpoint: Checkpoint,
    *,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    resize: str = "linear",
) -> Checkpoint:
    """Returns a checkpoint adapted to a resolution and a task, or as it is if nothing is asked for.

    An adapted checkpoint has no Polyak average. With a new head, it has no class names.

    Args:
      checkpoint: the weights to adapt.
      image_size, num_classes, pool, resize: as for `load`.

    Raises:
      ValueError: the model can't have this size or pooling, or the positions can't be resized.

    Example:
      >>> checkpoint = vit_jax.load("checkpoints/quickstart")
      >>> vit_jax.adapt(checkpoint, num_classes=10).params["head"]["kernel"].shape
      (96, 10)
    """
    if image_size is None and num_classes is None and pool is None:
        return checkpoint
    changes: dict[str, Any] = {} if pool is None else {"pool": pool}
    if num_classes is not None and "pre_logits" in checkpoint.params:
        changes["pre_logits"] = False
    new_head = {} if num_classes is None else {"num_classes": num_classes}
    model = checkpoint.model(**changes, **new_head)
    image_shape = checkpoint.image_shape if image_size is None else keys.image_shape(image_size)
    any_image_shape = image_shape or recognise.any_image_shape(checkpoint)
    wanted = parameter_shapes(model, any_image_shape)
    head = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32), {k: wanted[k] for k in surgery.HEAD if k in wanted}
    )
    params = surgery.adapt_params(
        checkpoint.params,
        wanted,
        old_grid=checkpoint.grid,
        new_grid=model.grid(any_image_shape),
        where=checkpoint.path,
        head=head if new_head else None,
        method=resize,
    )
    config = checkpoint.config.copy_and_resolve_references()
    with config.ignore_type():  # an image may have one side or two
        config.model.update(changes)
        config.data.image_size = recognise.side_or_sides(image_shape)
    names = () if new_head else checkpoint.class_names
    return checkpoint._replace(params=params, config=config, class_names=names, average=None)


def save(
    checkpoint: Checkpoint, destination: str | os.PathLike, *, format: str | None = None
) -> None:
    """Writes a checkpoint in a format; nothing is left at `destination` if that fails.

    Warnings are logged if other readers of the format would compute something else, and if it has
    no place for the names of the classes or for how images are cropped in evaluation, and if the
    checkpoint has a Polyak average.

    Args:
      checkpoint: what to write. Only an Orbax checkpoint keeps the step and the full
        configuration. None keeps the Polyak average.
      destination: a path where nothing exists yet: a file for "npz" and "timm", a folder for "hf"
        and "orbax". Only "orbax" can be written to a bucket (`gs://BUCKET/PATH`).
      format: a key of `FORMATS`: "npz" is the published JAX layout, "timm" a state dict, "hf" a
        folder of Hugging Face, "orbax" a checkpoint of our own. None takes the format of the suffix
        of `destination`, "orbax" if the suffix is unknown.

    Raises:
      ValueError: the format can't store the checkpoint, or a parameter can't be read.
      FileExistsError: there is something at `destination`, which is left as it is.
      OSError: it can't be written, as on a full disk.

    Example:
      >>> vit_jax.save(vit_jax.load("checkpoints/quickstart"), folder / "flowers.npz")
      >>> vit_jax.load(folder / "flowers.npz").config.model.variant
      'Nano/8'
    """
    if format is None:
        format = format_of(destination)
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    row = FORMATS[format]
    path = epath.Path(destination if is_bucket(destination) else local_path(destination))
    if is_bucket(path) and not row.buckets:
        raise ValueError(f"{path}: only Orbax checkpoints are written to a bucket.")
    if path.exists():
        raise FileExistsError(f"There is something at {path} already; it is left as it is.")
    if checkpoint.config.model.positions == "sincos" and not row.fixed_positions:
        checkpoint = with_learned_positions(checkpoint)
    with no_empty_folders(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if row.read is None:
            row.write(checkpoint, path)
            lost = []
        else:
            with replacing(pathlib.Path(path)) as partial:
                row.write(checkpoint, partial)
                lost = _lost_in(checkpoint, row, row.read(partial))
    shown = printable(path)
    if lost:
        logger.warning("%s: this format has no place for %s.", shown, " and ".join(lost))
    if checkpoint.average is not None:
        logger.warning(
            "%s: the Polyak average is left out; to write it in place of the parameters: "
            "convert --average, or Checkpoint.averaged().",
            shown,
        )
    if unrecorded := differences_for_readers(checkpoint.model(), format):
        logger.warning(
            "%s: the file can't say that its model has %s, which other readers have to be told.",
            shown,
            unrecorded,
        )


def _lost_in(checkpoint: Checkpoint, row: Format, written: TensorFile) -> list[str]:
    """Returns what a checkpoint has besides the model, and the file that was written has not.

    Raises:
      ValueError: whoever reads the file finds another model in it, or none.
    """
    found = recognise.to_checkpoint(written)
    model, other, image_shape = checkpoint.model(), found.model(), checkpoint.image_shape
    differences = [
        f"{key}={getattr(model, key)!r}"
        for key in ("num_classes", *attributes.names("size", "weights", "mathematics"))
        if getattr(model, key, None) != getattr(other, key, None)
    ]
    if image_shape is not None and found.image_shape != image_shape:
        differences.append(f"image_size={image_shape}")
    if differences:
        raise ValueError(
            f"{checkpoint.path}: {row.title} has no place for {' and '.join(differences)}, so "
            f"another model would be read from it. An Orbax checkpoint has."
        )
    lost = []
    if len(found.class_names) < len(checkpoint.class_names):
        lost.append("the names of the classes")
    own, assumed = checkpoint.config.data, default().data
    crop = [key for key in ("eval_crop", "crop_fraction") if own[key] != assumed[key]]
    return lost + [f"data.{key}={own[key]}" for key in crop]


def save_params(
    params: Any,
    destination: str | os.PathLike,
    *,
    variant: str,
    format: str | None = None,
    image_size: int | Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    **attributes: Any,
) -> None:
    """Writes parameters in a format.

    Args:
      params: a nested dictionary of arrays with the names of our Linen modules.
      destination, format: as for `save`.
      variant: name of the model that the parameters are of.
      image_size: pixels, one side or (height, width), that the parameters are for. None recognises
        it from their shapes, which is possible for square images.
      class_names: names of the classes, in the order of the logits, for the formats that record
        them.
      **attributes: attributes of the model that differ from the variant's and that neither names
        nor shapes show: `gelu`, `norm_epsilon`, `positions_at` and sizes.

    Raises:
      ValueError: the parameters are not those of the model, or as `save`.
      FileExistsError: as `save`.
    """
    flat = flatten_dict(params, sep="/")
    file = TensorFile(
        path=f"params (for {destination})",
        shapes={name: tuple(x.shape) for name, x in flat.items()},
        read=lambda name: np.asarray(flat[name]),
        layouts=(parameter_names.OURS,),
        image_size=None if image_size is None else keys.image_shape(image_size),
        class_names=tuple(class_names),
    )
    save(recognise.to_checkpoint(file, variant, **attributes), destination, format=format)


def with_learned_positions(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint whose fixed positions are a learned table, with which logits are equal.

    Args:
      checkpoint: its model has positions="sincos".

    Raises:
      ValueError: the image size is not known, on which the positions depend.
    """
    if checkpoint.grid is None:
        raise ValueError(f"{checkpoint.path} has positions='sincos': give its image_size.")
    model = checkpoint.model()
    places = ["input"] if model.positions_at != "layers" else range(model.depth)
    tokens = int(model.pool == "token")
    table = np.asarray(sincos_table(checkpoint.grid, model.width, tokens))[None]
    learned = {f"posembed_{place}": {"pos_embedding": table} for place in places}
    params = {**checkpoint.params, "Transformer": {**checkpoint.params["Transformer"], **learned}}
    config = checkpoint.config.copy_and_resolve_references()
    config.model.positions = "1d"
    return checkpoint._replace(params=params, config=config)
