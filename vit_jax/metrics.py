"""What a run writes about itself: a progress bar, metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

COLUMNS = (
    "step", "epoch", "train_loss", "train_accuracy", "learning_rate", "grad_norm",
    "images_per_second", "test_loss", "test_accuracy", "test_top5_accuracy", "polyak_test_loss",
    "polyak_test_accuracy", "polyak_test_top5_accuracy",
)  # fmt: skip


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
            total=total_steps, initial=first_step, unit="step", disable=not active,
            dynamic_ncols=True, file=sys.stderr,
        )  # fmt: skip
        if not active:
            return
        self._copy = None
        if os.fspath(workdir).startswith("gs://"):
            self._copy = _Copy(epath.Path(workdir))
            workdir = self._copy.folder
        folder = pathlib.Path(workdir)
        path = folder / _TABLE
        columns = (*COLUMNS, *more_columns)
        _keep_rows(path, first_step, columns)
        self._file = path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, columns)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def advance(self) -> None:
        """Moves the progress bar on by one step."""
        self._bar.update()

    def write(self, row: dict[str, float]) -> None:
        """Writes one row; columns it lacks stay empty."""
        if not self._active:
            return
        self._csv.writerow(row)
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])
        if self._copy is not None and self._copy.due():
            self._events.flush()
            self._copy.write()
        shown = {"loss": "train_loss", "accuracy": "train_accuracy", "test": "test_accuracy"}
        shown = {label: row[name] for label, name in shown.items() if name in row}
        self._bar.set_postfix({**shown, "images/s": f"{row['images_per_second']:.0f}"})

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._bar.close()
        if self._active:
            self._file.close()
            self._events.close()
            if self._copy is not None:
                self._copy.close()


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


def write_table(path: epath.Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a CSV file, on this machine or in a bucket."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path.write_bytes(text.getvalue().encode())


def _keep_rows(path: pathlib.Path, last_step: int, columns: Sequence[str]) -> None:
    """Rewrites the file with the rows up to `last_step`; it is whole at every moment."""
    rows = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= last_step]
    partial = path.with_suffix(".partial")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
