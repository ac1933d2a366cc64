"""The images that a run has skipped."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from vit_jax.data.dataset import ExampleError

logger = logging.getLogger(__name__)


class SkippedImages:
    """The ids of the images that a process skipped, each logged once. Threads may share it."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._lock = threading.Lock()
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[SkippedImages], tuple[()]]:
        return SkippedImages, ()  # in another process, none is skipped yet

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, error: ExampleError) -> None:
        """Adds the id of an image that can't be used, and logs why if it is new."""
        with self._lock:
            known = error.id in self._ids
            self._ids.add(error.id)
        getattr(self._local, "errors", []).append(error)
        if not known:
            logger.warning("skipped %s", error)

    @contextlib.contextmanager
    def collect(self) -> Iterator[list[ExampleError]]:
        """A context that gives the images that this thread adds in it, also those known before."""
        errors: list[ExampleError] = []
        self._local.errors = errors
        try:
            yield errors
        finally:
            del self._local.errors
