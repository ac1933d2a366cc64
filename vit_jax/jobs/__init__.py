"""The jobs that `config.job` names, and what a run does around the mathematics.

Start at `train.py`, the training loop.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    # The jobs, by name, and whether a configuration can be run.
    from vit_jax.jobs.table import JOBS
    from vit_jax.jobs.validation import validate

    # What a run starts from.
    from vit_jax.jobs.resume import Start, find_start

    # What a run reports.
    from vit_jax.jobs.data_wait import DataWait
    from vit_jax.jobs.loggers import LOGGERS
    from vit_jax.jobs.metric_writer import MetricWriter
    from vit_jax.jobs.pending import PendingMetrics
    from vit_jax.jobs.progress import Progress

    # When a run is saved, and how it stops.
    from vit_jax.jobs.nonfinite import StopAtNonfinite
    from vit_jax.jobs.saving import SaveTimes
    from vit_jax.jobs.signals import Interrupted, StopSignals

    # Studies of several runs.
    from vit_jax.jobs.runs import train_once, write_tables
