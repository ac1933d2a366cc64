"""Orbax checkpoints of a run: `WORKDIR/checkpoints/STEP/{params,optimizer,metadata}`.

`params`, `optimizer` (with the step) and, where one is kept, `average`, the Polyak average of the
parameters, are arrays, and `metadata` is JSON that lets a checkpoint be opened without its
configuration: `config`, `class_names`, `step`. The position in the data is the step. Arrays are
written by all processes, each the parts it holds, and read by any number of devices.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
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
from orbax.checkpoint import checkpoint_managers

from vit_jax import config as config_lib
from vit_jax import data, models
from vit_jax.step import TrainState


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
        return None if size is None else data.image_shape(size)

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
        attributes = {"num_classes": self.num_classes, **config_lib.model_overrides(self.config)}
        attributes.pop("implementation", None)  # was for the devices it was trained on
        return models.build(self.config.model.variant, **{**attributes, **changes})


class Checkpoints:
    """The checkpoints of one run, written in the background.

    Args:
      workdir: the run's folder, on this machine or in a bucket (`gs://BUCKET/PATH`).
      keep: how many of the newest checkpoints stay.
    """

    def __init__(self, workdir: str | epath.PathLike, keep: int):
        self._manager = ocp.CheckpointManager(
            absolute(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep)
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the newest complete checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return str(self._manager.directory / str(step))

    def save(
        self,
        state: TrainState,
        config: ConfigDict,
        class_names: tuple[str, ...],
    ) -> None:
        """Starts to save a state; returns as soon as the arrays may change again."""
        step = int(state.step)
        if step == self.latest_step():
            return
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **arrays,
                metadata=ocp.args.JsonSave(_noted(config, class_names, step)),
            ),
        )

    def restore(self, state: TrainState) -> TrainState:
        """Returns the newest checkpoint's state.

        Args:
          state: gives structure, shapes and placement on the devices.

        Raises:
          ValueError: the parameters are not those of `state`; each difference is named. Or only
            one of the two has a Polyak average.
        """
        step = self._manager.latest_step()
        folder = epath.Path(self.path(step))
        check_same(_shapes(folder / "params"), state.params, self.path(step))
        if (folder / "average").is_dir() != (state.average is not None):
            has = "no" if state.average is not None else "a"
            raise ValueError(
                f"{folder} has {has} Polyak average: optim.polyak can't be turned on or off in the "
                f"middle of a run. Keep it, or start in a new workdir with init_from."
            )
        arrays = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**arrays))
        average = {"average": restored.average} if "average" in arrays else {}
        return TrainState(params=restored.params, **restored.optimizer, **average)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def _noted(config: ConfigDict, class_names: tuple[str, ...], step: int) -> dict[str, Any]:
    return {
        "config": json.loads(config.to_json()), "class_names": list(class_names), "step": step,
    }  # fmt: skip


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the trees of arrays that a checkpoint of a state has, by the folder's name."""
    items = {
        "params": state.params,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }
    return items if state.average is None else {**items, "average": state.average}


def absolute(path: str | epath.PathLike) -> epath.Path:
    """Returns where a folder is, on this machine or, as `gs://BUCKET/PATH`, in a bucket.

    Raises:
      ValueError: what reads and writes buckets is not installed, or Google doesn't know us.
      FileNotFoundError: there is no such bucket.
    """
    path = os.fspath(path)
    if not path.startswith("gs://"):
        return epath.Path(path).expanduser().resolve()
    try:
        from gcsfs.retry import HttpError
    except ImportError as error:
        raise ValueError(
            f"{path} is in a bucket of Google Cloud Storage, and reading and writing there needs "
            f'gcsfs: pip install "vit_jax[gcs]", in a checkout pip install -e ".[gcs]".'
        ) from error
    bucket = epath.Path("gs://" + path.split("/")[2])
    try:
        there = bucket.exists()
    except HttpError as error:
        raise ValueError(
            f"{bucket} can't be read: {error}. `gcloud auth application-default login` logs in."
        ) from error
    if not there:  # gcsfs would create it, wherever
        raise FileNotFoundError(f"There is no bucket {bucket}, or none that we may see: create it.")
    return epath.Path(path)  # without resolve(), which takes it for a folder of this one


def find(path: str | epath.PathLike) -> epath.Path:
    """Returns the folder of a checkpoint: `path` itself, or the newest one of the run in `path`.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: it is in a bucket that can't be read, see `absolute`.
    """
    root = absolute(path)
    if (root / "params").is_dir():
        return root
    runs = [folder for folder in (root / "checkpoints", root) if folder.is_dir()]
    for folder in runs:
        steps = ocp.utils.checkpoint_steps(folder)
        if steps:
            return folder / str(max(steps))
    raise FileNotFoundError(
        f"There is no checkpoint in {path}: expected a run's workdir with checkpoints/STEP, or "
        f"one of its STEP folders."
    )


def load(path: str | epath.PathLike, *, lazy: bool = False) -> Checkpoint:
    """Opens a checkpoint without its configuration.

    Args:
      path: a run's workdir (its newest checkpoint), or one checkpoint's folder.
      lazy: leaves parameters on disk until NumPy asks for them; else they are NumPy arrays.

    Raises:
      FileNotFoundError: there is no checkpoint there.
    """
    folder = find(path)
    metadata = _metadata(folder)
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
    shapes = flatten_dict(_shapes(folder), sep="/")
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


def save(checkpoint: Checkpoint, path: str | epath.PathLike) -> None:
    """Writes a checkpoint of its own, which `load` opens: `PATH/{params,metadata}`.

    Args:
      checkpoint: its parameters are read one by one, and need to fit into memory once.
      path: a folder that does not exist yet.
    """
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(save_concurrent_gb=_SAVED_AT_ONCE_GB),
        metadata=ocp.JsonCheckpointHandler(),
    )
    metadata = _noted(checkpoint.config, checkpoint.class_names, checkpoint.step)
    params = jax.tree.map(jnp.asarray, checkpoint.params)  # NumPy arrays would be copied
    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
        checkpointer.save(
            absolute(path),
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(params), metadata=ocp.args.JsonSave(metadata)
            ),
        )


_SAVED_AT_ONCE_GB = 0.1


def load_config(path: str | epath.PathLike) -> ConfigDict:
    """Returns the configuration noted in a checkpoint, without reading its parameters.

    Raises:
      FileNotFoundError: there is no checkpoint there.
    """
    return ConfigDict(_metadata(find(path))["config"])


def _metadata(folder: epath.Path) -> dict[str, Any]:
    return ocp.JsonCheckpointHandler().restore(folder / "metadata", args=ocp.args.JsonRestore())


def _shapes(folder: epath.Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def check_same(found: Any, wanted: Any, where: str) -> None:
    """Compares the names and shapes of two parameter trees.

    Args:
      found, wanted: nested dictionaries of anything with a shape.
      where: what `found` is, for the message.

    Raises:
      ValueError: lists every missing, unexpected and wrong-shaped parameter by name.
    """
    shapes = ({name: tuple(x.shape) for name, x in flatten_dict(tree, sep="/").items()}
              for tree in (found, wanted))
    if problems := differences(*shapes):
        raise ValueError(f"{where} doesn't fit the model: " + "; ".join(problems) + ".")


def differences(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> list[str]:
    """Returns a sentence for every missing, unexpected and wrong-shaped parameter of `found`.

    What is unexpected comes with the missing parameter of the most similar name, if there is one.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    comparable = len(missing) * len(extra) < 10_000  # else it is another model altogether
    problems = [f"{name} is missing" for name in missing]
    for name in extra:
        close = difflib.get_close_matches(name, missing, n=1) if comparable else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        problems.append(f"{name} is not in the model{hint}")
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            turned = " (transposed?)" if sorted(found[name]) == sorted(shape) else ""
            problems.append(f"{name} has the shape {found[name]}, the model's is {shape}{turned}")
    return problems
