"""Where the rows of metrics.csv go, too: TensorBoard, Weights & Biases (wandb), MLflow."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from etils import epath
from ml_collections import ConfigDict
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from vit_jax.common.files import is_bucket, reason_of, write_file
from vit_jax.common.names import printable
from vit_jax.common.repository import install_command
from vit_jax.config.keys import all_keys, look_up

logger = logging.getLogger(__name__)

_IDS = "loggers.json"
_UPLOAD_SECONDS = 300  # that the end of a run waits for wandb's uploads


class LoggedRun(NamedTuple):
    """What a logger knows of a run.

    Attributes:
      workdir: the run's folder, on this machine or in a bucket.
      folder: where files of the logger's own are written: the workdir, or what is copied there.
      config: the run's.
      steps_done: where the run starts.
      id: what the service calls the run; None if it doesn't know the run yet.
    """

    workdir: epath.Path
    folder: pathlib.Path
    config: ConfigDict
    steps_done: int
    id: str | None = None

    @property
    def name(self) -> str:
        """The last two parts of the workdir's path, such as "runs/photos"."""
        return "/".join(self.workdir.parts[-2:])


class Logger(Protocol):
    """Takes the rows of a run."""

    @property
    def id(self) -> str | None:
        """What the service calls the run; None if nothing has to know it."""

    def write(self, row: Mapping[str, float]) -> None:
        """Takes a row of numbers by column, `step` among them."""

    def close(self, status: str) -> None:
        """Takes note that the run is "finished", or was "stopped" by a signal, or has "failed"."""


class TensorBoard:
    """Writes scalars to WORKDIR/tensorboard, at once.

    TensorBoard's own writer has a thread that hides a full disk, and then waits forever. Of what an
    earlier process wrote, TensorBoard hides the steps that this one does again.
    """

    id = None

    def __init__(self, run: LoggedRun):
        folder = run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files of such names, in their order.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        self._add(step=run.steps_done + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: Mapping[str, float]) -> None:
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        self._add(step=row["step"], summary=Summary(value=scalars))
        self._records.flush()

    def close(self, status: str) -> None:
        self._records.close()

    def _add(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())


class WeightsAndBiases:
    """Sends rows and the configuration to wandb, or writes them to WORKDIR/wandb if it is offline.

    wandb's own steps only grow, so they count rows. The column `step` is the horizontal axis: steps
    that are done again after an interruption appear twice.
    """

    def __init__(self, run: LoggedRun):
        import wandb

        self._run = wandb.init(
            id=run.id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", run.name),
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=run.config.to_dict(),
            allow_val_change=True,
            reinit="create_new",  # leaves alone what else a program logs
            settings=wandb.Settings(console="off", finish_timeout=_UPLOAD_SECONDS),
        )
        self.id = self._run.id
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MLflow:
    """Sends rows, and the configuration as parameters, to MLflow's tracking server.

    Without a server (MLFLOW_TRACKING_URI), the store is WORKDIR/mlflow.db. Of a step that is done
    again, MLflow keeps both values. Parameters are those of the run's first start: MLflow refuses
    others.
    """

    _MOST_PARAMS = 100  # in a request
    _STATUS: Mapping[str, str] = {
        "finished": "FINISHED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }

    def __init__(self, run: LoggedRun):
        import mlflow

        if mlflow.is_tracking_uri_set():
            uri = mlflow.get_tracking_uri()
        elif is_bucket(run.workdir) or set("?%") & set(str(run.folder)):
            raise ValueError(
                "its file can't be in a bucket, or in a folder with ? or % in its path: set "
                "MLFLOW_TRACKING_URI, or take another workdir"
            )
        else:
            uri = f"sqlite:///{run.folder / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(uri)
        if run.id is not None and self._knows(run.id):
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        else:
            self.id = self._create(run)

    def write(self, row: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), int(row["step"])
        metrics = [Metric(k, float(x), now, step) for k, x in row.items() if k != "step"]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, status: str) -> None:
        self._client.set_terminated(self.id, self._STATUS[status])

    def _knows(self, id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(id).info.lifecycle_stage == "active"
        except MlflowException as error:  # it is another store than before
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _create(self, run: LoggedRun) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vit_jax")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        id = self._client.create_run(experiment, run_name=run.name).info.run_id
        values = {key: look_up(run.config, key, None) for key in all_keys(run.config)}
        params = [Param(k, str(x)) for k, x in values.items() if not isinstance(x, ConfigDict)]
        for first in range(0, len(params), self._MOST_PARAMS):
            self._client.log_batch(id, params=params[first : first + self._MOST_PARAMS])
        return id


class Kind(NamedTuple):
    """A row of `LOGGERS`.

    Attributes:
      open: makes the logger of a run.
      packages: what it needs beside the package's own requirements; `setup.py` has an extra of the
        logger's name.
    """

    open: Callable[[LoggedRun], Logger]
    packages: tuple[str, ...] = ()


LOGGERS: Mapping[str, Kind] = {
    "tensorboard": Kind(TensorBoard),
    "wandb": Kind(WeightsAndBiases, ("wandb",)),
    "mlflow": Kind(MLflow, ("mlflow", "sqlalchemy", "alembic")),  # the last two: for a file
}


def missing_packages(names: Iterable[str]) -> Iterator[str]:
    """Yields a sentence for each logger whose packages are not installed.

    Args:
      names: of `LOGGERS`.
    """
    for name in names:
        for package in LOGGERS[name].packages:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:  # such as a folder wandb, of wandb's own files
                yield (
                    f"loggers: {name!r} needs {package}, which is not installed: "
                    f"{install_command(name)}."
                )
                break


def open_loggers(run: LoggedRun) -> list[Logger]:
    """Returns the loggers of `run.config.loggers`.

    What services call the run is kept in WORKDIR/loggers.json, so that a run that goes on is one
    run there. If a service fails later, a warning says so once, and it gets nothing more.

    Raises:
      ValueError: a service can't be used, or loggers.json is damaged.
      OSError: a file can't be written.
    """
    path = run.workdir / _IDS
    ids, opened = _read_ids(path), {}
    with contextlib.ExitStack() as undo:
        for name in run.config.loggers:
            opened[name] = _open(name, run._replace(id=ids.get(name)))
            undo.callback(opened[name].close, "failed")
        found = ids | {name: x.id for name, x in opened.items() if x.id is not None}
        if found != ids:
            write_file(path, json.dumps(found))
        undo.pop_all()
    return list(opened.values())


def _open(name: str, run: LoggedRun) -> Logger:
    kind = LOGGERS[name]
    if not kind.packages:
        return kind.open(run)
    try:
        return _Guarded(name, kind.open(run))
    except Exception as error:  # a service's client can raise anything
        known = (
            f" It is to go on with its run {run.id}; without {printable(run.workdir / _IDS)} it "
            f"begins another."
        )
        raise ValueError(
            f"The logger {name} can't be started: {reason_of(error)}. Correct that, or leave it "
            f"out of config.loggers: metrics.csv has the same numbers.{known * bool(run.id)}"
        ) from error


class _Guarded:
    """A logger of a service, whose errors don't end the run."""

    def __init__(self, name: str, inner: Logger):
        self._name, self._inner, self._failed = name, inner, False
        self.id = inner.id

    def write(self, row: Mapping[str, float]) -> None:
        self._try(self._inner.write, row)

    def close(self, status: str) -> None:
        self._try(self._inner.close, status)

    def _try(self, call: Callable[[Any], None], argument: Any) -> None:
        if self._failed:
            return
        try:
            call(argument)
        except Exception as error:  # a service's client can raise anything
            self._failed = True
            logger.warning(
                "The logger %s failed, and gets nothing more until the run is started again: %s. "
                "The run goes on, and metrics.csv has all numbers.",
                self._name,
                reason_of(error),
            )


def _read_ids(path: epath.Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return {str(name): str(id) for name, id in json.loads(path.read_text()).items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{printable(path)} is damaged: remove it, and loggers begin new runs."
        ) from error
