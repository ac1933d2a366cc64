"""How a command ends at Ctrl-C; imports little, so that it can be asked for before all imports."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

_AGAIN = 0.02  # seconds


def end_quietly_at_ctrl_c() -> None:
    """Makes Ctrl-C end the process with status 130 and one line in place of a traceback.

    A KeyboardInterrupt is raised, as always, so that what was begun is cleaned up. There are two
    exceptions. Extension modules that are being imported don't bear one: the process ends at once.
    And Python drops exceptions in some places, such as the callbacks of its garbage collector,
    which JAX has: the interrupt is raised once more a little later.
    """
    default_hook, default_unraisable = sys.excepthook, sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                _end()
            frame = frame.f_back
        raise KeyboardInterrupt

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            return default_hook(kind, error, traceback)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _end()

    def unraisable_hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return default_unraisable(unraisable)
        main = threading.main_thread().ident
        again = threading.Timer(_AGAIN, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it isn't ignored
        signal.signal(signal.SIGINT, handle)
    sys.excepthook, sys.unraisablehook = hook, unraisable_hook


def _end() -> NoReturn:
    """Ends the process without waiting for other threads."""
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        os.write(2, b"\nStopped.\n")
    os._exit(128 + signal.SIGINT)
