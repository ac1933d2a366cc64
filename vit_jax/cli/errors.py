"""Describes errors in one message, and ends a command at a signal or a closed pipe."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from vit_jax.cli.memory import memory_paragraph
from vit_jax.cli.streams import drop_output
from vit_jax.common.files import current_folder_exists
from vit_jax.common.memory import is_out_of_memory
from vit_jax.common.names import printable
from vit_jax.jobs.signals import Interrupted, exit_at_once, watch_signals


def log_errors_once() -> None:
    """Hides what the threads of Orbax and TensorStore print about errors that are raised, too."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_shorten)
    # Orbax's writes after the first error; Python says it at the end, after the command's message.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
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


@contextlib.contextmanager
def exit_at_signals(message: str, *, zero_on_preemption: bool = False) -> Iterator[None]:
    """Ends the process at Ctrl-C or SIGTERM, with a message on stderr and status 130 or 143.

    A signal ends it at once, except while a job saves what it has done: then the job's
    KeyboardInterrupt does. An exception alone would not do: JAX, Orbax and the garbage collector
    call Python where exceptions are lost.

    Args:
      message: one line.
      zero_on_preemption: with SIGTERM, the status is 0.
    """

    def status(number: int) -> int:
        return 0 if zero_on_preemption and number == signal.SIGTERM else 128 + number

    numbers = (signal.SIGINT, signal.SIGTERM)
    with watch_signals(numbers, lambda number: exit_at_once(number, message, status(number))):
        try:
            yield
        except KeyboardInterrupt as error:
            with contextlib.suppress(OSError):  # nobody reads stderr any more
                print(message, file=sys.stderr)
            sys.exit(status(error.number if isinstance(error, Interrupted) else signal.SIGINT))


@contextlib.contextmanager
def stop_at_closed_pipe() -> Iterator[None]:
    """Ends what is printed within it as soon as nobody reads stdout, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def describe_error(error: BaseException) -> str:
    """Returns an error's kind and message, with what a terminal obeys as `printable` writes it."""
    is_nameless = isinstance(error, FileNotFoundError) and error.errno and not error.filename
    if is_nameless and not current_folder_exists():  # a library asked for it
        return "The folder that this command was started in is gone. Change to another."
    return printable(f"{type(error).__name__}: {error}", keep="\n\t")


def exit_if_unreadable(problems: Sequence[str], images: int) -> None:
    """Exits with status 1 and a list, if some of a command's images could not be read.

    Args:
      problems: what is wrong, a line for each such image.
      images: how many images were to be read.
    """
    if problems:
        first = f"Skipped {len(problems)} of {images} images, which can't be read:"
        sys.exit("\n".join([first, *map(printable, problems)]))


MEMORY_ERRORS = (MemoryError, RuntimeError)  # `describe_out_of_memory` says which they are


def describe_out_of_memory(error: BaseException, advice: str) -> str:
    """Returns a paragraph on an error of `MEMORY_ERRORS`; raises it if it is about something else.

    Args:
      error: is being handled.
      advice: what the user of this command can make smaller.
    """
    if not is_out_of_memory(error):
        raise error
    paragraph = memory_paragraph(error, advice)
    if jax.default_backend() == "gpu":
        paragraph += (
            " JAX takes 75 % of a GPU's memory when it starts: XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 "
            "takes more. `nvidia-smi` lists other programs that hold some of it."
        )
    return paragraph
