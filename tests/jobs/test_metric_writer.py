import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_jax.config.defaults import default
from vit_jax.jobs.metric_writer import MetricWriter

COLUMNS = (
    *("step", "train_loss", "train_accuracy", "learning_rate", "images_per_second"),
    *("test_loss", "test_accuracy"),
)
ROW = {"train_loss": 1.0, "train_accuracy": 0.5, "images_per_second": 10.0}


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(folder, steps, steps_done=0, **more):
    writer = MetricWriter(folder, COLUMNS, steps_done=steps_done, active=True, config=default())
    for step in steps:
        writer.write({"step": step, **ROW, **more})
    writer.close()


def test_writes_a_row_a_step_and_leaves_missing_columns_empty(tmp_path):
    write(tmp_path, [1, 2], test_accuracy=0.25)
    first = rows(tmp_path)[0]
    assert first["step"] == "1" and float(first["train_loss"]) == 1.0
    assert first["test_accuracy"] == "0.25" and first["test_loss"] == ""


def test_more_columns_can_come_and_go(tmp_path):
    for first, columns in ((0, ["fewshot_5"]), (1, ["fewshot_5", "fewshot_10"]), (2, [])):
        writer = MetricWriter(
            tmp_path, [*COLUMNS, *columns], steps_done=first, active=True, config=default()
        )
        writer.write({"step": first + 1, **ROW, **dict.fromkeys(columns, 0.5)})
        writer.close()
        found = rows(tmp_path)
        assert len(found) == first + 1
        assert [found[-1][name] for name in columns] == ["0.5"] * len(columns)


def test_a_row_without_an_accuracy_is_written(tmp_path):
    """As training on pixels gives."""
    writer = MetricWriter(tmp_path, COLUMNS, steps_done=0, active=True, config=default())
    writer.write({"step": 1, "train_loss": 1.0, "images_per_second": 10.0})
    writer.close()
    assert rows(tmp_path)[0]["train_accuracy"] == ""


def test_going_on_drops_the_rows_after_the_restored_step(tmp_path):
    write(tmp_path, [2, 4, 6, 8], learning_rate=0.1)
    write(tmp_path, [6, 8], steps_done=4, learning_rate=0.2)
    assert [(r["step"], r["learning_rate"]) for r in rows(tmp_path)] == [
        ("2", "0.1"),
        ("4", "0.1"),
        ("6", "0.2"),
        ("8", "0.2"),
    ]


def test_tensorboard_reads_every_number_and_forgets_what_was_done_again(tmp_path):
    write(tmp_path, [2, 4, 6], learning_rate=0.25)
    write(tmp_path, [6, 8], steps_done=4, learning_rate=0.125)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {*ROW, "learning_rate"}
    assert [(event.step, event.value) for event in read.Scalars("learning_rate")] == [
        (2, 0.25),
        (4, 0.25),
        (6, 0.125),
        (8, 0.125),
    ]


def test_an_inactive_writer_leaves_nothing(tmp_path):
    writer = MetricWriter(tmp_path, COLUMNS, steps_done=0, active=False, config=default())
    writer.write({"step": 1, **ROW})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_without_a_column_is_told_once_and_reaches_tensorboard(tmp_path, caplog):
    write(tmp_path, [1, 2], surprise=3.0)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
    assert "surprise" not in rows(tmp_path)[0]
    assert [r.getMessage().count("has no column surprise") for r in caplog.records] == [1]
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [event.value for event in read.Scalars("surprise")] == [3.0, 3.0]


def test_a_table_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"metrics\.csv is not a table with a number"):
        write(tmp_path, [1])
