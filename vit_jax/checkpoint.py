"""Orbax checkpoints of a run: `WORKDIR/checkpoints/STEP/{params,optimizer,metadata}`.

`params`, `optimizer` (with the step) and, where one is kept, `average`, the Polyak average of the
parameters, are arrays, and `metadata` is JSON that lets a checkpoint be opened without its
configuration: `config`, `class_names`, `step`, and what a run that goes on needs besides. The
position in the data is the step. Arrays are written by all processes, each the parts it holds, and
read by any number of devices.

A checkpoint is written under another name, and gets its own when it is whole. Sizes and hashes of
its files are in `manifest.json` and compared before anything of it is used. Buckets, which check
what they store, have none.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from vit_jax import config as config_lib
from vit_jax import data, models
from vit_jax.step import TrainState

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_PARTIAL = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax is writing


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
        metadata = _noted(config, class_names, step) | {
            "nonfinite": int(state.nonfinite),
            "skipped": int(state.skipped),
            "window": [{name: x.item() for name, x in metrics.items()} for metrics in window],
        }
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with self._told():
            if not (_in_bucket(self._folder) or self._folder.is_dir()):
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
        metadata = _metadata(folder)
        counts = {
            name: jax.device_put(np.int32(metadata.get(name, 0)), state.step.sharding)
            for name in ("nonfinite", "skipped")
        }
        average = {"average": restored.average} if "average" in arrays else {}
        state = TrainState(params=restored.params, **restored.optimizer, **average, **counts)
        window = [
            {name: np.asarray(x, np.int32 if isinstance(x, int) else np.float32)[()]
             for name, x in metrics.items()}
            for metrics in metadata.get("window", [])
        ]  # fmt: skip
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
            whole = max(_steps(self._folder), default=None)
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
                _write_manifest(partial)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".")
    return line if len(line) < 600 else f"{line[:300]} … {line[-300:]}"  # the cause comes last


def _partial(folder: epath.Path) -> list[epath.Path]:
    """Returns the folders of checkpoints that are not whole; in buckets, Orbax alone knows them."""
    if _in_bucket(folder) or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PARTIAL in path.name)


def _in_bucket(folder: epath.Path) -> bool:
    return os.fspath(folder).startswith("gs://")


def _write_manifest(folder: epath.Path) -> None:
    folder = pathlib.Path(folder)
    manifest = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: epath.Path, items: Collection[str] | None = None) -> list[str]:
    """Returns a sentence for each file of a checkpoint that is not as it was written.

    Args:
      folder: of the checkpoint; without a manifest, nothing is known.
      items: the parts of it to look at; None for all.
    """
    if _in_bucket(folder) or not (path := pathlib.Path(folder) / _MANIFEST).is_file():
        return []
    try:
        manifest = json.loads(path.read_bytes())
        noted = [(name, file["bytes"], file["sha256"]) for name, file in manifest.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{_MANIFEST} can't be read"]
    found = []
    for name, size, digest in noted:
        if items is not None and name.split("/")[0] not in items:
            continue
        file = path.parent / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes, not {size}")
        elif _sha256(file) != digest:
            found.append(f"{name} has other contents than were written")
    return found


def _steps(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the oldest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def _is_ours(folder: epath.Path) -> bool:
    """Tells whether a folder whose name is a step's is a checkpoint, whole or damaged."""
    return any((folder / name).exists() for name in ("params", _MANIFEST))


def _damaged(folder: epath.Path, found: list[str]) -> str:
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return f"The checkpoint {folder} is damaged: {'; '.join(found[:5])}{more}."


def _check_whole(folder: epath.Path, *items: str) -> None:
    if found := _damage(folder, items):
        raise ValueError(_damaged(folder, found))


def _check_ours(folder: epath.Path) -> None:
    """Raises ValueError if what counts as one of our checkpoints is none."""
    for step in _steps(folder):
        path = folder / str(step)
        if not _is_ours(path):
            raise ValueError(
                f"{path} has no params, so it is no checkpoint of this run, but has the name of "
                f"one, and would be deleted when newer ones are saved: move or rename it."
            )


def _skip_damaged(folder: epath.Path, fallback: bool) -> None:
    """Renames the newest checkpoints until one is whole; or raises, see `Checkpoints`."""
    steps = _steps(folder)
    while steps and (found := _damage(newest := folder / str(steps[-1]))):
        steps.pop()
        if not steps:
            way = "There is none before it: start in another workdir."
        elif not fallback:
            way = f"--config.checkpoint.fallback=true goes on from {steps[-1]}, the one before."
        else:
            aside = folder / f"{newest.name}.damaged"
            logger.warning("%s It is kept as %s.", _damaged(newest, found), aside.name)
            multihost_utils.sync_global_devices("damage seen")
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                newest.rename(aside)
            multihost_utils.sync_global_devices("damage put aside")
            continue
        raise ValueError(f"{_damaged(newest, found)} {way}")


def make_workdir(path: str | os.PathLike) -> epath.Path:
    """Returns where a workdir is, after making it where there is none.

    Raises:
      OSError: it can't be made.
      ValueError: as `absolute`.
    """
    workdir = absolute(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The workdir {workdir} can't be made: {error.strerror}.") from error
    return workdir


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
    """Holds a workdir for one run, by a lock on WORKDIR/.lock that ends with the process.

    Of several processes the first holds it. Buckets, and some network file systems, have no locks:
    there, a second run is not noticed.

    Raises:
      OSError: another run has it, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if jax.process_index() == 0 and not _in_bucket(workdir):
            problem = _lock(workdir, stack)
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
            problem = problem or ("The first process can't have the workdir." if refused else "")
        if problem:
            raise OSError(problem)
        yield


def _lock(workdir: epath.Path, stack: contextlib.ExitStack) -> str:
    """Locks a workdir until the stack is left; returns what is in the way."""
    try:
        file = stack.enter_context(open(pathlib.Path(workdir, ".lock"), "a+"))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return (
                f"The workdir {workdir} is in use by {file.read() or 'another run'}. Two would "
                f"overwrite each other's checkpoints: wait for it, or take another --workdir."
            )
        except OSError as error:
            logger.warning("%s can't be locked (%s): start no second run there.", workdir, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:
        return f"The workdir {workdir} can't be written to: {error.strerror}."
    return ""


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
    for folder in (root / "checkpoints", root):
        for step in reversed(_steps(folder)):
            if _is_ours(found := folder / str(step)):
                return found
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
      ValueError: it is damaged; names the files.
    """
    folder = find(path)
    _check_whole(folder, "params", "average", "metadata")
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
    """Writes a checkpoint of its own, which `load` opens: `PATH/{params,metadata,manifest.json}`.

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
    if not _in_bucket(absolute(path)):
        _write_manifest(absolute(path))


_SAVED_AT_ONCE_GB = 0.1


def load_config(path: str | epath.PathLike) -> ConfigDict:
    """Returns the configuration noted in a checkpoint, without reading its parameters.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: it is damaged.
    """
    folder = find(path)
    _check_whole(folder, "metadata")
    return ConfigDict(_metadata(folder)["config"])


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
