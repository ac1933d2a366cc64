"""checkpoint"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.checkpoints.integrity import MANIFEST, check_whole, write_manifest
from vit_jax.common.files import absolute, is_bucket
from vit_jax.config.keys import image_shape, model_attributes


class Checkpoint(NamedTuple):
    """A model's parameters, and what is known of them.

    Attributes:
      path: where it was opened.
      params: tree of float32 arrays, or of what becomes one when NumPy asks for it.
      config: of the run; of weights from elsewhere, `model` and `data.image_size` alone mean
        something.
      class_names: in the order of the logits; () where they are not known.
      step: updates done, 0 for weights from elsewhere.
      average: the Polyak average of the parameters, as `params`; None where there is none.
    """

    path: str
    params: Any
    config: ConfigDict
    class_names: tuple[str, ...]
    step: int
    average: Any = None

    @property
    def num_classes(self) -> int:
        """The size of the head, 0 where there is none."""
        return self.params["head"]["bias"].shape[0] if "head" in self.params else 0

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(h, w) in pixels of the images the parameters are for, None where it is not known."""
        size = self.config.data.image_size
        return None if size is None else image_shape(size)

    def averaged(self) -> Checkpoint:
        """Returns the checkpoint with the Polyak average in the place of its parameters.

        Raises:
          ValueError: there is none.
        """
        if self.average is None:
            raise ValueError(f"{self.path} has no Polyak average: its run had optim.polyak=0.")
        return self._replace(params=self.average, average=None)

    def model(self, **changes: Any) -> nn.Module:
        """Returns the module that the parameters belong to, or one that departs from it."""
        attributes = {"num_classes": self.num_classes, **model_attributes(self.config)}
        attributes.pop("implementation", None)  # was for the devices it was trained on
        return models.build(self.config.model.variant, **{**attributes, **changes})


def steps_in(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def is_checkpoint(folder: epath.Path) -> bool:
    """Tells whether a folder whose name is a step's is a checkpoint, whole or damaged."""
    return any((folder / name).exists() for name in ("params", MANIFEST))


def find_checkpoint(path: str | epath.PathLike) -> epath.Path:
    """Returns the folder of a checkpoint: `path` itself, or the newest one of the run in `path`.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: it is in a bucket that can't be read, see `absolute`.
    """
    root = absolute(path)
    if (root / "params").is_dir():
        return root
    for folder in (root / "checkpoints", root):
        for step in reversed(steps_in(folder)):
            if is_checkpoint(found := folder / str(step)):
                return found
    raise FileNotFoundError(
        f"There is no checkpoint in {path}: expected a run's workdir with checkpoints/STEP, or "
        f"one of its STEP folders."
    )


def read_checkpoint(path: str | epath.PathLike, *, lazy: bool = False) -> Checkpoint:
    """Opens a checkpoint without its configuration.

    Args:
      path: a run's workdir (its newest checkpoint), or one checkpoint's folder.
      lazy: leaves parameters on disk until NumPy asks for them; else they are NumPy arrays.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: it is damaged; names the files.
    """
    folder = find_checkpoint(path)
    check_whole(folder, "params", "average", "metadata")
    metadata = read_metadata(folder)
    average = folder / "average"
    return Checkpoint(
        path=str(folder),
        params=_parameters(folder / "params", lazy),
        config=ConfigDict(metadata["config"]),
        class_names=tuple(metadata["class_names"]),
        step=metadata["step"],
        average=_parameters(average, lazy) if average.is_dir() else None,
    )


def _parameters(folder: epath.Path, lazy: bool) -> Any:
    """Returns the tree in a folder, of arrays or, if lazy, of what reads them when asked."""
    shapes = flatten_dict(stored_shapes(folder), sep="/")
    restore = functools.partial(_restore, folder)
    if not lazy:
        return unflatten_dict(restore(shapes), sep="/")

    @functools.lru_cache(maxsize=1)
    def restore_group(group):  # a block at a time: fewer reads, little memory
        return restore([name for name in shapes if _group(name) == group])

    stored = {name: _StoredArray(name, x, restore_group) for name, x in shapes.items()}
    return unflatten_dict(stored, sep="/")


class _StoredArray:
    """A parameter on disk: `np.asarray` reads it."""

    def __init__(self, name: str, metadata: Any, restore_group: Callable[[str], dict]):
        self.shape = tuple(metadata.shape)
        self._name, self._restore_group = name, restore_group

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._restore_group(_group(self._name))[self._name], dtype)


def _group(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _restore(folder: epath.Path, names: Collection[str]) -> dict[str, np.ndarray]:
    def tree(leaf):
        return unflatten_dict(dict.fromkeys(names, leaf), sep="/")

    args = ocp.args.PyTreeRestore(
        item=tree(0),
        restore_args=tree(ocp.RestoreArgs(restore_type=np.ndarray)),
        partial_restore=True,
    )
    return flatten_dict(ocp.PyTreeCheckpointHandler().restore(folder, args=args), sep="/")


def write_checkpoint(checkpoint: Checkpoint, path: str | epath.PathLike) -> None:
    """Writes a checkpoint of its own, which `read_checkpoint` opens: `PATH/{params,metadata,manifest.json}`.

    Args:
      checkpoint: its parameters are read one by one, and need to fit into memory once.
      path: a folder that does not exist yet.
    """
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(save_concurrent_gb=_SAVED_AT_ONCE_GB),
        metadata=ocp.JsonCheckpointHandler(),
    )
    metadata = metadata_of(checkpoint.config, checkpoint.class_names, checkpoint.step)
    params = jax.tree.map(jnp.asarray, checkpoint.params)  # NumPy arrays would be copied
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        checkpointer.save(
            absolute(path),
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(params), metadata=ocp.args.JsonSave(metadata)
            ),
        )
    if not is_bucket(absolute(path)):
        write_manifest(absolute(path))


_SAVED_AT_ONCE_GB = 0.1


def metadata_of(config: ConfigDict, class_names: tuple[str, ...], step: int) -> dict[str, Any]:
    return {
        "config": json.loads(config.to_json()),
        "class_names": list(class_names),
        "step": step,
    }


def read_config(path: str | epath.PathLike) -> ConfigDict:
    """Returns the configuration noted in a checkpoint, without reading its parameters.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: it is damaged.
    """
    folder = find_checkpoint(path)
    check_whole(folder, "metadata")
    return ConfigDict(read_metadata(folder)["config"])


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    return ocp.JsonCheckpointHandler().restore(folder / "metadata", args=ocp.args.JsonRestore())


def stored_shapes(folder: epath.Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree
