"""Runs a job: `python -m vit_jax.main --config=FILE --workdir=FOLDER`.

On several hosts, the same command runs on each: with `--distributed` on a TPU pod or in Slurm or
Open MPI, which tell each process who it is, elsewhere with `--coordinator_address=HOST:PORT
--num_processes=N --process_id=I`.
"""

from __future__ import annotations

import ctypes
import difflib
import glob
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import platform
import re
import signal
import sys
import traceback
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax import config as config_lib
from vit_jax import study, train

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
    "train": train.train,
    "evaluate": train.evaluate,
    "fewshot": train.few_shot,
    "sweep": study.sweep,
    "compare": study.compare,
}


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, where training runs on the CPU.

    A training step on a CPU allocates and frees the same large arrays over and over; giving them
    back to the system and faulting them in again took a third of its time. On the host of a GPU
    the same settings stalled training, so they are left alone there. It must come before JAX
    starts its threads. Other C libraries go on as they are.
    """
    if not _on_cpu():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


def keep_programs() -> None:
    """Keeps compiled programs for the next start, in ~/.cache/vit_jax, unless JAX is told where.

    JAX_COMPILATION_CACHE_DIR tells it; JAX_ENABLE_COMPILATION_CACHE=false keeps none. Programs for
    a CPU are for the instructions it has, so every kind of CPU gets a folder.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_jax"
    try:
        flags_line = re.search(r"^(flags|Features)\s*:.*", _CPUINFO.read_text(), re.MULTILINE)[0]
    except (OSError, TypeError):
        flags_line = platform.processor()
    kind = hashlib.sha256(flags_line.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / f"{platform.machine()}-{kind}"))


_CPUINFO = pathlib.Path("/proc/cpuinfo")


def _on_cpu() -> bool:
    """Tells whether JAX will run on the CPU, without making it start its devices."""
    if platforms := jax.config.jax_platforms:
        return platforms == "cpu"
    tpu = importlib.util.find_spec("libtpu") and (
        glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")  # else it is there to compile for one
    )
    return not tpu and not importlib.util.find_spec("jax_plugins")


def join_processes(address: str | None, count: int | None, number: int | None) -> None:
    """Connects this process to the others; exits with one paragraph where that fails.

    Args:
      address: HOST:PORT of process 0; None, as for the others, takes what the cluster tells.
      count: how many processes there are.
      number: which this is, from 0.
    """
    try:
        jax.distributed.initialize(address, count, number)
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"The processes can't be connected: {error} Without a TPU pod, Slurm or Open MPI, "
            f"give --coordinator_address, --num_processes and --process_id."
        )


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns what is left of the command line; exits with what is wrong with it.

    That can be a flag, a key of the configuration or its value, or the configuration file: that it
    isn't there, or what it raises.
    """
    try:
        left = values(argv)
        getattr(values["config"].value, "lock", None)  # a file that can't be read raises when used
        return left
    except flags.Error as error:
        told = str(error).strip()
        if "Traceback" in told:  # of what a configuration file raised
            told = f"{told.partition(': Error')[0]}: {told.splitlines()[-1].strip()}"
        elif key := re.match(r"flag --config\.([\w.]+)=", told):
            told = f"{told.rstrip('.')}. {key[1]} must be {config_lib.what_fits(key[1])}."
        sys.exit(told)
    except Exception as error:  # a configuration file can raise anything
        hidden = error.__cause__ if isinstance(error, OSError) else None
        sys.exit(_told(argv, hidden or error))


def _told(argv: list[str], error: BaseException) -> str:
    """Returns what is wrong with the configuration file of a command line, or with its keys."""
    found = re.search(r"--?config[= ]([^: ]*)", " ".join(argv))
    file = found[1] if found else ""
    if isinstance(error, OSError) and not os.path.exists(file):
        known = {*glob.glob(f"{os.path.dirname(file) or '.'}/*.py"), *glob.glob("configs/*.py")}
        close = difflib.get_close_matches(file, map(os.path.normpath, known), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        return f"There is no configuration file {file!r}{hint}"
    lines = [x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == file]
    keys = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]+)", arg))]
    unknown = [key for key in keys if config_lib.no_such_key(key)]
    unknown = [key for key in unknown if not key.startswith("compare.runs.")] or unknown
    if unknown and not lines and not isinstance(error, SyntaxError):
        told = "\n- ".join(map(config_lib.no_such_key, unknown))
        return f"The command line can't be used:\n- {told}"
    where = f"{file}, line {lines[-1]}" if lines else f"--config={file}"
    told = re.sub(r' Other fields present: ".*?"(?=\n|$)', "", str(error).replace("\\n", "\n"))
    return f"{where}: {type(error).__name__}: {' '.join(told.split())}"


def _say_errors_once() -> None:
    """Leaves out what threads of Orbax and TensorStore print of errors that are raised, too."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_is_news)
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # for writes after the first error
            usual(unraisable)

    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    """Tells whether nothing is raised of what Orbax logs, which is then logged in one line."""
    raised = record.exc_info and record.getMessage().startswith("[process=")  # by saving threads
    record.exc_info = None
    return not raised


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
    _say_errors_once()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    else:
        signal.signal(signal.SIGTERM, _stop)  # which JAX needs where there are several
    signal.signal(signal.SIGINT, _stop)
    first = jax.process_index() == 0
    logging.getLogger("vit_jax").setLevel(logging.INFO if first else logging.WARNING)
    config, workdir = _CONFIG.value, _WORKDIR.value
    try:
        config_lib.validate(config)
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
