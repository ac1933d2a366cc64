"""Reads and writes the results of the parts: one JSON file each."""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import machine


class Result:
    """What a part has found so far; it is written after every row, so that a stop loses nothing.

    Args:
      out: the folder of results.
      part: the part's name, which the file gets.
    """

    def __init__(self, out: str, part: str):
        self._path = pathlib.Path(out, f"{part}.json")
        self._begin = time.monotonic()
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Adds a row to a table, prints it, and writes the file."""
        self._tables.setdefault(table, []).append(row)
        print(f"{table}: {row}", flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.monotonic() - self._begin, 1)
        text = json.dumps(_finite({"seconds": seconds, "tables": self._tables}), indent=1)
        self._path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """Returns a value with None for NaN and infinity, which JSON doesn't have."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_tables(out: str, part: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the tables of a part, {} if it has written none."""
    path = pathlib.Path(out, f"{part}.json")
    return json.loads(path.read_text(encoding="utf-8"))["tables"] if path.exists() else {}


def markdown(out: str, parts: Sequence[str]) -> str:
    """Returns the tables of all parts in Markdown."""
    lines = []
    for part in parts:
        for title, rows in read_tables(out, part).items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            lines += [f"### {title}", ""]
            lines += machine.table({name: row.get(name) for name in columns} for row in rows)
            lines.append("")
    return "\n".join(lines)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the arguments of every part."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", default="runs/gpu", help="folder for the results")
    made.add_argument("--seconds", type=float, default=200, help="that the part may take")
    made.add_argument("--smoke", action="store_true", help="tiny sizes, for a CPU")
    return made
