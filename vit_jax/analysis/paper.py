"""The plan of the paper: what each of its pre-trainings needs and takes, on three kinds of devices.

A program is compiled for every model, data set and topology. It is the same for any number of
epochs. What the compiler says is kept as a row of a CSV file, so no program is compiled twice.
"""

from __future__ import annotations

import csv
import os
import pathlib
import runpy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vit_jax.analysis.hardware import CHIPS, GIB
from vit_jax.analysis.planning import KNOWN, plan
from vit_jax.common.files import local_path, write_csv
from vit_jax.common.repository import REPOSITORY
from vit_jax.config.keys import with_changes
from vit_jax.models.flops import TABLE_6, training_exaflops
from vit_jax.models.variants import has_encoder

KEPT = pathlib.Path(__file__).with_name("paper_plan.csv")  # what docs/paper_plan.md shows
# The paper's TPUs, and what many have today. The short name is that of a column. Chips, but of
# TPU v3, whose devices are cores: the paper counts core-days.
TOPOLOGIES = {"v3:4x4": "v3 core", "v5e:4x4": "v5e chip", "h100:8": "H100"}
# Share of the peak that training is taken to reach. The paper's three counts of core-days are 32,
# 39 and 43 % of a TPU v3's.
UTILIZATION = 0.4
# Paper table 2: TPUv3-core-days, by (variant, data, epochs). It names no epochs. Those of L/16 are
# the longest of tables 3 and 6: with the shorter ones, 22 and 13 % of the peak were reached.
TABLE_2 = {
    ("H/14", "jft_300m", 14): 2500,
    ("L/16", "jft_300m", 14): 680,
    ("L/16", "imagenet21k", 90): 230,
}
_VITS = ("B/32", "B/16", "L/32", "L/16")  # those of table 3 whose data are ImageNet, see table 5
COLUMNS = (
    "variant",
    "data",
    "topology",
    "device",
    "chips",
    "jax",
    "parallel",
    "accumulate_steps",
    "parameters",
    "flops_per_image",
    "compiled_flops_ratio",
    "total_bytes",
    "memory_bytes",
    "images_per_second",
    "bound_by",
    "compile_seconds",
)


class Training(NamedTuple):
    """A pre-training of the paper.

    Attributes:
      variant: a key of `models.VARIANTS`.
      data: a key of `planning.KNOWN`.
      epochs: passes over the data.
    """

    variant: str
    data: str
    epochs: int

    @property
    def tables(self) -> str:
        """The paper's tables that have it, such as "2, 3, 6"."""
        in_table = {
            2: self in TABLE_2,
            3: self.variant != "R200x3",
            6: self.data == "jft_300m",
        }
        return ", ".join(str(number) for number, here in in_table.items() if here)


def trainings() -> list[Training]:
    """Returns the pre-trainings of the paper's tables 2, 3 and 6."""
    found = [Training(variant, "jft_300m", epochs) for variant, epochs in TABLE_6]
    found += [Training(variant, "imagenet21k", 90) for variant in _VITS]
    found += [Training(variant, "imagenet21k", 30) for variant in _VITS if variant[0] == "L"]
    return found + [Training(variant, "imagenet2012", 300) for variant in _VITS]


def recipe(variant: str, data: str, topology: str) -> ConfigDict:
    """Returns the configuration to compile: the paper's recipe, in bfloat16.

    Encoders are one loop over their blocks, which compiles in a fraction of the time. The state is
    sharded where parameters, their gradients and Adam's two moments, 16 bytes a parameter, would
    take more than half of a TPU's 16 GiB.

    Args:
      variant, data: see `Training`.
      topology: see `hardware.find_topology`.
    """
    get_config = runpy.run_path(str(REPOSITORY / "configs" / "pretrain.py"))["get_config"]
    in_table_3 = "R152x2" if variant == "R200x3" else variant  # which table 6 alone has
    config = get_config(f"{in_table_3},{data}")
    config.model.variant, config.dtype = variant, "bfloat16"
    if has_encoder(variant):
        config.model.scan = True
    if variant in ("H/14", "R200x3") and not topology.startswith("h100"):
        config.parallel = "sharded"
    return config


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Returns the rows of a file that `compile_programs` wrote; [] if there is none.

    Raises:
      ValueError: the file is something else, or the path isn't one of this machine.
    """
    path = local_path(path)
    if not path.exists():
        return []
    lines: list[list[str]] = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error):
        pass
    if lines[:1] != [list(COLUMNS)] or any(len(line) != len(COLUMNS) for line in lines):
        raise ValueError(
            f"--paper={path}: the file isn't a plan of the paper, or its end is missing. Give the "
            f"name of a new file, or of one that this command wrote."
        )
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]


def compile_programs(
    path: str | os.PathLike[str],
    programs: Iterable[tuple[str, str, str]],
    log: Callable[[str], None],
    get_config: Callable[[str, str, str], ConfigDict] = recipe,
) -> None:
    """Compiles the programs that a file lacks, and writes each result at once.

    Args:
      path: of a CSV file with the columns `COLUMNS`; it may not exist yet.
      programs: (variant, data, topology) of each.
      log: is called with a line before each compilation, and about a topology that can't be
        compiled for here, which is left out.
      get_config: returns the configuration of a program.

    Raises:
      ValueError: see `read_rows`.
    """
    rows: list[dict[str, Any]] = list(read_rows(path))
    done = {(row["variant"], row["data"], row["topology"]) for row in rows}
    left_out: set[str] = set()

    def write() -> None:
        write_csv(path, [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])

    write()  # a file that can't be written is refused before anything is compiled
    for variant, data, topology in programs:
        if (variant, data, topology) in done or topology in left_out:
            continue
        config = get_config(variant, data, topology)
        try:
            report = _plan_that_fits(config, topology, data, log)
        except ImportError as error:
            log(f"Left out: {error}")
            left_out.add(topology)
            continue
        rows.append({**report, "data": data, "jax": jax.__version__})
        write()


def _plan_that_fits(
    config: ConfigDict, topology: str, data: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the report of a step, in twice the micro-batches while it doesn't fit."""
    images, classes = KNOWN[data]
    while True:
        report = plan(config, topology, num_classes=classes, images=images, log=log)
        steps = 2 * report["accumulate_steps"]
        if report["fits"] or steps * report["chips"] > config.batch_size:
            return report
        config = with_changes(config, {"accumulate_steps": steps})


def programs(topologies: Sequence[str] = tuple(TOPOLOGIES)) -> Iterator[tuple[str, str, str]]:
    """Yields (variant, data, topology) of each program: those of table 2 first."""
    ordered = sorted(trainings(), key=lambda training: training not in TABLE_2)
    for variant, data in dict.fromkeys(training[:2] for training in ordered):
        for topology in topologies:
            yield variant, data, topology


def format_paper(rows: Sequence[dict[str, str]]) -> list[str]:
    """Returns the plan as the lines of a Markdown table, a row for each pre-training.

    Days are those of one device: at `UTILIZATION` of its peak or, if that is longer, by the
    roofline of the compiled step, which stands in brackets. Memory is that of a device, in so many
    micro-batches. "–" is what no row says.

    Args:
      rows: what `read_rows` returns.
    """
    found = {(row["variant"], row["data"], row["topology"]): row for row in rows}
    names = [*TOPOLOGIES.values()]
    header = ["model", "data", "epochs", "tables", "parameters", "exaFLOPs", "table 6"]
    header += [f"GiB a {name}" for name in names] + [f"{name}-days" for name in names]
    lines = [[*header, "table 2"]]
    for training in trainings():
        by_topology = [found.get((*training[:2], topology)) for topology in TOPOLOGIES]
        compiled = next(filter(None, by_topology), None)
        if compiled is None:
            continue
        images = training.epochs * KNOWN[training.data][0]
        exaflops = training_exaflops(float(compiled["flops_per_image"]) / 3, images)
        memory = [_memory(row) for row in by_topology]
        days = [_days(row, exaflops, images) for row in by_topology]
        on_jft = training.data == "jft_300m"
        line = [training.variant, training.data, str(training.epochs), training.tables]
        line += [f"{int(compiled['parameters']):,}", f"{exaflops:,.0f}"]
        line += [str(TABLE_6[training.variant, training.epochs]) if on_jft else ""]
        lines.append([*line, *memory, *days, str(TABLE_2.get(training, ""))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    cells = ([x.ljust(w) for x, w in zip(line, widths, strict=True)] for line in lines)
    return [f"| {' | '.join(line)} |" for line in cells]


def device_days(exaflops: float, device: str, utilization: float = UTILIZATION) -> float:
    """Returns the days that one device computes.

    Args:
      exaflops: 1e18 operations.
      device: a key of `hardware.CHIPS`.
      utilization: share of the device's peak that is reached.
    """
    return exaflops * 1e18 / (utilization * CHIPS[device].peak_flops) / 86400


def _days(row: dict[str, str] | None, exaflops: float, images: float) -> str:
    """Returns the days that one device of a row takes, by estimate and at best."""
    if row is None:
        return "–"
    estimated = device_days(exaflops, row["device"])
    if not row["images_per_second"]:
        return f"{estimated:,.0f}"
    best = images / float(row["images_per_second"]) * int(row["chips"]) / 86400
    return f"{max(estimated, best):,.0f} ({best:,.0f})"


def _memory(row: dict[str, str] | None) -> str:
    """Returns the memory of a row's step in GiB, and in how many micro-batches it is computed."""
    if row is None:
        return "–"
    total, memory = (float(row[f"{x}_bytes"]) / GIB for x in ("total", "memory"))
    return f"{total:.1f} in {row['accumulate_steps']}{'' if total <= memory else ', too much'}"
