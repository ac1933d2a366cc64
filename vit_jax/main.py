"""Runs a job: `python -m vit_jax.main --config=FILE --workdir=FOLDER`."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import sys

import jax
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from vit_jax import config as config_lib
from vit_jax import study, train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and results.")
flags.mark_flags_as_required(["config", "workdir"])

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


def _on_cpu() -> bool:
    """Tells whether JAX will run on the CPU, without making it start its devices."""
    if platforms := jax.config.jax_platforms:
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def parse_flags(argv: list[str]) -> list[str]:
    """Returns what is left of the command line; exits with one paragraph where it is wrong.

    That can be a flag, a key of the configuration, or the argument of a configuration file.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        told = str(error).strip()
        if "Traceback" in told:  # of what a configuration file raised
            told = f"{told.partition(': Error')[0]}: {told.splitlines()[-1].strip()}"
        sys.exit(told)
    except (AttributeError, KeyError) as error:
        told = " ".join(str(error).split()).strip("\"'")
        sys.exit(f"The command line sets a key that the configuration doesn't have: {told}")
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


def main(argv: list[str]) -> None:
    """Runs `config.job` and prints its summary as one line of JSON on stdout."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("vit_jax").setLevel(logging.INFO)
    config, workdir = _CONFIG.value, _WORKDIR.value
    try:
        config_lib.validate(config)
        with logging_redirect_tqdm():
            summary = _JOBS[config.job](config, workdir)
    except KeyboardInterrupt:
        print(f"Stopped; the same command goes on from what {workdir} holds.", file=sys.stderr)
        return
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(summary))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
