"""The checkpoints of one run: saved in the background, restored, and damaged ones are refused."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from vit_jax.checkpoints.best import Best, best_as_metadata, best_in_metadata
from vit_jax.checkpoints.checkpoint import (
    is_checkpoint,
    steps_in,
    stored_shapes,
)
from vit_jax.checkpoints.integrity import (
    damage_message,
    explain_damage,
    find_damage,
    write_manifest,
)
from vit_jax.checkpoints.metadata import metadata_of, read_metadata
from vit_jax.common.files import absolute, is_bucket, reason_of
from vit_jax.models.params import check_same
from vit_jax.training.step import TrainState

logger = logging.getLogger(__name__)

_PARTIAL = ".orbax-checkpoint-tmp"  # part of the names of folders that Orbax has not finished
# The key of the pending metrics in a checkpoint's metadata. Version 0.1 wrote it: with another key,
# runs could not be resumed from its checkpoints.
_PENDING = "window"


class CheckpointManager:
    """The checkpoints of one run, written in the background.

    Unfinished checkpoints of an interrupted run are removed.

    Args:
      workdir: the run's folder, on this machine or in a bucket (`gs://BUCKET/PATH`).
      keep: number of newest checkpoints that are kept. The best is kept beside them, see `save`.
      fallback: if True, damaged checkpoints are renamed to STEP.damaged, and the newest undamaged
        one counts as the newest.

    Attributes:
      best: the best test up to the newest checkpoint, None if it says of none.

    Raises:
      ValueError: the newest checkpoint is damaged, and `fallback` is False or all are damaged;
        names the folder and its files. Or a folder that has a number for a name is no checkpoint.
    """

    def __init__(self, workdir: str | epath.PathLike, keep: int, *, fallback: bool = False):
        self._folder = absolute(workdir) / "checkpoints"
        self._failed = False
        for partial in _unfinished(self._folder):
            logger.info("%s was not finished, and is removed", partial)
        _check_numbered_folders(self._folder)
        _set_damaged_aside(self._folder, fallback)
        self._kept = _KeptStep()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(keep), self._kept]
                ),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )
        self.best = None
        if (latest := self.latest_step()) is not None:
            self.best = best_in_metadata(read_metadata(epath.Path(self.path(latest))))

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint. None if there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return str(self._folder / str(step))

    def save(
        self,
        state: TrainState,
        config: ConfigDict,
        class_names: tuple[str, ...],
        pending: Sequence[Mapping[str, np.ndarray]] = (),
        data: Mapping[str, Any] | None = None,
        best: Best | None = None,
    ) -> None:
        """Starts to save a state, and returns as soon as its arrays may be overwritten.

        Nothing happens if the newest checkpoint is of the same step.

        Args:
          state: the state after an update.
          config: the run's configuration.
          class_names: names of the classes, in the order of the logits.
          pending: scalar metrics of each step that metrics.csv has no row of yet.
          data: of the data of the run, see `Fingerprint.splits`. None if it is unknown.
          best: the best test so far, whose checkpoint is this one or one that was saved before. It
            is kept until another is the best. None keeps none but the newest.

        Raises:
          OSError: this checkpoint or the one before it can't be written; says why, and which
            checkpoint is left.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        metadata = metadata_of(config, class_names, step, data) | {
            "nonfinite": int(state.nonfinite),
            "skipped": int(state.skipped),
            **best_as_metadata(best),
            _PENDING: [{name: x.item() for name, x in metrics.items()} for metrics in pending],
        }
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        # Orbax deletes a checkpoint that isn't kept any more when the new one is complete.
        self._kept.step = None if best is None else best.step
        with self._explain_failure():
            if not (is_bucket(self._folder) or self._folder.is_dir()):
                raise FileNotFoundError(f"the folder {self._folder} is gone")
            self._manager.save(
                step, args=ocp.args.Composite(**arrays, metadata=ocp.args.JsonSave(metadata))
            )

    def restore(self, state: TrainState) -> tuple[TrainState, list[dict[str, np.ndarray]]]:
        """Returns the state and the pending metrics of the newest checkpoint, as they were saved.

        Args:
          state: a state with the same structure, shapes and sharding.

        Raises:
          ValueError: the stored parameters are not those of `state`; each difference is named. Or
            only one of the two has a Polyak average, or their optimizers' states differ.
        """
        step = self._manager.latest_step()
        folder = epath.Path(self.path(step))
        check_same(stored_shapes(folder / "params"), state.params, self.path(step))
        if (folder / "average").is_dir() != (state.average is not None):
            has = "no" if state.average is not None else "a"
            raise ValueError(
                f"{folder} has {has} Polyak average: optim.polyak can't be turned on or off in the "
                f"middle of a run. Keep it, or start in a new workdir with init_from."
            )
        stored = stored_shapes(folder / "optimizer")
        if _names(stored.get("opt_state")) != _names(state.opt_state):
            raise ValueError(
                f"{folder} has the state of another optimizer: optim.name and optim.freeze can't "
                f"be changed in the middle of a run. Keep them, or start in a new workdir with "
                f"init_from."
            )
        arrays = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _trees(state).items()
        }
        with explain_damage(folder, "params or optimizer"):
            restored = self._manager.restore(step, args=ocp.args.Composite(**arrays))
        metadata = read_metadata(folder)
        counts = {
            name: jax.device_put(np.int32(metadata.get(name, 0)), state.step.sharding)
            for name in ("nonfinite", "skipped")
        }
        average = {"average": restored.average} if "average" in arrays else {}
        state = TrainState(params=restored.params, **restored.optimizer, **average, **counts)
        pending = [
            {
                name: np.asarray(x, np.int32 if isinstance(x, int) else np.float32)[()]
                for name, x in metrics.items()
            }
            for metrics in metadata.get(_PENDING, [])
        ]
        return state, pending

    def close(self) -> None:
        """Waits until every checkpoint is written.

        Raises:
          OSError: the last checkpoint can't be written; the message is that of `save`.
        """
        if not self._failed:
            with self._explain_failure():
                self._manager.close()

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """Turns any error of Orbax into an OSError of one paragraph, and removes partial files."""
        try:
            yield
        except Exception as error:  # of many kinds: TensorStore reports a full disk as ValueError
            self._failed = True
            for partial in _unfinished(self._folder):
                shutil.rmtree(partial, ignore_errors=True)
            newest = max(steps_in(self._folder), default=None)
            left = "None was saved before" if newest is None else f"{self.path(newest)} is complete"
            next_run = "begins again" if newest is None else "goes on from there"
            raise OSError(
                f"A checkpoint can't be written to {self._folder}: {reason_of(error)}. {left}. "
                f"When there is space for it, and permission, the same command {next_run}."
            ) from error

    def _write_manifest(self) -> None:
        """Writes the manifest of a complete checkpoint, just before Orbax gives it its name."""
        if jax.process_index() == 0:
            for partial in _unfinished(self._folder):
                write_manifest(partial)


class _KeptStep:
    """Orbax's policy that keeps the checkpoint of one step, `step`; None keeps none."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        return [x.step == self.step for x in checkpoints]


def _trees(state: TrainState) -> dict[str, Any]:
    """Returns the trees of arrays that a checkpoint stores, by the name of their subfolder."""
    trees = {
        "params": state.params,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }
    return trees if state.average is None else {**trees, "average": state.average}


def _names(tree: Any) -> set[str]:
    """Returns the names of the arrays of a tree, such as "1/trace/head/bias"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}


def _unfinished(folder: epath.Path) -> list[epath.Path]:
    """Returns the folders that Orbax has not finished. In a bucket they have their final names."""
    if is_bucket(folder) or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PARTIAL in path.name)


def _check_numbered_folders(folder: epath.Path) -> None:
    """Raises ValueError if Orbax would take a user's folder for an old checkpoint and delete it."""
    for step in steps_in(folder):
        path = folder / str(step)
        if not is_checkpoint(path):
            raise ValueError(
                f"{path} has no params, so it is no checkpoint of this run, but has the name of "
                f"one, and would be deleted when newer ones are saved: move or rename it."
            )


def _set_damaged_aside(folder: epath.Path, fallback: bool) -> None:
    """Renames the newest checkpoints until one is undamaged; raises as `CheckpointManager`."""
    steps = steps_in(folder)
    while steps and (damage := find_damage(newest := folder / str(steps[-1]))):
        steps.pop()
        message = damage_message(newest, damage)
        if not steps:
            raise ValueError(f"{message} There is none before it: start in another workdir.")
        if not fallback:
            raise ValueError(
                f"{message} --config.checkpoint.fallback=true goes on from {steps[-1]}, the one "
                f"before."
            )
        aside = folder / f"{newest.name}.damaged"
        logger.warning("%s It is kept as %s.", message, aside.name)
        # All processes have looked before one renames, and none goes on before it is renamed.
        multihost_utils.sync_global_devices("damage seen")
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            newest.rename(aside)
        multihost_utils.sync_global_devices("damage put aside")
