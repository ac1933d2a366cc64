"""How a command ends when memory runs out, at any place; imports little."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from types import TracebackType

# Bytes of address space that JAX, OpenBLAS and glibc reserve before any array is made.
_AT_START, _PER_CPU, _MOST_CPUS = 2 << 30, 1 << 28, 8  # 1.8 GiB were measured on 1 CPU, 2.0 on 2
_SIGNS = (
    "RESOURCE_EXHAUSTED",  # XLA
    "Out of memory",
    "bad_alloc",  # C++
    "Insufficient memory",  # OpenCV
    "can't start new thread",  # its stack
    "annot allocate memory",  # the system, and its loader of libraries
    "failed to map segment",
)
_LIMITS = "`ulimit -v`, a container or a batch system may limit the memory of a process."


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an error, or one that it comes from, says that there is too little memory."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return True
        is_known = isinstance(cause, RuntimeError | ImportError | OSError)
        is_known = is_known or type(cause).__module__ == "cv2"
        if is_known and any(sign in str(cause) for sign in _SIGNS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def memory_paragraph(error: BaseException, advice: str) -> str:
    """Returns what a command says of an error of which `is_out_of_memory` is True.

    Args:
      error: its text is cut after 300 characters.
      advice: what the user can make smaller.
    """
    text = " ".join(str(error).split()).rstrip(".") or "Python could not allocate an array"
    if len(text) > 300:  # XLA's lists of allocations
        text = f"{text[:300]}…"
    return f"Out of memory: {text}. {advice}"


def explain_too_little_memory() -> None:
    """Makes a command end with one paragraph if its memory is too small, from its imports on.

    Where the limit on its address space is so small that C++ would abort the process when JAX
    starts, it ends here.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _AT_START + _PER_CPU * min(_MOST_CPUS, os.cpu_count() or 1)
    if limit != resource.RLIM_INFINITY and limit < needed:
        sys.exit(
            f"Out of memory: this process may have {limit / 2**30:.2f} GiB (`ulimit -v`), and JAX "
            f"needs {needed / 2**30:.2f} GiB to start. Raise the limit."
        )
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
