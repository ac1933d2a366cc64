"""Ends a command that meets an error of too little memory; imports little."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from types import TracebackType

from vit_jax.common.memory import YNNPACK, is_out_of_memory

# GiB of address space that JAX, OpenBLAS and glibc reserve before any array is made: 1.8 were
# measured on 1 CPU, 2.0 on 2. With more CPUs it grows more slowly, and no more than this is asked.
_AT_START, _PER_CPU, _MOST = 1.6, 0.2, 2.5
_LIMITS = "`ulimit -v`, a container or a batch system may limit the memory of a process."


def memory_paragraph(error: BaseException, advice: str) -> str:
    """Returns what a command says of an error of which `is_out_of_memory` is True.

    Args:
      error: its text is cut after 300 characters.
      advice: what the user can make smaller.
    """
    text = " ".join(str(error).split()).rstrip(".") or "Python could not allocate an array"
    if len(text) > 300:  # XLA's lists of allocations
        text = f"{text[:300]}…"
    what = "Probably out of memory" if YNNPACK in text else "Out of memory"
    return f"{what}: {text}. {advice}"


def require_address_space() -> None:
    """Exits with one paragraph if C++ would abort the process when JAX starts, by `ulimit -v`."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    # common.host.available_cpus can't be imported here: it imports JAX.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    needed = min(_MOST, _AT_START + _PER_CPU * cpus)
    if limit != resource.RLIM_INFINITY and limit < needed * 2**30:
        sys.exit(
            f"Out of memory: this process may have {limit / 2**30:.2f} GiB (`ulimit -v`), and JAX "
            f"needs {needed:.2f} GiB to start. Raise the limit."
        )


def install_memory_hooks() -> None:
    """Makes errors of memory that nothing catches end the command with one paragraph."""
    default_hook, default_thread_hook = sys.excepthook, threading.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not is_out_of_memory(error):
            default_hook(kind, error, traceback)
        else:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            _end(error)

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or not is_out_of_memory(arguments.exc_value):
            default_thread_hook(arguments)
        else:
            _end(arguments.exc_value)  # the main thread may wait for this one

    sys.excepthook, threading.excepthook = hook, thread_hook


def _end(error: BaseException) -> None:
    """Ends the process at once: what Python does at its end needs memory, too."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{memory_paragraph(error, _LIMITS)}\n".encode())
    os._exit(1)
