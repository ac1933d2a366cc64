"""Orbax checkpoints: reading and writing one, those of a run, and the run's folder."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # one checkpoint
    from vit_jax.checkpoints.checkpoint import (
        Checkpoint,
        find_checkpoint,
        read_checkpoint,
        read_config,
        read_run,
        write_checkpoint,
    )

    # the best checkpoint of a run
    from vit_jax.checkpoints.best import BEST, Best

    # whether its files are as they were written
    from vit_jax.checkpoints.integrity import find_damage, write_manifest

    # the checkpoints of a run
    from vit_jax.checkpoints.manager import CheckpointManager

    # the run's folder
    from vit_jax.checkpoints.workdir import lock, open_workdir
