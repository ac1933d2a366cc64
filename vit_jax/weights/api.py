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

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.files import is_bucket, local_path, no_empty_folders, replacing
from vit_jax.common.names import printable
from vit_jax.config import keys
from vit_jax.data.transforms import view_of
from vit_jax.models import attributes
from vit_jax.models.params import parameter_shapes
from vit_jax.weights import parameter_names, recognise, surgery
from vit_jax.weights.checked_json import two_sides
from vit_jax.weights.formats import (
    FORMATS,
    Format,
    differences_for_readers,
    format_of,
)
from vit_jax.weights.opening import open_weights
from vit_jax.weights.tensor_file import UNCHANGED, TensorFile

logger = logging.getLogger(__name__)


def load(
    source: str | os.PathLike,
    *,
    variant: str | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    pool: str | None = None,
    patch_size: int | Sequence[int] | None = None,
    resize: str = "linear",
    **attributes: Any,
) -> Checkpoint:
    """Returns weights of any format, adapted to a resolution and a task if that is asked for.

    Parameters that need no change are read when NumPy asks for them.

    Args:
      source: one of these. Downloads are kept in the folder `checkpoints/` of a clone of the
        repository; of an installed wheel, in `~/.cache/vit_jax/checkpoints/`.
        - a run's workdir, WORKDIR@best (its best checkpoint), or the folder of one of its
          checkpoints; also in a bucket
          (`gs://BUCKET/PATH`)
        - an `.npz` file with the names of the published JAX checkpoints
        - a state dict of timm (`.safetensors`, `.pth`, `.pt`, `.bin`), also in a folder with timm's
          config.json
        - the `https://` or `gs://` address of such a file
        - a folder of Hugging Face (`config.json` beside the weights), or `hf://ORGANISATION/NAME`,
          with `@REVISION` if need be, for one of the hub; its client keeps downloads in its cache
        - a name in `checkpoints/published.csv`
        - a variant such as "B/16", for the best AugReg checkpoint of ImageNet-21k
      variant: name of the model that the weights must be of. None takes it from the source, or
        recognises it from the shapes. Of a state dict, it may also be timm's name of the model,
        such as "vit_base_patch16_clip_224.openai", which says what the file doesn't.
      image_size: pixels, one side or (height, width). Position embeddings are resized for it (paper
        3.2). None keeps their size.
      num_classes: size of a new head of zeros, 0 for no head. It takes the place of everything that
        belongs to pre-training (paper B.1.1): see `surgery.HEAD`. None keeps the head.
      pool: "token" or "gap". The class token and its position are dropped, or are added as zeros.
        None keeps the pooling.
      patch_size: pixels, one side or (height, width). The patch embedding is resized for it
        (FlexiViT, arXiv 2212.08013). None keeps the size.
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
    if patch_size is not None:
        attributes["patch_size"] = patch_size
    found, refusal = open_weights(source, variant, pool, attributes)
    if refusal and num_classes is None:
        raise ValueError(refusal)
    return adapt(
        found,
        image_size=image_size,
        num_classes=num_classes,
        pool=pool,
        patch_size=patch_size,
        resize=resize,
    )


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
    return open_weights(source, variant, None, attributes)[0]


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
    patch_size: int | Sequence[int] | None = None,
    resize: str = "linear",
) -> Checkpoint:
    """Returns a checkpoint adapted to a resolution and a task, or as it is if nothing is asked for.

    An adapted checkpoint has no Polyak average. With a new head, it has no class names.

    Args:
      checkpoint: the weights to adapt.
      image_size, num_classes, pool, patch_size, resize: as for `load`.

    Raises:
      ValueError: the model can't have this size or pooling, or the positions can't be resized.

    Example:
      >>> checkpoint = vit_jax.load("checkpoints/quickstart")
      >>> vit_jax.adapt(checkpoint, num_classes=10).params["head"]["kernel"].shape
      (96, 10)
    """
    model = checkpoint.model()
    pool = None if pool == getattr(model, "pool", None) else pool
    patch_size = None if patch_size == getattr(model, "patch_size", None) else patch_size
    if (image_size, num_classes, pool, patch_size) == (None, None, None, None):
        return checkpoint
    changes: dict[str, Any] = {} if pool is None else {"pool": pool}
    if num_classes is not None:
        changes |= {k: v for k, v in surgery.WITHOUT.items() if k in checkpoint.params}
    if patch_size is not None:
        sides = list(patch_size) if isinstance(patch_size, list | tuple) else patch_size
        changes["patch_size"] = recognise.side_or_sides(two_sides("patch_size", sides))
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
        config.data.eval_image_size = None
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
        and "orbax". For "timm", a path without a suffix such as ".safetensors" becomes a folder of
        timm's hub, with its config.json. Only "orbax" can be written to a bucket (`gs://BUCKET/PATH`).
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
        checkpoint = surgery.with_learned_positions(checkpoint)
    with no_empty_folders(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if row.read is None:
            row.write(checkpoint, path)
            lost = []
        else:
            with replacing(pathlib.Path(path)) as partial:
                row.write(checkpoint, partial)
                lost = _lost_in(checkpoint, row, row.read(partial, ""))
    shown = printable(path)
    if lost:
        logger.warning("%s: this format has no place for %s.", shown, " and ".join(lost))
    if checkpoint.average is not None:
        logger.warning(
            "%s: the Polyak average is left out; to write it in place of the parameters: "
            "convert --average, or Checkpoint.averaged().",
            shown,
        )
    unrecorded = differences_for_readers(checkpoint.model(), format)
    if unrecorded and not path.is_dir():  # a folder's config.json says it
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
    own, others = (view_of(x.config.data)._asdict() for x in (checkpoint, found))
    own["eval_crop"] = own["eval_crop"].removesuffix("_down")  # at most half a pixel
    others["eval_crop"] = others["eval_crop"].removesuffix("_down")
    view = [key for key in own if own[key] != others[key]]
    return lost + [f"data.{key}={own[key]}" for key in view]


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
        mean=UNCHANGED,
        std=UNCHANGED,
    )
    save(recognise.to_checkpoint(file, variant, **attributes), destination, format=format)
