"""What a process says when another process of its run is lost: one paragraph, not a stack dump.

JAX's coordination service watches the processes of a run. When one is lost, it ends the others: in
C++, it prints a reason for programmers and aborts. JAX offers no callback for that. So what C++
prints on stderr goes through a pipe to a small program, this file. It outlives the process that it
reads from, and puts a paragraph in place of that reason and the stack dump.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable

CONNECTING = 300  # seconds in which all processes have to be connected

_ABORT = "Terminating process because the JAX distributed service detected fatal errors"
_LINE_OF_CPP = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (\w+)\.(?:cc|h):\d+\] ")
_STACK_DUMP = ("*** ", "Fatal Python error")  # its first line, of C++ or of Python
_SERVICE = ("coordination_service", "coordination_service_agent", "preemption_sync_manager")
_OF_COMMUNICATION = re.compile(
    r"[^\n]*(Gloo [\w -]+ failed|NCCL (?:[Ee]rror|operation)|[Cc]oordination service"
    r"|[Bb]arrier (?:has )?(?:failed|timed out))[^\n]*"
)
_GO_ON = "Start the same command on all hosts: the run resumes from its newest checkpoint."


def filter_stderr(timeout: int) -> None:
    """Replaces, on stderr, what C++ prints of a lost process. Does nothing without a stderr.

    Python's own messages go to stderr as before. Call it before `jax.distributed.initialize`, and
    before anything keeps `sys.stderr`.

    Args:
      timeout: seconds without a heartbeat after which a process is lost.
    """
    if sys.stderr is None:
        return
    sys.stderr.flush()
    own, (reader, writer) = os.dup(2), os.pipe()
    # Run by its path, this file starts without the package's imports.
    program = f"import runpy; runpy.run_path({__file__!r})['forward']({timeout})"
    subprocess.Popen(
        [sys.executable, "-I", "-c", program],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal doesn't end it
    )
    os.dup2(writer, 2)
    for descriptor in (reader, writer):
        os.close(descriptor)
    encoding, errors = sys.stderr.encoding, "backslashreplace"
    sys.stderr = open(own, "w", buffering=1, encoding=encoding, errors=errors)  # noqa: SIM115


def describe_lost_connection(error: BaseException, timeout: int) -> str | None:
    """Returns one line for an error of the communication of processes, None for any other error.

    Args:
      error: what ended the job. The first error of communication among its causes is told.
      timeout: as in `filter_stderr`.
    """
    from vit_jax.common.memory import causes  # `forward` can't import the package

    found = None
    for cause in causes(error):
        found = _OF_COMMUNICATION.search(str(cause)) or found
    return found and (
        f"Another process doesn't answer: {found[0].rstrip('.')}. In {timeout} s at most, this "
        f"process ends and says which one was lost."
    )


def forward(timeout: int) -> None:
    """Passes on, from stdin to stderr, what a process prints, as `pass_on` does, until it ends."""
    for number in (signal.SIGTERM, signal.SIGINT):  # it ends with the process that it reads from
        signal.signal(number, signal.SIG_IGN)
    lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")
    pass_on(lines, lambda text: os.write(2, text.encode()), timeout)


def pass_on(lines: Iterable[str], write: Callable[[str], object], timeout: int) -> None:
    """Writes what a process prints. If JAX ends it, a paragraph comes in place of the reason.

    The paragraph is written when the stack dump begins. In a container whose first process ends,
    the kernel kills this one at once.

    Args:
      lines: what the process prints until it ends.
      write: gets the lines, and the paragraph.
      timeout: as in `filter_stderr`.
    """
    lines, of_service = iter(lines), False
    held: list[str] = []
    for line in lines:
        if _ABORT in line:
            rest = itertools.takewhile(lambda x: not x.startswith(_STACK_DUMP), lines)
            reason = line.partition("absl::Status: ")[2] + "".join(rest)
            for other in held:
                if not _LINE_OF_CPP.match(other) and other.strip() not in reason:
                    write(other)
            write(f"\n{describe_loss(reason, timeout)}\n")  # the line may have begun with a bar
            for _ in lines:  # the process can print the rest, which nobody needs
                pass
            return
        if match := _LINE_OF_CPP.match(line):
            of_service = match[1] in _SERVICE
        # The service prints the reason before it aborts, too. Lines without a prefix may go on with
        # its message.
        (held.append if of_service else write)(line)
    for line in held:
        write(line)


def describe_loss(reason: str, timeout: int) -> str:
    """Returns which process was lost, and what to do.

    Args:
      reason: the status that JAX aborts with.
      timeout: as in `filter_stderr`.
    """
    if "RegisterTask" in reason:
        return (
            f"The processes can't be connected: not all of them had connected within "
            f"{CONNECTING // 60} minutes. Start the same command on all hosts, each with its own "
            f"--process_id, and check --coordinator_address and the firewall."
        )
    silent = re.search(r"heartbeats\):\n((?:\d+\n)+)|Task (\d+) heartbeat timeout", reason)
    if silent:
        lost = ", ".join((silent[1] or silent[2]).split())
        what = f"no heartbeat for {timeout} s"
    elif early := re.search(r"first task at the barrier: (\d+)", reason):
        lost, what = early[1], f"it ended, and the others did not within {timeout} s"
    elif again := re.search(r"(\d+) unexpectedly tried to connect", reason):
        lost, what = again[1], "it was started again before the others had ended"
    elif re.search("leader task|ocket closed|onnection re(fused|set)|/Heartbeat", reason):
        lost, what = "0", "it can't be reached any more"
    else:
        first_line = reason.strip().partition("\n")[0].rstrip(".")
        return f"JAX has ended this process, as another one has failed: {first_line}. {_GO_ON}"
    who = f"Processes {lost} were" if "," in lost else f"Process {lost} was"
    return (
        f"{who} lost: {what}. This process ends too. For the cause, see the last messages of that "
        f"process or the log of its host. {_GO_ON}"
    )
