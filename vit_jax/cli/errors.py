"""How commands end: with one message about an error, and at once at a signal."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any


def log_errors_once() -> None:
    """Hides what the threads of Orbax and TensorStore print about errors that are raised, too."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_shorten)
    default_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # of writes after the first error
            default_hook(unraisable)

    sys.unraisablehook = hook


def _shorten(record: logging.LogRecord) -> bool:
    """Drops the traceback of a message of Orbax; returns False if its error is raised, too."""
    is_raised = record.exc_info and record.getMessage().startswith("[process=")
    record.exc_info = None
    return not is_raised


def exit_at_signals(numbers: list[signal.Signals], message: str) -> None:
    """Ends the process at a signal, with a message on stderr and status 0.

    For the times when there is nothing to save. An exception would not do: JAX, Orbax and the
    garbage collector call Python where exceptions are lost.
    """

    def stop(number: int, frame: Any) -> None:
        os.write(sys.stderr.fileno(), f"{message}\n".encode())
        os._exit(0)

    for number in numbers:
        signal.signal(number, stop)
