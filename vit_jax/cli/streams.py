"""Replaces standard streams that are missing, and handles those that can't be written."""

from __future__ import annotations

import atexit
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast


class GuardedStream:
    """A stream for text whose errors of the system go to a function."""

    def __init__(self, stream: TextIO, handle: Callable[[OSError], None]):
        self._stream, self._handle = stream, handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._handle(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._handle(error)


def prepare_streams() -> None:
    r"""Makes stdin, stdout and stderr of a command fit to use.

    Streams that the process was started without are opened on the null device. What the encoding
    of stdout or stderr lacks is written as `\xe9` or `\u2026`. The command ends with status 1 and
    one line if its output can't be written, as on a full disk. Without a reader, stdout raises
    BrokenPipeError, as always.
    """
    _open_missing()
    for stream in (sys.stdout, sys.stderr):
        # Else names of files raise UnicodeEncodeError where the locale or the name is not of UTF-8.
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _end_unwritable))
    atexit.register(_flush_at_exit)


def drop_output() -> None:
    """Lets stdout go nowhere from here on, and with it what was not written yet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _open_missing() -> None:
    """Opens missing streams on the null device.

    Python has None for such a stream, and the next file that is opened gets its number: what
    libraries print would be written to that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # absl's logging closes any stream but these


def _end_unwritable(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise error
    drop_output()
    sys.exit(f"The output can't be written to stdout: {error.strerror}.")


def _flush_at_exit() -> None:
    """Writes what is left. What Python does after this ends with an exception if it fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    except SystemExit as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)
