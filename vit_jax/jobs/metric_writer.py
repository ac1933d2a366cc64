"""The numbers that a run writes: metrics.csv, and what its loggers get."""

from __future__ import annotations

import contextlib
import csv
import errno
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from etils import epath
from ml_collections import ConfigDict

from vit_jax.common.files import is_bucket, reason_of, replacing
from vit_jax.jobs.loggers import LoggedRun, open_loggers

logger = logging.getLogger(__name__)

_TABLE = "metrics.csv"


class MetricWriter:
    """Writes rows of numbers to WORKDIR/metrics.csv and to the loggers of `config.loggers`.

    It is a context manager: its end tells the loggers whether the run has finished.

    A run that goes on drops the columns that are not in `columns`, and the rows of later steps,
    which an interrupted run left. Nothing can be appended to a file in a bucket. There, both are
    written to a temporary folder. It is copied at the end, and with a row if the last copy is
    at least 30 s old.

    Args:
      workdir: the run's folder, on this machine or in a bucket (`gs://BUCKET/PATH`).
      columns: the columns of metrics.csv, including `step`.
      steps_done: where the run starts.
      active: False on all processes but one: nothing is written.
      config: the run's.

    Raises:
      OSError: nothing can be written; says where and why.
      ValueError: WORKDIR/metrics.csv is not a table of steps, or a logger can't be started.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        columns: Sequence[str],
        *,
        steps_done: int,
        active: bool,
        config: ConfigDict,
    ):
        self._active = active
        if not active:
            return
        self._columns = set(columns)
        self._copy = _Copy(epath.Path(workdir)) if is_bucket(workdir) else None
        folder = pathlib.Path(self._copy.folder if self._copy else workdir)
        self._path = folder / _TABLE
        with self._one_message(), contextlib.ExitStack() as undo:
            # First, so that a new workdir stays empty if a service can't be reached.
            self._loggers = open_loggers(LoggedRun(epath.Path(workdir), folder, config, steps_done))
            for one in self._loggers:
                undo.callback(one.close, "failed")
            _keep_rows(self._path, steps_done, columns)
            self._file = self._path.open("a", newline="")
            self._csv = csv.DictWriter(self._file, columns, extrasaction="ignore")
            undo.pop_all()

    def write(self, row: dict[str, float]) -> None:
        """Writes one row.

        Columns that the row lacks stay empty. A number without a column goes to the loggers alone,
        with a warning.

        Raises:
          OSError: it can't be written, or metrics.csv is gone.
        """
        if not self._active:
            return
        for name in sorted(row.keys() - self._columns):
            logger.warning("%s has no column %s: only loggers get it.", self._path, name)
            self._columns.add(name)
        with self._one_message():
            if not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "it is gone")
            self._csv.writerow(row)
            self._file.flush()
            for one in self._loggers:
                one.write(row)
            if self._copy is not None and self._copy.is_due():
                self._copy.write()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("stopped" if issubclass(kind, KeyboardInterrupt) else "failed")

    def close(self, status: str = "finished") -> None:
        """Closes the files and the loggers, see `loggers.Logger.close`."""
        if self._active:
            with contextlib.suppress(OSError):  # `write` has raised it
                self._file.close()
            for one in self._loggers:
                with contextlib.suppress(OSError):
                    one.close(status)
            if self._copy is not None:
                self._copy.close()

    @contextlib.contextmanager
    def _one_message(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise OSError(
                f"{self._path} or the TensorBoard events beside it can't be written: "
                f"{reason_of(cause)}. Checkpoints, if there are any, are as they were. When there "
                f"is space, and permission, the same command goes on."
            ) from error


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

    def is_due(self) -> bool:
        return time.monotonic() - self._last >= self._PAUSE

    def write(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file():
                (self._bucket / path.relative_to(self.folder)).write_bytes(path.read_bytes())
        self._last = time.monotonic()

    def close(self) -> None:
        self.write()
        self._temporary.cleanup()


def _keep_rows(path: pathlib.Path, steps_done: int, columns: Sequence[str]) -> None:
    """Rewrites the file with the rows up to `steps_done`. The file is whole at every moment."""
    rows = []
    if path.exists():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):  # it was being written when the run ended
                lines.pop()
            rows = [row for row in csv.DictReader(lines) if int(row["step"]) <= steps_done]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} is not a table with a number in the column step of every row: put it "
                f"aside, and the run goes on with a new one."
            ) from error
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
