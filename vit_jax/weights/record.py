"""The record in a file of weights: its model, image size and classes, which no array shows.

Other programs ignore it. It is in the metadata of a safetensors file, or in the comment of a zip
file, which `.npz` files and those of PyTorch are.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from typing import Any, BinaryIO, NamedTuple

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.keys import model_attributes
from vit_jax.data.transforms import View
from vit_jax.models import attributes
from vit_jax.weights.checked_json import get_typed, parse_json, two_sides
from vit_jax.weights.tensor_file import CLASSES, MULTI_LABEL, UNCHANGED, TensorFile

KEY = "vit_jax"  # of the record, in the metadata of safetensors
_COMMENT_START = b'{"vit_jax": '  # tells our comment of a zip file from those of other programs
_MOST_BYTES = 2**16 - 1  # of the comment of a zip file


class Record(NamedTuple):
    """What a file says of its model.

    Attributes:
      model: "variant", and attributes as `models.build` takes them. {} if there is no record.
      image_size: (height, width) in pixels. None if it is not recorded.
      class_names: names of the classes, in the order of the logits. () if they are not recorded.
      problem_type: what the head answers, `CLASSES` or `MULTI_LABEL`. None if there is no record.
      view: how images are resized and cut in evaluation, see `TensorFile`.
    """

    model: dict[str, Any]
    image_size: tuple[int, int] | None
    class_names: tuple[str, ...]
    problem_type: str | None
    view: dict[str, Any]

    def added_to(self, file: TensorFile) -> TensorFile:
        """Returns an opened file with what the record in it says; our own images are in [-1, 1]."""
        if not self.model:
            return file
        return file._replace(
            model={**file.model, **self.model},
            image_size=self.image_size,
            class_names=self.class_names,
            problem_type=self.problem_type,
            mean=UNCHANGED,
            std=UNCHANGED,
            view=self.view,
        )


def write_record(checkpoint: Checkpoint) -> str:
    """Returns the record of a checkpoint, as JSON."""
    model = checkpoint.model()
    recorded = {"variant": checkpoint.config.model.variant}
    recorded |= attributes.of_kind(model_attributes(checkpoint.config), "size", "weights")
    recorded |= {k: getattr(model, k) for k in attributes.names("mathematics") if hasattr(model, k)}
    record = {
        "model": recorded,
        "image_size": checkpoint.image_shape,
        "class_names": checkpoint.class_names,
        "view": {key: checkpoint.config.data.get(key) for key in View._fields},
        "loss": checkpoint.loss,
    }
    return json.dumps(record)


def read_record(path: pathlib.Path, text: str | bytes) -> Record:
    """Returns what a record says.

    Args:
      path: the file that the record is in, for messages.
      text: the record, "{}" if there is none.

    Raises:
      ValueError: the record is damaged.
    """
    record = parse_json(path, text)
    try:
        model = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in get_typed(record, "model", {}).items()
        }
        image_size = record.get("image_size")
        image_size = None if image_size is None else two_sides("image_size", image_size)
        class_names = tuple(map(str, get_typed(record, "class_names", [])))
        view = {
            key: x
            for key, x in get_typed(record, "view", {}).items()
            if key in View._fields and x is not None
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    problem_type = MULTI_LABEL if record.get("loss") == "sigmoid" else CLASSES
    return Record(model, image_size, class_names, problem_type if model else None, view)


def write_comment(checkpoint: Checkpoint) -> bytes:
    """Returns the comment of a zip file: the record, without class names if it has no room."""
    text = write_record(checkpoint)
    if len(_COMMENT_START) + len(text) + 1 > _MOST_BYTES:
        text = write_record(checkpoint._replace(class_names=()))
    return _COMMENT_START + text.encode() + b"}"


def read_comment(file: BinaryIO, archive: zipfile.ZipFile) -> str:
    """Returns the record in the comment of a zip file, "{}" if it is another comment or none.

    Args:
      file: the opened file.
      archive: the same, as a zip file.

    Raises:
      ValueError: the file is cut off in the comment, which the zip format allows.
    """
    comment = archive.comment
    file.seek(-len(comment) - 22, os.SEEK_END)
    end = file.read(22)  # of the directory; its last two bytes are the length of the comment
    if end.startswith(b"PK\5\6") and int.from_bytes(end[20:], "little") > len(comment):
        raise ValueError("its last bytes are missing")
    if not comment.startswith(_COMMENT_START):
        return "{}"
    return comment[len(_COMMENT_START) : -1].decode("utf-8", "replace")
