"""What studies of several runs share: a run is trained once, and results become tables.

Each run has its own folder. There it goes on if it was stopped, and leaves its result in
summary.json. A study that is started again trains nothing twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from vit_jax.common.files import replacing, write_csv
from vit_jax.data import sources
from vit_jax.jobs.signals import Interrupted
from vit_jax.jobs.train import train

logger = logging.getLogger(__name__)


def train_once(
    config: ConfigDict, workdir: epath.Path, checked: set[str] | None = None
) -> dict[str, Any]:
    """Returns the summary of a run, which is trained unless an earlier call has done so.

    Args:
      config: the run's configuration, with `job="train"`.
      workdir: the run's folder; gets summary.json, too.
      checked: `config.data` of earlier runs, as JSON. Their images are not decoded once more before
        training. The run's own is added.

    Raises:
      ValueError: the folder holds the result of another configuration; or as `train`.
      Interrupted: a signal came. If the run was complete all the same, its result is written.
    """
    path = workdir / "summary.json"
    wanted = config.to_json(sort_keys=True)
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["config"] != json.loads(wanted):
            raise ValueError(
                f"{workdir} holds the result of another configuration. Take a new workdir, or "
                f"remove this folder to train again."
            )
        return stored["summary"]
    logger.info("run %s", workdir)
    checked = set() if checked is None else checked
    images = config.data.to_json(sort_keys=True)
    run = config.copy_and_resolve_references()
    run.data.check = config.data.check and images not in checked
    number = None
    try:
        summary = train(run, workdir)
    except Interrupted as error:
        if error.summary is None:
            raise
        summary, number = error.summary, error.number
    checked.add(images)
    if jax.process_index() == 0:
        with replacing(path) as partial:
            partial.write_text(json.dumps({"config": json.loads(wanted), "summary": summary}))
    if number is not None:
        raise Interrupted(number)
    return summary


def find_test_split(config: ConfigDict) -> tuple[str, int]:
    """Returns the split that a run is tested on, and the number of its images."""
    dataset = sources.open_dataset(config.data.name, config.data.dir)
    split, source = sources.open_source(dataset, "test", config.data.test)
    return split, len(source)


def write_tables(
    path: epath.Path, rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]
) -> None:
    """Writes a CSV file and, beside it, a Markdown table, which is logged.

    Args:
      path: where the CSV file goes.
      rows: the rows of the CSV file.
      shown: the rows of the Markdown table.
    """
    if jax.process_index() != 0:
        return
    write_csv(path, [rows[0], *(row.values() for row in rows)])
    lines = [shown[0], ["---"] * len(shown[0]), *(row.values() for row in shown)]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    path.with_suffix(".md").write_text(text)
    logger.info("%s\n%s", path, text)
