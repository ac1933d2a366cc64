"""nonfinite"""

from __future__ import annotations

import contextlib

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.training.step import TrainState


def save_nonfinite(
    workdir: epath.Path, state: TrainState, config: ConfigDict, names: tuple[str, ...]
) -> epath.Path:
    """Saves the state before a refused update apart from the good ones; returns the workdir."""
    folder = workdir / "nonfinite" / f"step_{int(state.step) + 1}"
    with contextlib.closing(CheckpointManager(folder, keep=1)) as checkpoints:
        checkpoints.save(state, config, names)
    return folder


def nonfinite_message(
    window: list[dict[str, np.ndarray]],
    step: int,
    max_skipped: int,
    folder: epath.Path,
    ids: list[str],
) -> str:
    """Returns the message about the refused update at `step`, after writing its batch's ids."""
    metrics = next(m for m in window if m["nonfinite"] == max_skipped + 1)
    before = f", and {max_skipped} in a row before it were skipped" if max_skipped else ""
    listed = folder / "batch.txt"
    listed.write_text("\n".join(ids) + "\n")
    few = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return (
        f"At step {step} the loss is {metrics['loss']:g} and the gradient's norm "
        f"{metrics['grad_norm']:g}, at a learning rate of {metrics['learning_rate']:g}{before}. "
        f"Its batch was {few}, listed in {listed}; {folder} holds the state before it, for "
        f"init_from. "
        f"The run's own checkpoints are as they were. Where the images are all right, a lower "
        f"optim.lr, a longer optim.warmup_steps or a smaller optim.clip_norm helps; "
        f"--config.on_nonfinite=skip skips up to max_skipped_updates in a row."
    )
