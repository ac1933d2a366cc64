"""manager"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from vit_jax.checkpoints.checkpoint import (
    is_checkpoint,
    metadata_of,
    read_metadata,
    steps_in,
    stored_shapes,
)
from vit_jax.checkpoints.integrity import damage_message, find_damage, write_manifest
from vit_jax.common.files import absolute, is_bucket
from vit_jax.models.params import check_same
from vit_jax.training.step import TrainState

logger = logging.getLogger(__name__)

_PARTIAL = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax is writing


class CheckpointManager:
    """The checkpoints of one run, written in the background.

    What an interrupted run left of one that it was writing is removed.

    Args:
      workdir: the run's folder, on this machine or in a bucket (`gs://BUCKET/PATH`).
      keep: how many of the newest checkpoints stay.
      fallback: take the newest that is whole, and rename those that are not to STEP.damaged.

    Raises:
      ValueError: the newest is damaged, and `fallback` False or none whole; names folder and files.
        Or a folder with a number for a name is none of ours.
    """

    def __init__(self, workdir: str | epath.PathLike, keep: int, *, fallback: bool = False):
        self._folder = absolute(workdir) / "checkpoints"
        self._failed = False
        for partial in _partial(self._folder):
            logger.info("%s was not finished, and is removed", partial)
        _check_ours(self._folder)
        _skip_damaged(self._folder, fallback)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the newest complete checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return str(self._folder / str(step))

    def save(
        self,
        state: TrainState,
        config: ConfigDict,
        class_names: tuple[str, ...],
        window: list[dict[str, np.ndarray]] = (),
    ) -> None:
        """Starts to save a state; returns as soon as the arrays may change again.

        Args:
          state: to save.
          config, class_names: to open it with.
          window: metrics of the steps that metrics.csv has no row of yet.

        Raises:
          OSError: this one, or the one before it, can't be written; says why, and what there is.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        metadata = metadata_of(config, class_names, step) | {
            "nonfinite": int(state.nonfinite),
            "skipped": int(state.skipped),
            "window": [{name: x.item() for name, x in metrics.items()} for metrics in window],
        }
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with self._told():
            if not (is_bucket(self._folder) or self._folder.is_dir()):
                raise FileNotFoundError(f"the folder {self._folder} is gone")
            self._manager.save(
                step, args=ocp.args.Composite(**arrays, metadata=ocp.args.JsonSave(metadata))
            )

    def restore(self, state: TrainState) -> tuple[TrainState, list[dict[str, np.ndarray]]]:
        """Returns the newest checkpoint's state and window, as `save` was given them.

        Args:
          state: gives structure, shapes and placement on the devices.

        Raises:
          ValueError: the parameters are not those of `state`; each difference is named. Or only
            one of the two has a Polyak average.
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
        arrays = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**arrays))
        metadata = read_metadata(folder)
        counts = {
            name: jax.device_put(np.int32(metadata.get(name, 0)), state.step.sharding)
            for name in ("nonfinite", "skipped")
        }
        average = {"average": restored.average} if "average" in arrays else {}
        state = TrainState(params=restored.params, **restored.optimizer, **average, **counts)
        window = [
            {
                name: np.asarray(x, np.int32 if isinstance(x, int) else np.float32)[()]
                for name, x in metrics.items()
            }
            for metrics in metadata.get("window", [])
        ]
        return state, window

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          OSError: it can't be written, as `save`.
        """
        if not self._failed:
            with self._told():
                self._manager.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what Orbax raises when it can't write into one paragraph, and cleans up."""
        try:
            yield
        except Exception as error:  # of many kinds: a full disk is a ValueError of TensorStore
            self._failed = True
            for partial in _partial(self._folder):
                shutil.rmtree(partial, ignore_errors=True)
            whole = max(steps_in(self._folder), default=None)
            there = "None was saved before" if whole is None else f"{self.path(whole)} is whole"
            goes_on = "begins again" if whole is None else "goes on from there"
            raise OSError(
                f"A checkpoint can't be written to {self._folder}: {_first_line(error)}. {there}. "
                f"When there is space for it, and permission, the same command {goes_on}."
            ) from error

    def _seal(self) -> None:
        """Notes what is in a checkpoint's files, just before the checkpoint gets its name."""
        if jax.process_index() == 0:
            for partial in _partial(self._folder):
                write_manifest(partial)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return line if len(line) < 600 else f"{line[:300]} … {line[-300:]}"  # the cause comes last


def _partial(folder: epath.Path) -> list[epath.Path]:
    """Returns the folders of checkpoints that are not whole; in buckets, Orbax alone knows them."""
    if is_bucket(folder) or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PARTIAL in path.name)


def _check_ours(folder: epath.Path) -> None:
    """Raises ValueError if what counts as one of our checkpoints is none."""
    for step in steps_in(folder):
        path = folder / str(step)
        if not is_checkpoint(path):
            raise ValueError(
                f"{path} has no params, so it is no checkpoint of this run, but has the name of "
                f"one, and would be deleted when newer ones are saved: move or rename it."
            )


def _skip_damaged(folder: epath.Path, fallback: bool) -> None:
    """Renames the newest checkpoints until one is whole; or raises, see `CheckpointManager`."""
    steps = steps_in(folder)
    while steps and (found := find_damage(newest := folder / str(steps[-1]))):
        steps.pop()
        if not steps:
            way = "There is none before it: start in another workdir."
        elif not fallback:
            way = f"--config.checkpoint.fallback=true goes on from {steps[-1]}, the one before."
        else:
            aside = folder / f"{newest.name}.damaged"
            logger.warning("%s It is kept as %s.", damage_message(newest, found), aside.name)
            multihost_utils.sync_global_devices("damage seen")
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                newest.rename(aside)
            multihost_utils.sync_global_devices("damage put aside")
            continue
        raise ValueError(f"{damage_message(newest, found)} {way}")


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the trees of arrays that a checkpoint of a state has, by the folder's name."""
    items = {
        "params": state.params,
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }
    return items if state.average is None else {**items, "average": state.average}
