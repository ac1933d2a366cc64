"""Keys of a configuration: their types, names close to a wrong one, and values that several rooms derive."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config.defaults import default


def model_attributes(config: ConfigDict) -> dict:
    """Returns what `config.model` sets besides the variant, as `models.build` takes it."""
    return {k: v for k, v in config.model.items() if k != "variant" and v is not None}


def run_config(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the configuration of one of `compare.runs`, for `job="train"`.

    Raises:
      KeyError, TypeError: it changes keys that there are not, or to another type; says which.
    """
    resolved = config.copy_and_resolve_references()
    single = default()
    single.update({key: value for key, value in resolved.items() if key != "compare"})
    single.update(resolved.compare.runs[name])
    single.job = "train"
    return single


def overlap(a: str, b: str) -> bool:
    """Tells whether two keys are the same, or one is a section that the other is in."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def what_fits(key: str) -> str:
    """Returns what the values of a key are, such as "a finite number".

    Args:
      key: of `default`, in full.
    """
    section, _, name = key.rpartition(".")
    known = default()[section] if section else default()
    return "".join(type_of(key, known[name], known.get_type(name))[1:])


def type_of(key: str, usual: Any, kind: type) -> tuple[Callable[[Any], bool], str, str]:
    """Returns whether a value is of a key's type, what that is called, and an example, or ""."""
    if kind is not tuple:
        return *_TYPES[kind], ""
    whole = key not in ("sweep.lr", "compare.epochs")
    fits, rule = (_wholes, "whole numbers (of 32 bits)") if whole else (_numbers, "finite numbers")
    return fits, rule, f", such as {usual or (3, 4)}"


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and -(2**31) <= x < 2**31


def _number(x: Any) -> bool:
    real = isinstance(x, int | float) and not isinstance(x, bool)
    return real and abs(x) <= sys.float_info.max  # NaN isn't


def _wholes(x: Any) -> bool:  # a hundred at most: each stage of a ResNet doubles the stride
    return isinstance(x, tuple | list) and len(x) <= 100 and all(map(_whole, x))


def _numbers(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) <= 100 and all(map(_number, x))


def _sides(x: Any) -> bool:
    sides = [x, x] if _whole(x) else x
    return _wholes(sides) and len(sides) == 2 and min(sides) > 0


# Whether a value is of a key's type, and what that is called; `type_of` has tuples.
_TYPES = {
    bool: (lambda x: isinstance(x, bool), "True or False"),
    int: (_whole, "a whole number (of 32 bits)"),
    float: (_number, "a finite number"),
    str: (lambda x: isinstance(x, str), "text"),
    object: (_sides, "pixels: one side or (height, width)"),  # data.image_size
    ConfigDict: (lambda x: isinstance(x, ConfigDict), "a section, a ConfigDict"),
}


def shown(value: Any) -> str:
    """Returns a value as it is written, cut where that is long."""
    try:
        text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    except Exception:  # such as a number with more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:100]}…"


def get(config: Any, key: str, usual: Any) -> Any:
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return usual
        config = config[part]
    return config


def all_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields all keys in full, sections among them."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, ConfigDict) and name != "compare.runs":
            yield from all_keys(value, f"{name}.")


def no_such_key(key: str) -> str:
    """Returns "there is no key optim.lrr; did you mean optim.lr?", or "" for a key of `default`.

    Args:
      key: in full, such as "optim.lrr".
    """
    known = list(all_keys(default()))
    if key in known:
        return ""
    section, _, name = key.rpartition(".")
    here = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    shallow_last = sorted(known, key=lambda k: (k.count("."), k), reverse=True)
    elsewhere = {k.rpartition(".")[2]: k for k in shallow_last}
    for wanted, names, likeness in (
        (name, elsewhere, 1.0),
        (name, here, 0.6),
        (name, elsewhere, 0.7),
        (key, {k: k for k in known}, 0.8),
    ):
        if close := difflib.get_close_matches(wanted, names, n=1, cutoff=likeness):
            return f"there is no key {key}; did you mean {names[close[0]]}?"
    return f"there is no key {key}."


def one_of(known: tuple[str, ...], value: str) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return " or ".join(map(repr, known)) + (f" (did you mean {close[0]!r}?)" if close else "")


def image_shape(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) in pixels for a `config.data.image_size`: a side, or both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width
