"""Runs a job: `python -m vit_jax.main --config=FILE --workdir=FOLDER`.

On several hosts, the same command runs on each. On a TPU pod, in Slurm and in Open MPI it takes
`--distributed`. Elsewhere it takes `--coordinator_address=HOST:PORT --num_processes=N
--process_id=I`.
"""

from __future__ import annotations

import logging
import sys

import jax
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax.cli.environment import (
    join_processes,
    keep_freed_memory,
    keep_programs,
    prefer_cublas,
    start_devices,
    start_logging,
)
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    exit_at_signals,
    log_errors_once,
    stop_at_closed_pipe,
)
from vit_jax.cli.flags import as_flags, parse_flags
from vit_jax.cli.lost_process import describe_lost_connection, filter_stderr
from vit_jax.cli.manual import manual
from vit_jax.common.names import to_json
from vit_jax.jobs.signals import Interrupted
from vit_jax.jobs.table import JOBS
from vit_jax.jobs.unread_keys import log_unread_keys
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
_LOST_AFTER = flags.DEFINE_integer(
    "lost_after",
    100,
    "Seconds without a heartbeat after which one of several processes is lost, and the others end.",
    lower_bound=5,
)
_ZERO = flags.DEFINE_boolean(
    "exit_zero_on_preemption",
    False,
    "Ends with status 0, not 143, when SIGTERM stops the job and what it has done is saved.",
)
_PRINT_CONFIG = flags.DEFINE_flag(
    flags.EnumFlag(
        "print_config",
        None,
        "Print the configuration as flags, and run nothing; =diff: only what differs from the "
        "defaults.",
        ["true", "diff"],
        boolean=True,  # takes no value, too
    )
)


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


_TO_SAVE_MEMORY = (
    "A step takes less with a larger --config.accumulate_steps (micro-batches of a batch), a "
    "smaller --config.batch_size, --config.data.image_size or --config.model.variant, or on a GPU "
    "or TPU with --config.model.remat=full; an evaluation with a smaller --config.eval_batch_size."
)


def main(argv: list[str]) -> None:
    """Runs `config.job` and prints its summary as one line of JSON on stdout.

    The exit status is 130 after Ctrl-C and 143 after SIGTERM, see `--exit_zero_on_preemption`.
    """
    if len(argv) > 1:
        sys.exit(
            f"unexpected arguments: {' '.join(argv[1:])}. Values follow a =: --flag=value. "
            f"`python -m vit_jax.main --help` lists the flags."
        )
    if _PRINT_CONFIG.value:
        with stop_at_closed_pipe():
            print(*as_flags(_CONFIG.value, only_changes=_PRINT_CONFIG.value == "diff"), sep="\n")
        return
    if _WORKDIR.value is None:
        sys.exit(
            "--workdir=FOLDER is needed: it gets the checkpoints and results. "
            "`python -m vit_jax.main --help` lists the flags."
        )
    keep_freed_memory()
    prefer_cublas()
    keep_programs()
    is_one_of_several = _DISTRIBUTED.value or _COORDINATOR.value is not None
    if is_one_of_several:
        filter_stderr(_LOST_AFTER.value)
    start_logging()
    log_errors_once()
    config, workdir = _CONFIG.value, str(_WORKDIR.value)
    stopped = f"Stopped; the same command goes on from what {workdir} holds."
    if config.get("job") in ("evaluate", "fewshot"):
        stopped = "Stopped; the same command begins again."
    if is_one_of_several:
        join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _LOST_AFTER.value)
    with exit_at_signals(stopped, zero_on_preemption=_ZERO.value):
        start_devices()
        is_main = jax.process_index() == 0
        if not is_main:
            logging.getLogger("vit_jax").setLevel(logging.WARNING)
        try:
            validate(config)
            if is_main:
                log_unread_keys(config, config_flags.get_override_values(flags.FLAGS["config"]))
            with logging_redirect_tqdm():
                summary = JOBS[config.job](config, workdir)
        except Interrupted as error:
            if is_main and error.summary is not None:  # the job was complete all the same
                with stop_at_closed_pipe():
                    print(to_json(error.summary))
            raise
        except (FloatingPointError, ImportError, OSError, ValueError, *MEMORY_ERRORS) as error:
            if is_one_of_several and (lost := describe_lost_connection(error, _LOST_AFTER.value)):
                sys.exit(lost)
            if isinstance(error, MEMORY_ERRORS):
                sys.exit(describe_out_of_memory(error, _TO_SAVE_MEMORY))
            sys.exit(describe_error(error))
    if is_main:
        with stop_at_closed_pipe():
            print(to_json(summary))


def _parse(argv: list[str]) -> list[str]:
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv):
        with stop_at_closed_pipe():
            print(manual(argv[0]))
        sys.exit()
    return parse_flags(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
