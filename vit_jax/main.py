"""Runs a job: `python -m vit_jax.main --config=FILE --workdir=FOLDER`.

On several hosts, the same command runs on each. On a TPU pod, in Slurm and in Open MPI it takes
`--distributed`. Elsewhere it takes `--coordinator_address=HOST:PORT --num_processes=N
--process_id=I`.
"""

from __future__ import annotations

import json
import logging
import signal
import sys

import jax
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax.cli.environment import join_processes, keep_freed_memory, keep_programs
from vit_jax.cli.errors import exit_at_signals, log_errors_once
from vit_jax.cli.flags import parse_flags
from vit_jax.jobs.table import JOBS
from vit_jax.jobs.validation import validate

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and results.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "This is one of several processes, of a TPU pod, Slurm or Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT at which all processes reach process 0."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "The number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "The number of this process, from 0.", lower_bound=0
)
flags.mark_flags_as_required(["config", "workdir"])


@flags.multi_flags_validator(
    ["coordinator_address", "num_processes", "process_id"],
    "--coordinator_address, --num_processes and --process_id go together, and processes are "
    "counted from 0.",
)
def _complete(values):
    address, count, number = values.values()
    if (address, count, number) == (None, None, None):
        return True
    return None not in (address, count, number) and number < count


def main(argv: list[str]) -> None:
    """Runs `config.job` and prints its summary as one line of JSON on stdout."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    keep_freed_memory()
    keep_programs()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    log_errors_once()
    config, workdir = _CONFIG.value, str(_WORKDIR.value)
    stopped = f"Stopped; the same command goes on from what {workdir} holds."
    signals = [signal.SIGINT, signal.SIGTERM]
    if _DISTRIBUTED.value or _COORDINATOR.value:
        join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        signals.remove(signal.SIGTERM)  # JAX's preemption service handles it
    exit_at_signals(signals, stopped)
    is_main = jax.process_index() == 0
    logging.getLogger("vit_jax").setLevel(logging.INFO if is_main else logging.WARNING)
    try:
        validate(config)
        with logging_redirect_tqdm():
            summary = JOBS[config.job](config, workdir)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if is_main:
        print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
