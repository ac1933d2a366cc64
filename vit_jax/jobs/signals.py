"""signals"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields step -> whether to stop after it, which the first Ctrl-C or SIGTERM asks for.

    A second one ends the process at once. Several processes stop after the same step when one gets
    a SIGTERM: JAX's preemption service, which has that signal since they joined, tells the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python allows handlers in the main thread only
        return
    together = jax.process_count() > 1
    came = []  # when signals did

    def handle(number, frame):
        came.append(time.monotonic())
        if came[-1] - came[0] > _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping(step):
        stop = multihost_utils.reached_preemption_sync_point(step) if together else bool(came)
        if stop:  # while the state is saved, nothing of ours must be waited for
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        return stop

    numbers = (signal.SIGINT,) if together else (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


_REPEATED = 0.5  # seconds: `timeout` sends two signals where it means one
