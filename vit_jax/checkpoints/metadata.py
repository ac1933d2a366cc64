"""A checkpoint's metadata: the JSON beside its arrays, made, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.best import best_in_metadata
from vit_jax.checkpoints.integrity import explain_damage
from vit_jax.config.keys import image_shape


def metadata_of(
    config: ConfigDict,
    class_names: tuple[str, ...],
    step: int,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what a checkpoint's JSON says. Arguments: see `checkpoint.Checkpoint`."""
    return {
        "config": json.loads(config.to_json()),
        "class_names": list(class_names),
        "step": step,
        "data": data,
    }


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    """Returns a checkpoint's JSON: what `metadata_of` returns, and what a `CheckpointManager` adds.

    Args:
      folder: the checkpoint's folder.

    Raises:
      ValueError: the JSON is damaged.
      OSError: the system can't read it at the moment.
    """
    with explain_damage(folder, "metadata"):
        args = ocp.args.JsonRestore()
        metadata = ocp.JsonCheckpointHandler().restore(folder / "metadata", args=args)
        missing = {"config", "class_names", "step"} - metadata.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        config = ConfigDict(metadata["config"])
        if not isinstance(config.model.variant, str):
            raise ValueError("config.model.variant is no text")
        if (size := config.data.image_size) is not None and min(image_shape(size)) < 1:
            raise ValueError(f"config.data.image_size is {size}")
        if not all(isinstance(name, str) for name in metadata["class_names"]):
            raise ValueError("class_names are no texts")
        int(metadata["step"])
        best_in_metadata(metadata)
        for part in ("train", "test") if metadata.get("data") is not None else ():
            if missing := {"split", "images", "ids"} - metadata["data"].get(part, {}).keys():
                raise ValueError(f"data.{part} lacks {', '.join(sorted(missing))}")
    return metadata
