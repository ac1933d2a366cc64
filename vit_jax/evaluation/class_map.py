"""A CSV file that says which class of a model each class of a data set is."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from vit_jax.common.class_tables import read_class_table
from vit_jax.common.files import local_path
from vit_jax.common.messages import closest
from vit_jax.common.names import class_name
from vit_jax.config.keys import is_folder

CLASS_MAP = "class_map.csv"  # in the folder of a data set


def find_class_map(data: str, class_map: str | None) -> pathlib.Path | None:
    """Returns the path of the file that pairs the classes of a data set, None if there is none.

    Args:
      data: the `data.name` of the data set. A folder may hold a `class_map.csv`.
      class_map: the path of another file, which is taken instead. None if there is none.
    """
    if class_map is not None:
        return local_path(class_map)
    beside = local_path(data) / CLASS_MAP if is_folder(data) else None
    return beside if beside is not None and beside.exists() else None


def read_class_map(
    path: pathlib.Path, class_names: Sequence[str], known: Sequence[str], num_classes: int
) -> tuple[int, ...]:
    """Returns the logit of each class of a data set, as a CSV file gives them.

    Args:
      path: the file. Its column class has the names of all the data's classes, and model_class the
        name of a class of the model, or the number of a logit.
      class_names: the names of the data's classes, by label.
      known: names of the model's classes; () if it has none.
      num_classes: number of the model's logits.

    Raises:
      ValueError: the file can't be read, or a row is missing, unknown or there twice; names it.
      FileNotFoundError: there is no such file.
    """
    return read_class_table(
        path,
        class_names,
        key="data.class_map",
        column="model_class",
        convert=lambda text: _logit_of(text, known, num_classes),
    )


def _logit_of(text: str, known: Sequence[str], num_classes: int) -> int:
    """Returns the logit that a class map names: by the name of its class, or by its number."""
    named = [i for i, name in enumerate(known) if class_name(name) == class_name(text)]
    if len(named) == 1:
        return named[0]
    if named:
        numbers = " and ".join(map(str, named))
        raise ValueError(f"the logits {numbers} are both called {text!r}: give the number")
    if text.strip().isdecimal() and int(text) < num_classes:
        return int(text)
    raise ValueError(
        f"{text!r} is neither the name of a class of the checkpoint nor the number of a "
        f"logit, 0 to {num_classes - 1}{closest(text, known)}"
    )
