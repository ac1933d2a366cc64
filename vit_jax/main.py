"""main"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax.cli.environment import join_processes, keep_freed_memory, keep_programs
from vit_jax.cli.errors import log_errors_once
from vit_jax.cli.flags import parse_flags
from vit_jax.jobs import validation
from vit_jax.jobs.compare import compare
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.sweep import sweep
from vit_jax.jobs.train import train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and results.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "One of several processes, of a TPU pod, Slurm or Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT at which process 0 can be reached by all."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which this is, from 0.", lower_bound=0)
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


_JOBS = {
    "train": train,
    "evaluate": evaluate,
    "fewshot": few_shot,
    "sweep": sweep,
    "compare": compare,
}


def _stopped() -> str:
    return f"Stopped; the same command goes on from what {_WORKDIR.value} holds."


def _stop(number: int, frame: Any) -> None:
    """Ends the process where the loop has nothing to save.

    An exception won't do: JAX, Orbax and the garbage collector call Python where one is lost.
    """
    os.write(sys.stderr.fileno(), f"{_stopped()}\n".encode())
    os._exit(0)


def main(argv: list[str]) -> None:
    """Runs `config.job` and prints its summary as one line of JSON on stdout."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    keep_freed_memory()
    keep_programs()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    log_errors_once()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    else:
        signal.signal(signal.SIGTERM, _stop)  # which JAX needs where there are several
    signal.signal(signal.SIGINT, _stop)
    first = jax.process_index() == 0
    logging.getLogger("vit_jax").setLevel(logging.INFO if first else logging.WARNING)
    config, workdir = _CONFIG.value, _WORKDIR.value
    try:
        validation.validate(config)
        with logging_redirect_tqdm():
            summary = _JOBS[config.job](config, workdir)
    except KeyboardInterrupt:
        print(_stopped(), file=sys.stderr)
        return
    except (FloatingPointError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if first:
        print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
