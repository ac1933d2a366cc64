"""metrics"""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import pathlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

COLUMNS = (
    "step",
    "epoch",
    "train_loss",
    "train_accuracy",
    "learning_rate",
    "grad_norm",
    "skipped_updates",
    "images_per_second",
    "test_loss",
    "test_accuracy",
    "test_top5_accuracy",
    "polyak_test_loss",
    "polyak_test_accuracy",
    "polyak_test_top5_accuracy",
)


class MetricWriter:
    """Writes rows of `COLUMNS` to WORKDIR/metrics.csv and to TensorBoard, and shows progress.

    Going on from `first_step`, it drops the rows of later steps that an interrupted run left.
    Nothing can be appended to a file in a bucket: there, both are written to a temporary folder,
    and copied whole at most once in half a minute, and at the end.

    Args:
      workdir: the run's folder, on this machine or in a bucket (`gs://BUCKET/PATH`).
      first_step, total_steps: where the run starts and ends.
      more_columns: of metrics.csv, after `COLUMNS`.
      active: False on all processes but one: nothing is written or shown.

    Raises:
      OSError: nothing can be written; says where and why.
      ValueError: WORKDIR/metrics.csv is not a table of steps.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        first_step: int,
        total_steps: int,
        active: bool,
        more_columns: Sequence[str] = (),
    ):
        self._active = active
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not active,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds: a file would grow for ever
        )
        if not active:
            return
        self._copy = None
        if os.fspath(workdir).startswith("gs://"):
            self._copy = _Copy(epath.Path(workdir))
            workdir = self._copy.folder
        folder = pathlib.Path(workdir)
        self._path = folder / _TABLE
        columns = (*COLUMNS, *more_columns)
        with self._told():
            _keep_rows(self._path, first_step, columns)
            self._file = self._path.open("a", newline="")
            self._csv = csv.DictWriter(self._file, columns)
            self._events = _Events(folder / "tensorboard", first_step + 1)

    def advance(self) -> None:
        """Moves the progress bar on by one step."""
        self._bar.update()

    def write(self, row: dict[str, float]) -> None:
        """Writes one row; columns it lacks stay empty.

        Raises:
          OSError: it can't be written, or metrics.csv is gone.
        """
        if not self._active:
            return
        with self._told():
            if not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "it is gone")
            self._csv.writerow(row)
            self._file.flush()
            self._events.write(row)
            if self._copy is not None and self._copy.due():
                self._copy.write()
        shown = {"loss": "train_loss", "accuracy": "train_accuracy", "test": "test_accuracy"}
        shown = {label: row[name] for label, name in shown.items() if name in row}
        self._bar.set_postfix({**shown, "images/s": f"{row['images_per_second']:.0f}"})

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._bar.close()
        if self._active:
            with contextlib.suppress(OSError):  # of what `write` couldn't write and told of
                self._file.close()
            with contextlib.suppress(OSError):
                self._events.close()
            if self._copy is not None:
                self._copy.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._path} or the TensorBoard events beside it can't be written: "
                f"{error.strerror or error}. The checkpoints are as they were; the same command "
                f"goes on from the newest."
            ) from error


class _Events:
    """Writes scalars to a folder of TensorBoard's, at once: the usual writer's thread would hide
    that a disk is full, and then wait for ever.

    Args:
      folder: for the file.
      first_step: what an earlier run wrote of it and of later steps is not shown.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files of such names, in their order.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: dict[str, float]) -> None:
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        self._add(step=row["step"], summary=Summary(value=scalars))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())


_TABLE = "metrics.csv"


class _Copy:
    """A temporary folder whose files are copied to a bucket; starts with the bucket's table."""

    _PAUSE = 30  # seconds

    def __init__(self, bucket: epath.Path):
        self._bucket = bucket
        self._temporary = tempfile.TemporaryDirectory(prefix="vit_jax-")
        self.folder = pathlib.Path(self._temporary.name)
        if (bucket / _TABLE).exists():
            (self.folder / _TABLE).write_bytes((bucket / _TABLE).read_bytes())
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._PAUSE

    def write(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file():
                (self._bucket / path.relative_to(self.folder)).write_bytes(path.read_bytes())
        self._last = time.monotonic()

    def close(self) -> None:
        self.write()
        self._temporary.cleanup()


def _keep_rows(path: pathlib.Path, last_step: int, columns: Sequence[str]) -> None:
    """Rewrites the file with the rows up to `last_step`; it is whole at every moment."""
    rows = []
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # it was being written when the run ended
            lines.pop()
        try:
            rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= last_step]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} is not a table with a number in the column step of every row: put it "
                f"aside, and the run goes on with a new one."
            ) from error
    partial = path.with_suffix(".partial")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
