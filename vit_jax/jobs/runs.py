"""What studies of several runs share: a run is trained once, and results become tables.

Each run has its own folder. There it goes on if it was stopped, and leaves its result in
summary.json. A study that is started again trains nothing twice.
"""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit_jax.checkpoints.checkpoint import read_config
from vit_jax.common.files import replacing, write_csv, write_file
from vit_jax.common.names import printable
from vit_jax.config.defaults import default
from vit_jax.config.keys import look_up, short_repr
from vit_jax.data import sources
from vit_jax.data.dataset import Dataset
from vit_jax.data.fingerprint import Fingerprint, fingerprint
from vit_jax.evaluation.fewshot import few_shot_splits
from vit_jax.jobs.resume import changes, with_view
from vit_jax.jobs.same_data import find_changes, refuse_changes
from vit_jax.jobs.signals import Interrupted
from vit_jax.jobs.train import train
from vit_jax.training.setup import needs_labels

logger = logging.getLogger(__name__)

# A run that goes on may change these keys. The result of a finished run depends on them.
_OF_THE_RESULT = (
    *("total_steps", "epochs", "checkpoint.best", "early_stopping.patience"),
    *("init_from", "init_resize", "init_average", "init_head"),
    *("data.test", "data.eval_image_size", "data.eval_crop", "data.eval_resize"),
    *("data.on_error", "on_nonfinite"),
    *(f"fewshot.{key}" for key in ("every", "shots", "seeds", "penalty", "neighbours")),
    *(f"fewshot.{key}" for key in ("name", "train", "test")),
)
# What it depends on of the data, see `_fingerprint`.
_PARTS = ("train", "test", "few-shot train", "few-shot test")


def train_once(
    config: ConfigDict,
    workdir: epath.Path,
    checked: set[str] | None = None,
    like: epath.Path | None = None,
) -> dict[str, Any]:
    """Returns the summary of a run, which is trained unless an earlier call has done so.

    Args:
      config: the run's configuration, with `job="train"`.
      workdir: the run's folder; gets summary.json, too.
      checked: `config.data` of earlier runs, as JSON. Their images are not decoded once more before
        training. The run's own is added.
      like: the folder of the study's first run of this model. If `config.accumulate_steps` is None,
        the run takes that run's number, so that both are computed alike. None, and the run's own
        folder, let it choose.

    Raises:
      ValueError: the folder holds the result of another configuration, see `result_changes`, or of
        other data, see `same_data.refuse_changes`, or is damaged; or as `train`.
      Interrupted: a signal came. If the run was complete all the same, its result is written.
    """
    path = workdir / "summary.json"
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    data = _fingerprint(config, dataset)
    if path.exists():
        stored = _read_result(path)
        if found := result_changes(config, ConfigDict(stored["config"])):
            raise ValueError(
                f"{workdir} holds the result of another configuration: {'; '.join(found)}. Take a "
                f"new workdir, or remove this folder to train again."
            )
        old = Fingerprint(**stored.get("data", {"class_names": (), "splits": None}))
        refuse_changes(
            config,
            find_changes(old, data, dataset, parts=_PARTS, is_finished=True),
            where=str(path),
            advice="Take a new workdir, remove this folder to train again, or keep this result of "
            "the other data: --config.checkpoint.other_data=true.",
        )
        return stored["summary"]
    logger.info("run %s", workdir)
    checked = set() if checked is None else checked
    images = config.data.to_json(sort_keys=True)
    run = config.copy_and_resolve_references()
    run.data.check = config.data.check and images not in checked
    if like not in (None, workdir) and run.accumulate_steps is None:
        run.accumulate_steps = _micro_batches_of(like, run.batch_size)
    number = None
    try:
        summary = train(run, workdir, dataset)
    except Interrupted as error:
        if error.summary is None:
            raise
        summary, number = error.summary, error.number
    checked.add(images)
    if jax.process_index() == 0:
        content = {
            "config": json.loads(config.to_json(sort_keys=True)),
            "data": data._asdict(),
            "summary": summary,
        }
        write_file(path, json.dumps(content))
    if number is not None:
        raise Interrupted(number)
    return summary


def result_changes(config: ConfigDict, saved: ConfigDict) -> list[str]:
    """Returns the keys whose values differ such that the result of a run would be another.

    These are the keys of `resume.changes`, and those that say how long a run is, what it starts
    from, what it skips and how it is tested.

    Args:
      config: the run's.
      saved: that of a finished run, as summary.json has it. A key that it lacks has its default.

    Returns:
      One text a key: "data.test was None, is 'test'".
    """
    defaults, found = default(), changes(config, saved)
    config, saved = with_view(config), with_view(saved)
    for key in _OF_THE_RESULT:
        old, new = (look_up(c, key, defaults[key]) for c in (saved, config))
        if json.dumps(old) != json.dumps(new):  # a tuple is saved as a list
            found.append(f"{key} was {short_repr(old)}, is {short_repr(new)}")
    return found


def _fingerprint(config: ConfigDict, dataset: Dataset) -> Fingerprint:
    """Returns the fingerprint of all data that the result of a run depends on, by `_PARTS`."""
    splits = {x: sources.open_source(dataset, x, config.data[x]) for x in ("train", "test")}
    found = fingerprint(dataset, labels=needs_labels(config), **splits)
    if config.fewshot.every:
        dataset, train, test = few_shot_splits(config, dataset)
        few_shot = fingerprint(dataset, labels=False, train=train, test=test).splits or {}
        named = {f"few-shot {part}": values for part, values in few_shot.items()}
        found = found._replace(splits={**(found.splits or {}), **named})
    return found


def _read_result(path: epath.Path) -> dict[str, Any]:
    """Returns what `train_once` wrote to a summary.json.

    Raises:
      ValueError: it is damaged.
    """
    try:
        stored = json.loads(path.read_bytes())
        config, summary = ConfigDict(stored["config"]), stored["summary"]
        if not isinstance(config.model.variant, str):
            raise TypeError("config.model.variant is no text")
        config.data.name, config.optim.lr, int(summary["step"])
        if config.get("objective", "classification") == "classification":
            accuracy_of(summary)
        if "data" in stored:
            Fingerprint(**stored["data"])
            [(x["split"], x["images"], x["ids"]) for x in stored["data"]["splits"].values()]
    except (LookupError, AttributeError, TypeError, ValueError, IsADirectoryError) as error:
        raise ValueError(
            f"{printable(path)} is damaged: remove it, and the run is evaluated again from its "
            f"checkpoint."
        ) from error
    return stored


def _micro_batches_of(workdir: epath.Path, batch_size: int) -> int | None:
    """Returns a run's `accumulate_steps`; None if it is unknown or doesn't divide the batch."""
    try:
        steps = read_config(workdir).get("accumulate_steps") or 1
    except FileNotFoundError:  # its checkpoints were removed
        return None
    return steps if batch_size % (jax.device_count() * steps) == 0 else None


def accuracy_of(summary: Mapping[str, Any]) -> float:
    """Returns the test accuracy of a run; if its images have several labels, its precision at 1."""
    precision = "test_precision_at_1"
    return float(summary[precision if precision in summary else "test_accuracy"])


def find_test_split(config: ConfigDict) -> tuple[str, int]:
    """Returns the split that a run is tested on, and the number of its images."""
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    split, source = sources.open_source(dataset, "test", config.data.test)
    return split, len(source)


def write_tables(
    path: epath.Path, rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]
) -> None:
    """Writes a CSV file and, beside it, a Markdown table, which is logged; both or neither.

    Args:
      path: where the CSV file goes.
      rows: the rows of the CSV file.
      shown: the rows of the Markdown table.
    """
    if jax.process_index() != 0:
        return
    lines = [shown[0], ["---"] * len(shown[0]), *(row.values() for row in shown)]
    text = "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)
    with replacing(path.with_suffix(".md")) as partial:
        partial.write_bytes(text.encode())
        write_csv(path, [rows[0], *(row.values() for row in rows)])
    logger.info("%s\n%s", printable(path), text)


def _cell(value: Any) -> str:
    """Returns a value as the cell of a Markdown table shows it."""
    return html.escape(printable(value), quote=False).replace("|", "\\|")
