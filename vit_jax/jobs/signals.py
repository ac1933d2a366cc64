"""How a run stops at Ctrl-C or SIGTERM: it answers at once, finishes the step, and saves.

Python calls the handler of a signal in the main thread, between two instructions of Python. While
the main thread waits for a step, or for the compiler, no handler is called. So a thread of its own
reads the signals here, from the file descriptor that `signal.set_wakeup_fd` makes the system's
handler write to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from tqdm import tqdm

_REPEATED = 0.5  # seconds: `timeout` sends two signals for one stop


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Attributes:
      number: the signal, SIGINT (Ctrl-C) or SIGTERM.
      summary: what the run would have returned, if it had come to its end all the same; else None.
    """

    def __init__(self, number: signal.Signals, summary: dict[str, Any] | None = None):
        super().__init__(number.name)
        self.number, self.summary = number, summary


def exit_at_once(number: int, message: str, status: int | None = None) -> NoReturn:
    """Ends the process with a message on stderr, from any thread.

    Args:
      number: the signal that asked for it.
      message: one line.
      status: the exit status; None for 128 + `number`, as shells have it.
    """
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        os.write(2, f"\n{message}\n".encode())  # the line may have begun with a bar, or ^C
    os._exit(128 + number if status is None else status)


@contextlib.contextmanager
def watch_signals(
    numbers: Collection[int], react: Callable[[signal.Signals], None]
) -> Iterator[None]:
    """Calls `react(number)` at each of these signals, whatever the main thread does.

    It is called within milliseconds, and in a thread of its own. The signals do nothing else. Use
    it in the main thread. One such context may be within another: the inner one gets the signals.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # `set_wakeup_fd` asks for that

    def read() -> None:
        while received := reader.recv(1):
            if received[0] in numbers:
                react(signal.Signals(received[0]))

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        writer.close()  # the thread reads what is left, then the end of the file
        thread.join()
        reader.close()


@contextlib.contextmanager
def _preemption_service() -> Iterator[None]:
    """Gives SIGTERM to JAX's preemption service, which is started anew. Use it in the main thread.

    The service takes SIGTERM only when it starts, and JAX starts it once. Handlers of Python that
    were set since then have replaced its own.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if distributed.global_state.preemption_sync_manager is not None:
        distributed.global_state.preemption_sync_manager.shutdown()
        distributed.global_state.preemption_sync_manager = None
    distributed.global_state.initialize_preemption_sync_manager()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


class StopSignals:
    """A context in which Ctrl-C or SIGTERM stops a run after a step.

    The first signal asks for that, and a line on stderr says what is finished first. A second
    signal, at least 0.5 s later, ends the process at once.

    Several processes stop after the same step when one of them gets a signal: JAX's preemption
    service, which handles SIGTERM within this context, informs the others. If a process is lost
    without a signal, JAX ends the others, see `vit_jax.cli.lost_process`. Started again, the run
    resumes from its newest checkpoint.

    Outside the main thread it takes no signals: Python allows handlers in the main thread only. One
    of several processes still stops when another gets a signal, or the service itself.

    Args:
      step: the first step of the run.
      total_steps: the length of the run.
      is_evaluated: step -> True if the model is evaluated after it.

    Attributes:
      number: the signal that stops the run; None if there was none, or if several processes have
        not yet agreed on it.
    """

    def __init__(self, step: int, total_steps: int, is_evaluated: Callable[[int], bool]):
        self.number: signal.Signals | None = None
        self._total_steps, self._is_evaluated = total_steps, is_evaluated
        self._several = jax.process_count() > 1
        self._lock = threading.Lock()
        self._step = step  # after which a signal that comes now stops the run
        self._first: tuple[signal.Signals, float] | None = None  # signal and its time
        self._can_listen = threading.current_thread() is threading.main_thread()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> StopSignals:
        if self._several:  # from the start, so that the others are informed
            self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        self._listening.close()

    def listen(self) -> None:
        """Begins to listen. Before, there is nothing to save, and signals do as outside."""
        if self._can_listen:
            numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
            self._listening.enter_context(watch_signals(numbers, self._react))
            if self._several:
                self._listening.enter_context(_preemption_service())
            self._can_listen = False

    def received(self, step: int) -> signal.Signals | None:
        """Returns `number`, the signal that stops the run after this step, in all processes.

        A signal that comes later stops the run after the next step.

        Args:
          step: a step that has been sent to the devices; each is asked for once, in order.
        """
        with self._lock:
            self._step = step + (self.number is None)
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            own = self._first[0] if self._first else signal.SIGTERM
            all_of_them = multihost_utils.process_allgather(np.int32(own))
            self.number = signal.Signals(int(np.min(all_of_them)))  # SIGINT if there was one
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process
        return self.number

    def _react(self, number: signal.Signals) -> None:
        now = time.monotonic()
        with self._lock:
            first, self._first = self._first, self._first or (number, now)
            if not self._several:
                self.number = self._first[0]
        if first is None:
            again = "press Ctrl-C" if number == signal.SIGINT else "send SIGTERM"
            # `tqdm.write` clears the bar and draws it again below.
            if sys.stderr is not None:  # else `tqdm.write` would take stdout
                with contextlib.suppress(OSError):  # nobody reads stderr any more
                    tqdm.write(f"{self._work_left()}; {again} again to stop now", file=sys.stderr)
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)
        elif now - first[1] > _REPEATED:
            exit_at_once(number, "Stopped now; the last complete checkpoint is what is left.")

    def _work_left(self) -> str:
        if self._several:
            return "all processes finish the same step, and save it"
        if self._step > self._total_steps:
            return "saving the last step"
        evaluating = ", evaluating" if self._is_evaluated(self._step) else ""
        return f"finishing step {self._step}{evaluating}, saving"
