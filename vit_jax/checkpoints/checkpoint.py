"""One checkpoint: a model's parameters and what is known of them, read from Orbax and written."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
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
from vit_jax.checkpoints.best import BEST, best_in_metadata
from vit_jax.checkpoints.integrity import (
    MANIFEST,
    check_undamaged,
    damage_message,
    explain_damage,
    write_manifest,
)
from vit_jax.checkpoints.metadata import metadata_of, read_metadata
from vit_jax.common.files import absolute, cannot_write, is_bucket, replacing
from vit_jax.config.keys import eval_image_shape, look_up, model_attributes
from vit_jax.data.fingerprint import Fingerprint
from vit_jax.models.attributes import without
from vit_jax.models.lora import merge_lora, split_lora

_WRITTEN_AT_ONCE_GB = 0.1  # more would be in memory twice: as parameters and as Orbax's copies


class Checkpoint(NamedTuple):
    """A model's parameters, and what is known of them.

    Attributes:
      path: where the checkpoint was read.
      params: a nested dictionary with Linen names. Its leaves are float32 arrays, or objects with a
        shape that NumPy turns into such arrays, and which are read from disk at that moment.
      config: the configuration of the run. For weights of another code base only `model`,
        `data.image_size` and `optim.loss` have a meaning.
      class_names: names of the classes, in the order of the logits. () if they are not known.
      step: number of updates. 0 for weights of another code base.
      average: the Polyak average of the parameters, a tree like `params`. None if there is none.
      data: fingerprints of the splits that the run read, see `Fingerprint.splits`. None if they
        are not known.
      changes: what was done to weights of another code base as they were read, a sentence each.
    """

    path: str
    params: Any
    config: ConfigDict
    class_names: tuple[str, ...]
    step: int
    average: Any = None
    data: Mapping[str, Any] | None = None
    changes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of logits. 0 if the model has no head."""
        return self.params["head"]["bias"].shape[0] if "head" in self.params else 0

    @property
    def loss(self) -> str:
        """What the head was trained with, `optim.loss`: it says what makes its logits shares."""
        return look_up(self.config, "optim.loss", "softmax")  # early versions had no such key

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width), in pixels, of images to evaluate. None if the size is not known."""
        data = self.config.data
        return None if data.image_size is None else eval_image_shape(data)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patches of an image. None if the image size is not known."""
        return None if self.image_shape is None else self.model().grid(self.image_shape)

    def averaged(self) -> Checkpoint:
        """Returns the checkpoint with the Polyak average in place of the parameters.

        Raises:
          ValueError: there is no average.
        """
        if self.average is None:
            raise ValueError(f"{self.path} has no Polyak average: its run had optim.polyak=0.")
        return self._replace(params=self.average, average=None)

    def model(self, **changes: Any) -> nn.Module:
        """Returns the Flax module that the parameters belong to.

        Args:
          **changes: attributes that the module gets in place of the checkpoint's, such as `dtype`.

        Raises:
          ValueError: the attributes don't go together, or `config` has an odd value.
        """
        # The run chose how to compute on its devices; these may be others.
        own = without(model_attributes(self.config), "device")
        attributes = {"num_classes": self.num_classes, **own, **changes}
        try:
            return models.build(self.config.model.variant, **attributes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The model of {self.path} can't be built: {error}") from error


# ----------------------------------------------------------------------------------------- reading


def read_checkpoint(path: str | epath.PathLike, *, lazy: bool = False) -> Checkpoint:
    """Returns a checkpoint that Orbax wrote. LoRA is merged: see `models.lora.merge_lora`.

    Args:
      path: a run's workdir, of which the newest checkpoint is read, WORKDIR@best, its best one, or
        the folder of a checkpoint.
      lazy: if True, parameters are read when NumPy asks for them. If False, all are read at once.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: the checkpoint is damaged; names the files. Or its bucket can't be used.
    """
    folder = find_checkpoint(path)
    check_undamaged(folder, "params", "average", "metadata")
    metadata = read_metadata(folder)
    config, average = ConfigDict(metadata["config"]), folder / "average"
    alpha = config.model.get("lora_alpha")
    config.model.update(lora_rank=None, lora_alpha=None)
    found = Checkpoint(
        path=str(folder),
        params=_read_tree(folder / "params", lazy, alpha),
        config=config,
        class_names=tuple(metadata["class_names"]),
        step=metadata["step"],
        average=_read_tree(average, lazy, alpha) if average.is_dir() else None,
        data=metadata.get("data"),
    )
    if found.class_names and found.num_classes not in (0, len(found.class_names)):
        names = f"metadata names {len(found.class_names)} classes"
        damage = f"{names}, and the head in params has {found.num_classes}"
        raise ValueError(damage_message(folder, [damage]))
    return found


def read_run(path: str | epath.PathLike) -> tuple[ConfigDict, Fingerprint]:
    """Returns a checkpoint's configuration and what it says of its run's data; reads no parameters.

    Args:
      path: as for `read_checkpoint`.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: the checkpoint's metadata are damaged, or its bucket can't be used.
    """
    folder = find_checkpoint(path)
    check_undamaged(folder, "metadata")
    metadata = read_metadata(folder)
    data = Fingerprint(tuple(metadata["class_names"]), metadata.get("data"))
    return ConfigDict(metadata["config"]), data


def read_config(path: str | epath.PathLike) -> ConfigDict:
    """Returns the configuration in a checkpoint. Arguments and errors: see `read_run`."""
    return read_run(path)[0]


def find_checkpoint(path: str | epath.PathLike) -> epath.Path:
    """Returns the folder of a checkpoint: `path` itself, or the newest or best checkpoint in it.

    Args:
      path: the folder of a checkpoint, a run's workdir, or the folder `checkpoints` in it. With
        "@best" behind it, it is the best checkpoint, as the newest says which that is.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`.
      ValueError: the run kept no best checkpoint, or the newest is damaged; or the bucket can't be
        used, see `common.files.absolute`.
    """
    root = absolute(path)
    if run := run_of_best(path):
        return _find_best(find_checkpoint(run))
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


def run_of_best(path: str | epath.PathLike) -> str | None:
    """Returns WORKDIR of a path WORKDIR@best, which isn't a folder's own name; else None."""
    name = os.fspath(path).rstrip("/")  # completion in a shell may add a slash
    return name.removesuffix(BEST) if name.endswith(BEST) and not absolute(path).exists() else None


def _find_best(newest: epath.Path) -> epath.Path:
    """Returns the folder of the best checkpoint, which the newest one names; raises as above."""
    check_undamaged(newest, "metadata")
    if (best := best_in_metadata(read_metadata(newest))) is None:
        raise ValueError(
            f"{newest} names no best checkpoint, because its run had checkpoint.best=None: leave "
            f"{BEST} out for the newest."
        )
    if not is_checkpoint(folder := newest.parent / str(best.step)):
        raise FileNotFoundError(
            f"The best checkpoint, {folder}, is gone: {best.metric} was {best.value:.4g} there. "
            f"Leave {BEST} out for the newest."
        )
    return folder


def steps_in(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the smallest first."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def is_checkpoint(folder: epath.Path) -> bool:
    """Returns True if a folder whose name is a number is a checkpoint, even a damaged one."""
    return any((folder / name).exists() for name in ("params", MANIFEST))


def stored_shapes(folder: epath.Path) -> Any:
    """Returns the tree that is stored in a folder such as STEP/params; each leaf has a `shape`.

    Raises:
      ValueError: the folder is damaged.
      OSError: the system can't read it at the moment.
    """
    with explain_damage(folder.parent, folder.name):
        return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def _read_tree(folder: epath.Path, lazy: bool, lora_alpha: float | None) -> Any:
    """Returns the stored tree, LoRA merged; leaves are arrays, or `_StoredArray`s if lazy."""
    shapes = flatten_dict(stored_shapes(folder), sep="/")
    read = functools.partial(_read_arrays, folder, lora_alpha)
    if not lazy:
        return unflatten_dict(read(shapes), sep="/")

    # One block is kept: reading each array by itself would be slow, all of them would need much
    # memory.
    @functools.lru_cache(maxsize=1)
    def read_block(block: str) -> dict[str, np.ndarray]:
        return read([name for name in shapes if _block_of(name) == block])

    stored = {name: _StoredArray(name, x.shape, read_block) for name, x in shapes.items()}
    return split_lora(unflatten_dict(stored, sep="/"))[0]


class _StoredArray:
    """A parameter on disk, which `np.asarray` reads."""

    def __init__(self, name: str, shape: Any, read_block: Callable[[str], dict[str, np.ndarray]]):
        self.shape = tuple(shape)
        self._name, self._read_block = name, read_block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read_block(_block_of(self._name))[self._name], dtype)


def _block_of(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _read_arrays(folder: epath.Path, alpha: Any, names: Collection[str]) -> dict[str, np.ndarray]:
    def tree(leaf: Any) -> Any:
        return unflatten_dict(dict.fromkeys(names, leaf), sep="/")

    args = ocp.args.PyTreeRestore(
        item=tree(0),
        restore_args=tree(ocp.RestoreArgs(restore_type=np.ndarray)),
        partial_restore=True,
    )
    with explain_damage(folder.parent, folder.name):
        read = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
        return flatten_dict(merge_lora(read, alpha), sep="/")


# ----------------------------------------------------------------------------------------- writing


def write_checkpoint(checkpoint: Checkpoint, path: str | epath.PathLike) -> None:
    """Writes a checkpoint that `read_checkpoint` reads, without the Polyak average.

    The folder gets `params/`, `metadata/` and, on this machine, `manifest.json`.

    Args:
      checkpoint: all its parameters must fit into memory once.
      path: a folder that does not exist yet, on this machine or in a bucket.

    Raises:
      OSError: it can't be written; then nothing is left on this machine.
    """
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(save_concurrent_gb=_WRITTEN_AT_ONCE_GB),
        metadata=ocp.JsonCheckpointHandler(),
    )
    metadata = metadata_of(
        checkpoint.config, checkpoint.class_names, checkpoint.step, checkpoint.data
    )
    params = jax.tree.map(jnp.asarray, checkpoint.params)  # Orbax would copy NumPy's arrays
    arguments = ocp.args.Composite(
        params=ocp.args.PyTreeSave(params), metadata=ocp.args.JsonSave(metadata)
    )
    target = absolute(path)
    checkpointer = contextlib.closing(ocp.Checkpointer(handler))
    with _explain_failure(target):
        if is_bucket(target):
            with checkpointer as writer:
                writer.save(target, args=arguments)
            return
        with replacing(target) as partial:
            try:
                with checkpointer as writer:
                    writer.save(partial, args=arguments)
                write_manifest(partial)
            finally:
                _remove(partial.with_name(partial.name + ocp.utils.TMP_DIR_SUFFIX))


def _remove(folder: epath.Path) -> None:
    """Removes a folder that threads of TensorStore may still write to, after the first failed."""
    for _ in range(20):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


@contextlib.contextmanager
def _explain_failure(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of many kinds: TensorStore reports a full disk as ValueError
        raise OSError(cannot_write(path, error)) from error
