"""What loggers have written, read back by TensorBoard, MLflow's client and wandb's records."""

import json
import logging
import os
import pathlib
import shutil
import signal
import struct
import sys
import time

import pytest
from conftest import rows
from etils import epath

from vit_jax.config.defaults import default
from vit_jax.jobs import loggers
from vit_jax.jobs.loggers import Kind, LoggedRun, MLflow
from vit_jax.jobs.metric_writer import MetricWriter
from vit_jax.jobs.signals import Interrupted
from vit_jax.jobs.train import train
from vit_jax.jobs.validation import validate

COLUMNS = ("step", "train_loss", "test_accuracy")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No service is reached, whatever the environment says."""
    for name in [x for x in os.environ if x.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """MLflow's database without runs; to make one takes seconds."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def config_with(*names, **keys):
    config = default()
    config.loggers = names
    config.update_from_flattened_dict(keys)
    return config


def write(folder, steps, config, steps_done=0, error=None):
    """Writes rows as a run does, which ends with an error if one is given."""
    writer = MetricWriter(folder, COLUMNS, steps_done=steps_done, active=True, config=config)
    with writer:
        for step in steps:
            writer.write({"step": step, "train_loss": 1 / step, "test_accuracy": step / 10})
        if error is not None:
            raise error


def wandb_records(path):
    """The records of a .wandb file: a log in LevelDB's format, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, found, record = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15  # of a block
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            found.append(Record.FromString(record))
            record = b""
    return found


def finished_wandb_records(path):
    """As `wandb_records`, when wandb's own process has written the last one."""
    for _ in range(300):
        records = wandb_records(path)
        if any(x.WhichOneof("record_type") == "exit" for x in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(path)


def wandb_rows(records):
    """The rows of numbers that were logged."""
    items = [x.history.item for x in records if x.WhichOneof("record_type") == "history"]
    return [
        {i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in row}
        for row in items
    ]


def only(records, kind):
    (found,) = [getattr(x, kind) for x in records if x.WhichOneof("record_type") == kind]
    return found


def test_wandb_has_one_run_of_all_rows(tmp_path):
    """A run that is stopped, and goes on from its last checkpoint, at step 4."""
    pytest.importorskip("wandb")
    folder = tmp_path / "runs" / "photos"
    folder.mkdir(parents=True)
    config = config_with("wandb", **{"optim.lr": 0.25, "data.name": "photos"})
    with pytest.raises(Interrupted):
        write(folder, [2, 4, 6], config, error=Interrupted(signal.SIGTERM))
    config.total_steps = 20
    write(folder, [6, 8], config, steps_done=4)
    assert [int(row["step"]) for row in rows(folder)] == [2, 4, 6, 8]
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    first, second = map(finished_wandb_records, files)
    runs = [only(x, "run") for x in (first, second)]
    ids = {run.run_id for run in runs}
    assert ids == {json.loads((folder / "loggers.json").read_text())["wandb"]}
    assert {run.display_name for run in runs} == {"runs/photos"}
    settings = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    assert (settings["optim"]["lr"], settings["total_steps"]) == (0.25, 20)
    assert settings["loggers"] == ["wandb"]
    for records, steps in ((first, [2, 4, 6]), (second, [6, 8])):
        found = wandb_rows(records)
        assert [row["step"] for row in found] == steps
        assert [row["train_loss"] for row in found] == [1 / step for step in steps]
        assert only(records, "metric").step_metric == "step"
    assert [only(x, "exit").exit_code for x in (first, second)] == [1, 0]


@pytest.mark.slow
def test_mlflow_has_one_run_of_all_rows(tmp_path, empty_store):
    """As for wandb. It refuses to change parameters: they are those of the first start."""
    from mlflow import MlflowClient

    folder = tmp_path / "runs" / "photos"
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    config = config_with("mlflow", **{"optim.lr": 0.25, "data.name": "x" * 7000})

    def found():
        (experiment,) = client.search_experiments(filter_string="name = 'vit_jax'")
        (run,) = client.search_runs([experiment.experiment_id])
        return run

    for error, status in (
        (Interrupted(signal.SIGTERM), "KILLED"),
        (FloatingPointError("NaN"), "FAILED"),
    ):
        with pytest.raises(type(error)):
            write(folder, [2, 4, 6], config, error=error)
        assert found().info.status == status
    config.total_steps = 20
    write(folder, [6, 8], config, steps_done=4)
    run = found()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "runs/photos")
    assert json.loads((folder / "loggers.json").read_text()) == {"mlflow": run.info.run_id}
    assert (run.data.params["optim.lr"], run.data.params["total_steps"]) == ("0.25", "None")
    assert run.data.params["data.name"].startswith("x" * 500)
    assert not {"optim", "compare.runs"} & run.data.params.keys()
    history = client.get_metric_history(run.info.run_id, "train_loss")
    steps = [2, 4, 6, 2, 4, 6, 6, 8]
    assert sorted((x.step, x.value) for x in history) == sorted((s, 1 / s) for s in steps)
    assert run.data.metrics["test_accuracy"] == 0.8


@pytest.mark.slow
def test_mlflow_takes_the_store_and_experiment_of_the_environment(
    tmp_path, empty_store, monkeypatch
):
    """A run that another store doesn't know begins there anew."""
    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "other.db")
    uri = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "flowers")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "loggers.json").write_text(json.dumps({"mlflow": 32 * "0", "wandb": "abc"}))
    write(folder, [2], config_with("mlflow"))
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'flowers'")
    (run,) = client.search_runs([experiment.experiment_id])
    ids = json.loads((folder / "loggers.json").read_text())
    assert ids == {"mlflow": run.info.run_id, "wandb": "abc"}
    assert sorted(os.listdir(folder)) == ["loggers.json", "metrics.csv"]


@pytest.mark.parametrize("workdir", ["gs://bucket/run", "/runs/what?", "/runs/50%"])
def test_where_mlflow_can_write_no_file_it_needs_a_server(tmp_path, workdir):
    pytest.importorskip("mlflow")
    folder = tmp_path if workdir.startswith("gs") else pathlib.Path(workdir)
    with pytest.raises(ValueError, match="its file can't be in a bucket, or in a folder with"):
        MLflow(LoggedRun(epath.Path(workdir), folder, default(), 0))


def test_without_loggers_there_is_the_table_alone(tmp_path):
    write(tmp_path, [1], config_with())
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "LOGGERS", {})  # so that opening one raises a KeyError
    config = config_with("wandb", "mlflow", "tensorboard")
    writer = MetricWriter(tmp_path, COLUMNS, steps_done=0, active=False, config=config)
    with writer:
        writer.write({"step": 1})
    assert os.listdir(tmp_path) == []


def test_a_service_that_fails_ends_neither_the_run_nor_other_loggers(
    settings, tmp_path, monkeypatch, caplog
):
    """It fails at the second row, and would fail at all later ones."""
    wandb = pytest.importorskip("wandb")
    calls, log = [], wandb.Run.log

    def fail(run, data):
        calls.append(data["step"])
        if len(calls) > 1:
            raise ConnectionError("the network is gone")
        log(run, data)

    monkeypatch.setattr(wandb.Run, "log", fail)
    settings.loggers, settings.total_steps = ("wandb", "tensorboard"), 6
    with caplog.at_level(logging.WARNING):
        summary = train(settings, tmp_path / "run")
    assert summary["step"] == 6 and os.path.isdir(summary["checkpoint"])
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [2, 3, 4, 6]
    assert calls == [2, 3]
    warned = [r.getMessage() for r in caplog.records if "The logger" in r.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("The logger wandb failed") and "the network is gone" in warned[0]


def test_a_service_that_cannot_be_started_ends_the_run_before_its_first_step(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def fail(**options):
        raise wandb.errors.CommError("no such\nserver")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError, match=r"wandb can't be started: no such\. Correct.*numbers\.$"):
        write(tmp_path, [1], config_with("wandb"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "loggers.json").write_text('{"wandb": "abc"}')
    with pytest.raises(ValueError, match=r"go on with its run abc; without .*loggers.json it"):
        write(tmp_path, [1], config_with("wandb"))
    (tmp_path / "loggers.json").write_text("[]")
    with pytest.raises(ValueError, match=r"loggers.json is damaged: remove it, and loggers begin"):
        write(tmp_path, [1], config_with("wandb"))


@pytest.mark.parametrize("names", [("wandbb",), ("wandb,mlflow",), ("wandb", "wandb")])
def test_wrong_names_are_refused(names):
    config = config_with(*names, total_steps=2)
    with pytest.raises(ValueError, match=r"distinct names among tensorboard, wandb, mlflow, such"):
        validate(config)
    config.loggers = (1,)
    with pytest.raises(ValueError, match=r"loggers=\(1,\) must be names, such as"):
        validate(config)


def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = config_with("wandb", total_steps=2)
    with pytest.raises(ValueError, match=r'needs wandb, which .*: pip install -e "\.\[wandb\]"\.'):
        validate(config)
    config.job, config.init_from = "evaluate", "x"  # it logs nothing
    validate(config)
    # A folder of that name, as wandb makes, is no package.
    (tmp_path / "some_service").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    table = {"wandb": Kind(loggers.WeightsAndBiases, ("some_service",))}
    monkeypatch.setattr(loggers, "LOGGERS", table)
    with pytest.raises(ValueError, match="needs some_service, which is not installed"):
        validate(config_with("wandb", total_steps=2))
