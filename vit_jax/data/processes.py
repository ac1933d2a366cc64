"""Elements of a data set made by other processes, where one Python process can't use all CPUs.

An element is a batch, or whatever else is made of an example. Threads of one process share Python's
lock: on 16 cores, more than a few read and decode no faster (benchmarks/README.md). So several
processes have a few threads each. Arrays come back in memory that both sides map.

Processes of `multiprocessing`, as Grain's are, import the user's script once more, stay when this
process is killed, and take space in /dev/shm, of which a container has 64 MB. These are programs of
their own: they import this package alone, end when this process ends, and need no such space.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import grain
import numpy as np

from vit_jax.data.dataset import ExampleError, ReadError
from vit_jax.data.skipped import SkippedImages

THREADS = 4  # of each process
_MOST_BYTES = 2**30  # of what a process is sent, such as a list of files or arrays of images
_MOST_DATASETS = 8  # that a process keeps: those of one run, and some for others of this process

logger = logging.getLogger(__name__)


def make_in_processes(
    dataset: grain.MapDataset, threads: int, skipped: SkippedImages | None = None
) -> grain.MapDataset:
    """Returns the same elements, made by threads of other processes, `THREADS` of each.

    A thread that asks for an element makes it itself while the processes start; and where they
    can't make it: if the system is not Linux, or if what elements are made from is larger than 1
    GiB or can't be pickled, such as the row groups of Parquet files that stay in memory.

    Args:
      dataset: elements by index, which can be pickled.
      threads: how many there are at least, over all processes.
      skipped: what `dataset` gives its skipped images to. It gets those of the processes, too.

    Raises (when an element is taken):
      ReadError: a process ended.
      others: as `dataset`.
    """
    if not hasattr(os, "memfd_create"):
        return dataset
    skipped = SkippedImages() if skipped is None else skipped
    try:
        payload = cloudpickle.dumps((dataset, skipped))
    except Exception as error:  # pickling calls code of everything that is in them
        logger.debug("elements are made in this process: %s", error)
        return dataset
    if len(payload) > _MOST_BYTES:
        return dataset
    workers = _workers(-(-threads // THREADS))

    def make(index: int) -> Any:
        with workers.thread() as thread:
            if thread is None:
                return dataset[index]
            element, errors = thread.make(payload, index)
        for error in errors:
            skipped.add(error)
        return element

    return grain.MapDataset.range(len(dataset)).map(make)


# --------------------------------------------------------------------------------- this process


class _Answer(NamedTuple):
    """What a thread of another process answers.

    Attributes:
      needs_payload: True if it doesn't know yet what to make the element from.
      element: pickled, but for the bytes of its arrays.
      sizes: the numbers of these bytes, which lie in the memory one after the other.
      skipped: the images that were skipped.
      error: what making the element raised, pickled; empty if nothing.
    """

    needs_payload: bool = False
    element: bytes = b""
    sizes: Sequence[int] = ()
    skipped: Sequence[ExampleError] = ()
    error: bytes = b""


class _Memory:
    """Memory of an open file, mapped again whenever the file has to grow."""

    def __init__(self, file: int):
        self._file = file
        self._bytes = np.empty(0, np.uint8)

    def parts(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Returns parts of it, uint8 (size,), that begin at multiples of 64 bytes."""
        ends = np.cumsum([-(-size // 64) * 64 for size in sizes], dtype=int).tolist()
        if ends and ends[-1] > len(self._bytes):
            if os.fstat(self._file).st_size < ends[-1]:
                os.ftruncate(self._file, ends[-1])
            self._bytes = np.frombuffer(mmap.mmap(self._file, ends[-1]), np.uint8)
        starts = [0, *ends][: len(sizes)]
        return [self._bytes[x : x + size] for x, size in zip(starts, sizes, strict=True)]


class _Thread:
    """A thread of another process, which makes one element at a time."""

    def __init__(self, connection: Connection, memory: int, process: subprocess.Popen[bytes]):
        self._connection, self._memory, self._process = connection, _Memory(memory), process

    def make(self, payload: bytes, index: int) -> tuple[Any, Sequence[ExampleError]]:
        """Returns an element, and the images that were skipped; see `make_in_processes`."""
        answer = self.ask((hash(payload), index))
        if answer.needs_payload:
            answer = self.ask(payload)
        if answer.error:
            raise pickle.loads(answer.error)
        arrays = [part.copy() for part in self._memory.parts(answer.sizes)]
        return pickle.loads(answer.element, buffers=arrays), answer.skipped

    def ask(self, request: Any) -> _Answer:
        """Returns the answer to a request; that to None comes when the process has started.

        Raises:
          ReadError: the process ended.
        """
        try:
            self._connection.send(request)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            status = self._process.wait()
            reason = f"a process that reads images ended with the status {status}."
            if status == -signal.SIGKILL:
                reason = (
                    "a process that reads images was killed, as a system does when memory runs "
                    "out. A smaller data.threads takes less; start the same command again."
                )
            raise ReadError("An image", reason) from error


class _Workers:
    """Processes, and those of their threads that have nothing to do.

    Args:
      count: of the processes. They start in the background.
    """

    def __init__(self, count: int):
        self._idle: queue.SimpleQueue[_Thread] = queue.SimpleQueue()
        self._starting, self._threads, self._lock = count, 0, threading.Lock()
        for _ in range(count):
            threading.Thread(target=self._start, daemon=True).start()

    @contextlib.contextmanager
    def thread(self) -> Iterator[_Thread | None]:
        """A context that has a thread for itself, or None while they start, or if none is left."""
        thread = None
        while thread is None and self._threads:
            with contextlib.suppress(queue.Empty):
                thread = self._idle.get(timeout=0 if self._starting else 1)
            if self._starting:
                break
        try:
            yield thread
        except ReadError as error:
            if thread and isinstance(error.__cause__, EOFError | OSError):  # its process ended
                with self._lock:
                    self._threads -= 1
                thread = None
            raise
        finally:
            if thread:
                self._idle.put(thread)

    def _start(self) -> None:
        """Starts a process, and takes its threads."""
        try:
            found = _start_process()
            found[0].ask(None)
        except OSError as error:  # also ReadError: it ended
            logger.warning("Fewer processes than planned read images: %s", error)
            found = []
        for thread in found:
            self._idle.put(thread)
        with self._lock:
            self._starting -= 1
            self._threads += len(found)


def _start_process() -> list[_Thread]:
    """Starts a process, and returns its threads."""
    pairs = [socket.socketpair() for _ in range(THREADS)]
    memory = [os.memfd_create("vit_jax") for _ in range(THREADS)]
    files = [*zip([theirs.fileno() for _, theirs in pairs], memory, strict=True)]
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve({files})"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        pass_fds=[x for both in files for x in both],
        start_new_session=True,  # a terminal's signals are for this process
    )
    atexit.register(process.kill)
    for _, theirs in pairs:
        theirs.close()
    return [
        _Thread(Connection(ours.detach()), file, process)
        for (ours, _), file in zip(pairs, memory, strict=True)
    ]


@functools.cache
def _workers(count: int) -> _Workers:
    """Returns the processes, which all batches share."""
    return _Workers(count)


# ---------------------------------------------------------------------------- the other process


def serve(files: Sequence[tuple[int, int]]) -> None:
    """Makes elements until the process at the other end of the sockets ends.

    Args:
      files: for each thread, the numbers of two open files: a socket, and memory for arrays.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the other process decides when it is over
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # it also logs what is skipped
    datasets: _Datasets = {}
    threads = [threading.Thread(target=_serve, args=(*pair, datasets)) for pair in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # when this function has ended, Python starts no further threads


# Threads that import modules which need each other may find them half imported.
_IMPORTING = threading.Lock()
# By a number that stands for them: elements, and what they give skipped images to.
_Datasets = dict[int, tuple[grain.MapDataset, SkippedImages]]


def _serve(socket: int, file: int, datasets: _Datasets) -> None:
    try:
        _answer_all(Connection(socket), _Memory(file), datasets)
    except (EOFError, ConnectionError):  # the other process has ended
        pass
    except BaseException:  # without this thread, it would wait for an answer
        traceback.print_exc()
        os._exit(1)


def _answer_all(connection: Connection, memory: _Memory, datasets: _Datasets) -> None:
    while True:
        request = connection.recv()
        if request is None:
            connection.send(_Answer())
            continue
        key, index = request
        if (found := datasets.get(key)) is None:
            connection.send(_Answer(needs_payload=True))
            payload = connection.recv()
        try:
            if found is None:
                with _IMPORTING:
                    found = datasets[key] = pickle.loads(payload)
                for old in list(datasets)[:-_MOST_DATASETS]:
                    datasets.pop(old, None)
            answer = _make(found[0], found[1], index, memory)
        except Exception as error:
            answer = _Answer(error=_pickle(error))
        connection.send(answer)


def _make(
    dataset: grain.MapDataset, skipped: SkippedImages, index: int, memory: _Memory
) -> _Answer:
    """Makes an element, and copies its arrays to the memory."""
    with skipped.collect() as errors:
        element = dataset[index]
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(element, protocol=5, buffer_callback=buffers.append)
    arrays = [np.frombuffer(x.raw(), np.uint8) for x in buffers]
    sizes = [x.size for x in arrays]
    for part, array in zip(memory.parts(sizes), arrays, strict=True):
        part[...] = array
    return _Answer(element=data, sizes=sizes, skipped=errors)


def _pickle(error: Exception) -> bytes:
    """Returns an error with its traceback as a note. One that can't be pickled is described."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        data = cloudpickle.dumps(error)
        pickle.loads(data)  # which calls code of the error
    except Exception:
        data = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return data
