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
from vit_jax.common.files import is_bucket, replacing
from vit_jax.config import keys
from vit_jax.config.defaults import default
from vit_jax.models.params import parameter_shapes
from vit_jax.models.positions import sincos_table
from vit_jax.weights import catalogue, parameter_names, recognise, surgery
from vit_jax.weights.formats import FORMATS, differences_for_readers, format_of, open_file
from vit_jax.weights.tensor_file import TensorFile

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
      source: one of these. Downloads are kept in the repository's folder `checkpoints/`.
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
        the positions can't be resized.
      FileNotFoundError: there is no such source.

    Example:
      >>> checkpoint = vit_jax.load("checkpoints/quickstart", image_size=96)
      >>> checkpoint.class_names, checkpoint.image_shape
      (('daisy', 'dandelion', 'rose', 'sunflower', 'tulip'), (96, 96))
    """
    path = catalogue.find(source)
    file = None if is_bucket(path) else open_file(pathlib.Path(path))
    if file is not None:
        assumed_pool = pool or "token"
        found = recognise.to_checkpoint(file, variant, assumed_pool=assumed_pool, **attributes)
    else:
        found = read_checkpoint(path, lazy=True)
        if variant is not None and models.canonical(variant) != found.config.model.variant:
            raise ValueError(f"{found.path} is a {found.config.model.variant}, not a {variant}.")
    return adapt(found, image_size=image_size, num_classes=num_classes, pool=pool, resize=resize)


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
    no place for the names of the classes or for how images are cropped in evaluation.

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

    Example:
      >>> vit_jax.save(vit_jax.load("checkpoints/quickstart"), folder / "flowers.npz")
      >>> vit_jax.load(folder / "flowers.npz").config.model.variant
      'Nano/8'
    """
    if format is None:
        format = format_of(destination)
    if format not in FORMATS:
        raise ValueError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    row, path = FORMATS[format], epath.Path(destination)
    if "://" in os.fspath(path) and not row.buckets:
        raise ValueError(f"{path}: only Orbax checkpoints are written to a bucket.")
    if path.exists():
        raise FileExistsError(f"There is something at {path} already; it is left as it is.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.config.model.positions == "sincos" and not row.fixed_positions:
        checkpoint = with_learned_positions(checkpoint)
    if row.buckets:
        row.write(checkpoint, path)
    else:
        with replacing(pathlib.Path(path)) as partial:
            row.write(checkpoint, partial)
    if lost := _lost_with(checkpoint, format):
        logger.warning("%s: this format has no place for %s.", path, " and ".join(lost))
    if unrecorded := differences_for_readers(checkpoint.model(), format):
        logger.warning(
            "%s: the file can't say that its model has %s, which other readers have to be told.",
            path,
            unrecorded,
        )


def _lost_with(checkpoint: Checkpoint, format: str) -> list[str]:
    """Returns what a format can't record besides the model, and this checkpoint has."""
    lost = []
    if checkpoint.class_names and not FORMATS[format].class_names:
        lost.append("the names of the classes")
    if format != "orbax":
        own, assumed = checkpoint.config.data, default().data
        crop = [key for key in ("eval_crop", "crop_fraction") if own[key] != assumed[key]]
        lost += [f"data.{key}={own[key]}" for key in crop]
    return lost


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
