"""Recognises errors of too little memory, of whatever library they are; imports little."""

from __future__ import annotations

import errno
from collections.abc import Iterator

YNNPACK = "YNNPACK operation failed"  # XLA's library for CPUs gives no reason
_SIGNS = (
    "RESOURCE_EXHAUSTED",  # XLA
    "Out of memory",
    "bad_alloc",  # C++
    "Insufficient memory",  # OpenCV
    "can't start new thread",  # its stack
    "annot allocate memory",  # the system, and its loader of libraries
    "failed to map segment",
    YNNPACK,
)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, the one that it comes from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an error, or one that it comes from, says that there is too little memory."""
    for cause in causes(error):
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return True
        is_known = isinstance(cause, RuntimeError | ImportError | OSError)
        is_known = is_known or type(cause).__module__ == "cv2"
        if is_known and any(sign in str(cause) for sign in _SIGNS):
            return True
    return False
