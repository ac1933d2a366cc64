"""Weights of any format, opened as they are: where they are, and what is published of them."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint, read_checkpoint
from vit_jax.common.files import is_bucket
from vit_jax.weights import architectures, catalogue, recognise
from vit_jax.weights.formats import open_file
from vit_jax.weights.tensor_file import TensorFile, refused_head


def open_weights(
    source: str | os.PathLike, variant: str | None, pool: str | None, attributes: dict[str, Any]
) -> tuple[Checkpoint, str]:
    """Returns weights as they are, and why their head can't be kept, "" if it can.

    Args:
      source, variant, attributes: as for `api.load`.
      pool: the pooling, where the arrays don't show it. None if the caller doesn't know it.

    Raises:
      ValueError, FileNotFoundError: as `api.load`.
    """
    row = catalogue.published_row(source)
    path = catalogue.find(source)
    architecture, is_given = "", False
    if variant is not None and architectures.attributes_of(variant) is not None:
        architecture, variant, is_given = variant, None, True
    elif row is not None:
        architecture = row.architecture
    file = None if is_bucket(path) else open_file(pathlib.Path(path), architecture)
    if is_given and (file is None or not file.architecture):
        raise ValueError(
            f"{path}: {architecture} is timm's name of a model, which says what a state dict of "
            f"timm doesn't. This is none, or it has a record of ours: leave the variant out."
        )
    if file is not None:
        file = _with_published(file, row)
        found = recognise.to_checkpoint(file, variant, assumed_pool=pool, **attributes)
        return found, refused_head(file, found.num_classes)
    found = read_checkpoint(path, lazy=True)
    if variant is not None and models.canonical(variant) != found.config.model.variant:
        raise ValueError(f"{found.path} is a {found.config.model.variant}, not a {variant}.")
    return found, ""


def _with_published(file: TensorFile, row: catalogue.Published | None) -> TensorFile:
    """Returns an opened file with what is published of its weights, where it doesn't say it.

    Args:
      file: the opened file.
      row: the published checkpoint that it is. None takes that of its architecture.
    """
    row = row or catalogue.timm_row(file.architecture)
    if row is None:
        return file
    scale = (row.mean, row.std) if file.mean is None else (file.mean, file.std)
    return file._replace(
        model={**row.attributes, **file.model},
        mean=scale[0],
        std=scale[1],
        view=file.view or row.view,
    )
