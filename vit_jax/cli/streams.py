"""What stdin, stdout and stderr of a command do where they can't be used; imports little."""

from __future__ import annotations

import atexit
import io
import os
import sys
from typing import Any, NoReturn, TextIO, cast


def open_missing_streams() -> None:
    """Opens stdin, stdout and stderr on the null device where the process was started without.

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
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def escape_what_cannot_be_written() -> None:
    r"""Makes stdout and stderr write as `\xe9` or `\u2026` what their encoding lacks.

    They would raise UnicodeEncodeError for a name of a file where the locale is not of UTF-8, and
    for a name that isn't UTF-8 everywhere.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console
            stream.reconfigure(errors="backslashreplace")


class _Stdout:
    """A stdout that ends the command with one line when it can't be written, as on a full disk.

    Without a reader it raises BrokenPipeError, as always.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            _exit(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _exit(error)


def explain_unwritable_stdout() -> None:
    """Makes a command end with status 1 and one line if its output can't be written."""
    sys.stdout = cast(TextIO, _Stdout(sys.stdout))
    atexit.register(_flush_at_exit)


def drop_output() -> None:
    """Lets stdout go nowhere from here on, and with it what was not written yet."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _exit(error: OSError) -> NoReturn:
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
