"""CSV files with a row for each class of a data set."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from vit_jax.common.messages import first_few
from vit_jax.common.names import class_name, printable

T = TypeVar("T")


def read_class_table(
    path: pathlib.Path,
    class_names: Sequence[str],
    *,
    key: str,
    column: str,
    convert: Callable[[str], T],
) -> tuple[T, ...]:
    """Returns what a CSV file says of each class of a data set, by label.

    Args:
      path: the file. Its column class has the names of all the data's classes.
      class_names: the names of the data's classes, by label.
      key: the configuration's key that names the file, for the message.
      column: the column that is read.
      convert: text of a cell -> value. May raise ValueError.

    Raises:
      ValueError: the file can't be read, or a row is missing, unknown, there twice or can't be
        converted; names it.
      FileNotFoundError: there is no such file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"{key}: there is no file {printable(path)}.") from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise ValueError(f"{printable(path)} isn't a CSV file in UTF-8: {error}.") from error
    if not rows or not {"class", column} <= rows[0].keys():
        raise ValueError(
            f"{printable(path)} must have the columns class and {column}, separated by a comma, "
            f"and a row for each class of the data."
        )
    values: dict[str, T] = {}
    for number, row in enumerate(rows, start=2):
        name = class_name(row["class"] or "")
        try:
            if None in row:
                raise ValueError('a name with a comma must be in quotes, as "maillot, tank suit"')
            if name in values:
                raise ValueError(f"{name!r} has a second row")
            values[name] = convert(row[column] or "")
        except ValueError as error:
            raise ValueError(f"{printable(path)}, row {number}: {error}.") from None
    names = [*map(class_name, class_names)]
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{printable(path)} lacks classes of the data: {first_few(missing, 8)}.")
    if unknown := [name for name in values if name not in names]:
        raise ValueError(
            f"{printable(path)} names classes that the data don't have: {first_few(unknown, 8)}."
        )
    return tuple(values[name] for name in names)
