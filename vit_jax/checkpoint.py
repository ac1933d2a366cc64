"""Orbax checkpoints of a run: `WORKDIR/checkpoints/STEP/{params,optimizer,data,metadata}`.

`params` and `optimizer` (with the step) are arrays, `data` is the position of the training
iterator, and `metadata` is JSON that lets a checkpoint be opened without its configuration:
`config`, `class_names`, `step`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from vit_jax import config as config_lib
from vit_jax import models
from vit_jax.step import TrainState


class Checkpoint(NamedTuple):
    """A checkpoint opened by `load`: parameters as NumPy arrays, and what the run noted down."""

    path: str
    params: Any
    config: ConfigDict
    class_names: tuple[str, ...]
    step: int

    def model(self) -> nn.Module:
        """Returns the module that the parameters belong to."""
        return models.build(
            self.config.model.variant,
            num_classes=len(self.class_names),
            **config_lib.model_overrides(self.config),
        )


class Checkpoints:
    """The checkpoints of one run, written in the background.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay.
    """

    def __init__(self, workdir: str | epath.PathLike, keep: int):
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).resolve() / "checkpoints",
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
        batches: grain.DatasetIterator,
        config: ConfigDict,
        class_names: tuple[str, ...],
    ) -> None:
        """Starts to save a state; returns as soon as the arrays may change again."""
        step = int(state.step)
        if step == self.latest_step():
            return
        metadata = {
            "config": json.loads(config.to_json()),
            "class_names": list(class_names),
            "step": step,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(_optimizer_item(state)),
                data=grain.checkpoint.CheckpointSave(batches),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """Returns the newest checkpoint's state, and moves `batches` to where it was.

        Args:
          state: gives structure, shapes and placement on the devices.
          batches: the training iterator.

        Raises:
          ValueError: the parameters are not those of `state`; each difference is named.
        """
        step = self._manager.latest_step()
        check_same(_shapes(epath.Path(self.path(step))), state.params, self.path(step))
        params, optimizer = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, (state.params, _optimizer_item(state))
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params),
                optimizer=ocp.args.StandardRestore(optimizer),
                data=grain.checkpoint.CheckpointRestore(batches),
            ),
        )
        return TrainState(params=restored.params, **restored.optimizer)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def find(path: str | epath.PathLike) -> epath.Path:
    """Returns the folder of a checkpoint: `path` itself, or the newest one of the run in `path`.

    Raises:
      FileNotFoundError: there is no checkpoint there.
    """
    root = epath.Path(path).expanduser().resolve()
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


def load(path: str | epath.PathLike) -> Checkpoint:
    """Opens a checkpoint without its configuration; parameters come as NumPy arrays.

    Args:
      path: a run's workdir (its newest checkpoint), or one checkpoint's folder.

    Raises:
      FileNotFoundError: there is no checkpoint there.
    """
    folder = find(path)
    as_numpy = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), _shapes(folder))
    params = ocp.PyTreeCheckpointHandler().restore(
        folder / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
    )
    metadata = ocp.JsonCheckpointHandler().restore(
        folder / "metadata", args=ocp.args.JsonRestore()
    )
    return Checkpoint(
        path=str(folder),
        params=params,
        config=ConfigDict(metadata["config"]),
        class_names=tuple(metadata["class_names"]),
        step=metadata["step"],
    )


def _shapes(folder: epath.Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(folder / "params").tree


def check_same(found: Any, wanted: Any, where: str) -> None:
    """Compares the names and shapes of two parameter trees.

    Args:
      found, wanted: nested dictionaries of anything with a shape.
      where: what `found` is, for the message.

    Raises:
      ValueError: lists every missing, unexpected and wrong-shaped parameter by name.
    """
    found, wanted = flatten_dict(found, sep="/"), flatten_dict(wanted, sep="/")
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not in the model" for name in found if name not in wanted]
    problems += [
        f"{name} has the shape {tuple(found[name].shape)}, the model's is {wanted[name].shape}"
        for name in wanted
        if name in found and tuple(found[name].shape) != wanted[name].shape
    ]
    if problems:
        raise ValueError(f"{where} doesn't fit the model: " + "; ".join(problems) + ".")
