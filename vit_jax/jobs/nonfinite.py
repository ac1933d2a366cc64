"""What a run does about a loss or a gradient that is NaN or infinite."""

from __future__ import annotations

import contextlib
from typing import NamedTuple, NoReturn

from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.common.files import write_file
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.data import pipeline
from vit_jax.data.inputs import Inputs
from vit_jax.jobs.pending import HostMetrics
from vit_jax.training.step import TrainState

ON_NONFINITE = ("stop", "skip")  # values of config.on_nonfinite


class StopAtNonfinite(NamedTuple):
    """Saves what led to a refused update, and stops the run; see `save_and_raise`.

    Attributes:
      workdir: the run's folder.
      config: the run's configuration.
      class_names: the names of the head's classes.
      inputs: what the run reads.
    """

    workdir: epath.Path
    config: ConfigDict
    class_names: tuple[str, ...]
    inputs: Inputs

    def save_and_raise(self, refused: HostMetrics, state: TrainState) -> NoReturn:
        """Writes WORKDIR/nonfinite/step_N, a checkpoint and batch.txt, apart from the run's own.

        Args:
          refused: the metrics of the refused update.
          state: before the update.

        Raises:
          FloatingPointError: always. It names the step, the loss and the images of the batch.
        """
        config, step = self.config, int(state.step) + 1
        folder = self.workdir / "nonfinite" / f"step_{step}"
        with contextlib.closing(CheckpointManager(folder, keep=1)) as checkpoints:
            data = self.inputs.fingerprint.splits
            checkpoints.save(state, config, self.class_names, data=data)
        ids = pipeline.batch_ids(
            self.inputs.train_source,
            config.data,
            step,
            batch_size=config.batch_size,
            seed=config.seed,
            skipped=self.inputs.skipped_images,
        )
        listed = folder / "batch.txt"
        write_file(listed, "\n".join(map(printable, ids)) + "\n")
        before = ""
        if config.on_nonfinite == "skip":
            before = f", and {config.max_skipped_updates} in a row before it were skipped"
        raise FloatingPointError(
            f"At step {step} the loss is {refused['loss']:g} and the gradient's norm "
            f"{refused['grad_norm']:g}, at a learning rate of {refused['learning_rate']:g}"
            f"{before}. Its batch was {first_few(ids, 3)}, listed in {listed}; {folder} holds the "
            f"state before it, for init_from. The run's own checkpoints are as they were. Where "
            f"the images are all right, a lower optim.lr, a longer optim.warmup_steps or a "
            f"smaller optim.clip_norm helps; --config.on_nonfinite=skip skips up to "
            f"max_skipped_updates in a row."
        )
