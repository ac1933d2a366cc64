"""JSON of files from elsewhere: every value is checked before it is used."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any


def parse_json(path: pathlib.Path, text: str | bytes) -> dict[str, Any]:
    """Returns the object that a JSON text has.

    Args:
      path: where the text is from, for messages.
      text: the JSON.

    Raises:
      ValueError: the text is not valid JSON, or not an object.
    """
    try:
        value = json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def get_typed(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """Returns the value of a key, or `default` if there is none.

    Raises:
      ValueError: the value is not of the type of `default`.
    """
    kind = type(default)
    if not isinstance(value := values.get(key, default), kind):
        raise ValueError(f"{key} must be a {kind.__name__}, not {value!r}.")
    return value


def two_sides(key: str, value: Any) -> tuple[int, int]:
    """Returns (height, width) for a value that is one side of a square, or both sides in a list.

    Args:
      key: what the value is called, for the message.
      value: as it is in the file.

    Raises:
      ValueError: the value is something else.
    """
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} must be one or two whole numbers above 0, not {value!r}.")
    return sides[0], sides[1]


def three_numbers(key: str, value: Any) -> tuple[float, float, float]:
    """Returns the numbers for red, green and blue that a list has.

    Args:
      key: what the value is called, for the message.
      value: as it is in the file.

    Raises:
      ValueError: the value is something else.
    """
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise ValueError(f"{key} must be three numbers, for red, green and blue, not {value!r}.")
    red, green, blue = map(float, numbers)
    return red, green, blue
