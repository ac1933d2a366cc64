"""How a run stops at Ctrl-C or SIGTERM: after the step, with a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_REPEATED = 0.5  # seconds: `timeout` sends two signals for one stop


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a function: step -> True if the run must stop after it.

    The first Ctrl-C or SIGTERM asks for that. A second signal, at least 0.5 s after the first,
    ends the process at once. Several processes stop after the same step when one of them gets a
    signal: JAX's preemption service, which handles SIGTERM from `jax.distributed.initialize` on,
    informs the others. A process or host that is lost without a signal is not handled here: start
    the run again, and it resumes from its newest checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python allows handlers in the main thread only
        return
    several = jax.process_count() > 1
    times: list[float] = []  # of the signals

    def handle(number, frame):
        times.append(time.monotonic())
        if times[-1] - times[0] > _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def must_stop(step):
        stop = multihost_utils.reached_preemption_sync_point(step) if several else bool(times)
        if stop:  # a signal while the state is saved ends the process
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        return stop

    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield must_stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
