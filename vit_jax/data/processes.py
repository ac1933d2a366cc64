"""Batches made by other processes, for machines whose CPUs one Python process can't use.

Threads of one process share Python's lock: on 16 cores, more than a few read and decode no faster
(benchmarks/README.md). So several processes have a few threads each. Batches come back in memory
that both sides map.

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
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import grain
import numpy as np

from vit_jax.data.batch import Batch
from vit_jax.data.dataset import ExampleError, ReadError
from vit_jax.data.skipped import SkippedImages

THREADS = 4  # of each process
_MOST_BYTES = 2**30  # of what a process is sent, such as a list of files or arrays of images
_MOST_DATASETS = 8  # that a process keeps: those of one run, and some for others of this process
_ALIGNMENT = 64  # bytes, of arrays in memory

logger = logging.getLogger(__name__)


def make_in_processes(
    batches: grain.MapDataset, threads: int, skipped: SkippedImages
) -> grain.MapDataset:
    """Returns the same batches, made by threads of other processes, `THREADS` of each.

    A thread that asks for a batch makes it itself while the processes start; and where they can't
    make it: if the system is not Linux, or if what batches are made from is larger than 1 GiB or
    can't be pickled, such as the row groups of Parquet files that stay in memory.

    Args:
      batches: of `batch.layout`, by index.
      threads: how many there are at least, over all processes.
      skipped: what `batches` gives its skipped images to. It gets those of the processes, too.

    Raises (when a batch is taken):
      ReadError: a process ended.
      others: as `batches`.
    """
    if not hasattr(os, "memfd_create"):
        return batches
    try:
        payload = cloudpickle.dumps((batches, skipped))
    except Exception as error:  # pickling calls code of everything that is in them
        logger.debug("batches are made in this process: %s", error)
        return batches
    if len(payload) > _MOST_BYTES:
        return batches
    workers = _workers(-(-threads // THREADS))

    def make(index: int) -> Batch:
        with workers.thread() as thread:
            if thread is None:
                return batches[index]
            batch, errors = thread.make(payload, index)
        for error in errors:
            skipped.add(error)
        return batch

    return grain.MapDataset.range(len(batches)).map(make)


# --------------------------------------------------------------------------------- this process


class _Answer(NamedTuple):
    """What a thread of another process answers.

    Attributes:
      needs_payload: True if it doesn't know yet what to make the batch from.
      arrays: {name: (where its bytes begin in the memory, shape, dtype)}.
      skipped: the images that were skipped.
      error: what making the batch raised, pickled; empty if nothing.
    """

    needs_payload: bool = False
    arrays: Mapping[str, tuple[int, tuple[int, ...], np.dtype]] = {}
    skipped: Sequence[ExampleError] = ()
    error: bytes = b""


class _Memory:
    """Memory of an open file, mapped again whenever the file has grown."""

    def __init__(self, file: int):
        self._file = file
        self._mapped: mmap.mmap | None = None

    def of_size(self, size: int) -> mmap.mmap:
        """Returns at least `size` bytes of it."""
        if self._mapped is None or len(self._mapped) < size:
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)
            self._mapped = mmap.mmap(self._file, size)
        return self._mapped


class _Thread:
    """A thread of another process, which makes one batch at a time."""

    def __init__(self, connection: Connection, memory: int, process: subprocess.Popen[bytes]):
        self._connection, self._memory, self._process = connection, _Memory(memory), process

    def make(self, payload: bytes, index: int) -> tuple[Batch, Sequence[ExampleError]]:
        """Returns a batch, and the images that were skipped; see `make_in_processes`."""
        answer = self.ask((hash(payload), index))
        if answer.needs_payload:
            answer = self.ask(payload)
        if answer.error:
            raise pickle.loads(answer.error)
        memory = self._memory.of_size(_size(answer.arrays))
        batch = {
            name: np.ndarray(shape, dtype, memory, start).copy()
            for name, (start, shape, dtype) in answer.arrays.items()
        }
        return batch, answer.skipped

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
            reason = f"a process that makes batches ended with the status {status}."
            if status == -signal.SIGKILL:
                reason = (
                    "a process that makes batches was killed, as a system does when memory runs "
                    "out. A smaller data.threads takes less; start the same command again."
                )
            raise ReadError("A batch", reason) from error


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
        """Starts a process."""
        pairs = [socket.socketpair() for _ in range(THREADS)]
        memory = [os.memfd_create("vit_jax batch") for _ in range(THREADS)]
        files = [*zip([theirs.fileno() for _, theirs in pairs], memory, strict=True)]
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve({files})"],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[x for both in files for x in both],
            start_new_session=True,  # a terminal's signals are for this process
        )
        atexit.register(process.kill)
        found = []
        for (ours, theirs), file in zip(pairs, memory, strict=True):
            theirs.close()
            found.append(_Thread(Connection(ours.detach()), file, process))
        try:
            found[0].ask(None)
        except ReadError as error:
            logger.warning("Fewer processes than planned make batches: %s", error)
            found = []
        for thread in found:
            self._idle.put(thread)
        with self._lock:
            self._starting -= 1
            self._threads += len(found)


@functools.cache
def _workers(count: int) -> _Workers:
    """Returns the processes, which all batches share."""
    return _Workers(count)


def _size(arrays: Mapping[str, tuple[int, tuple[int, ...], np.dtype]]) -> int:
    """Returns the bytes of memory that arrays take; see `_Answer`."""
    return max(
        start + dtype.itemsize * int(np.prod(shape)) for start, shape, dtype in arrays.values()
    )


# ---------------------------------------------------------------------------- the other process


def serve(files: Sequence[tuple[int, int]]) -> None:
    """Makes batches until the process at the other end of the sockets ends.

    Args:
      files: for each thread, the numbers of two open files: a socket, and memory for a batch.
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


# By a number that stands for them: batches, and what they give skipped images to.
_Datasets = dict[int, tuple[grain.MapDataset, SkippedImages]]


def _serve(socket: int, file: int, datasets: _Datasets) -> None:
    connection, memory = Connection(socket), _Memory(file)
    with contextlib.suppress(EOFError, ConnectionError):  # the other process has ended
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
                    found = datasets[key] = pickle.loads(payload)
                    for old in list(datasets)[:-_MOST_DATASETS]:
                        datasets.pop(old, None)
                answer = _make(found[0], found[1], index, memory)
            except Exception as error:
                answer = _Answer(error=_pickle(error))
            connection.send(answer)


def _make(
    batches: grain.MapDataset, skipped: SkippedImages, index: int, memory: _Memory
) -> _Answer:
    """Makes a batch, and copies it to the memory."""
    with skipped.collect() as errors:
        batch = batches[index]
    arrays, end = {}, 0
    for name, array in batch.items():
        arrays[name] = (end, array.shape, array.dtype)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    mapped = memory.of_size(_size(arrays))
    for name, (start, shape, dtype) in arrays.items():
        np.ndarray(shape, dtype, mapped, start)[...] = batch[name]
    return _Answer(arrays=arrays, skipped=errors)


def _pickle(error: Exception) -> bytes:
    """Returns an error with its traceback as a note. One that can't be pickled is described."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        data = cloudpickle.dumps(error)
        pickle.loads(data)  # which calls code of the error
    except Exception:
        data = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return data
