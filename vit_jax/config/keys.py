"""The keys of a configuration: types of values, nearest names, and what several folders derive."""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vit_jax.common.files import looks_like_path
from vit_jax.config.defaults import default

# --------------------------------------------------------------------------- types of the values


class ValueType(NamedTuple):
    """What a key can be set to, before its range is looked at.

    Attributes:
      fits: value -> True if it is of the type; takes anything, and None is not of any type.
      rule: what the values are, such as "a finite number".
      example: a text such as ", such as (3, 4)" for keys that hold several numbers, "" for others.
      optional: True if the key can be None.
    """

    fits: Callable[[Any], bool]
    rule: str
    example: str
    optional: bool


def _is_whole(x: Any) -> bool:  # of 32 bits, as JAX counts
    return isinstance(x, int) and not isinstance(x, bool) and -(2**31) <= x < 2**31


def _is_number(x: Any) -> bool:
    real = isinstance(x, int | float) and not isinstance(x, bool)
    return real and abs(x) <= sys.float_info.max  # False for NaN


def _are_all(fits: Callable[[Any], bool], x: Any) -> bool:
    # At most 100: each stage of a ResNet doubles the stride, which would grow beyond counting.
    return isinstance(x, tuple | list) and len(x) <= 100 and all(map(fits, x))


def _is_image_size(x: Any) -> bool:
    sides = [x, x] if _is_whole(x) else x
    return _are_all(_is_whole, sides) and len(sides) == 2 and min(sides) > 0


_WHOLES = (functools.partial(_are_all, _is_whole), "whole numbers (of 32 bits)")
_NUMBERS = (functools.partial(_are_all, _is_number), "finite numbers")
_TYPES: Mapping[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda x: isinstance(x, bool), "True or False"),
    int: (_is_whole, "a whole number (of 32 bits)"),
    float: (_is_number, "a finite number"),
    str: (lambda x: isinstance(x, str), "text"),
    tuple: _WHOLES,
    object: (_is_image_size, "pixels: one side or (height, width)"),  # of images and patches
    ConfigDict: (lambda x: isinstance(x, ConfigDict), "a section, a ConfigDict"),
}
_TYPES_OF_KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "sweep.lr": _NUMBERS,
    "compare.epochs": _NUMBERS,
    "loggers": (functools.partial(_are_all, lambda x: isinstance(x, str)), "names"),
    "optim.freeze": (
        lambda x: x in ("none", "encoder") if isinstance(x, str) else _is_whole(x) and x >= 0,
        "'none', 'encoder' or a number of blocks",
    ),
}
_EXAMPLES = {  # of keys whose default is none
    "data.background": (255, 255, 255),
    "loggers": ("tensorboard", "wandb"),
}


@functools.cache
def value_types() -> Mapping[str, ValueType]:
    """Returns the type of every key of `default`, sections among them, by the key in full."""
    types, config = {}, default()
    for key in all_keys(config):
        section, _, name = key.rpartition(".")
        kind = (config[section] if section else config).get_type(name)
        fits, rule = _TYPES_OF_KEYS.get(key, _TYPES[kind])
        such = _EXAMPLES.get(key) or config[key] or (3, 4)
        example = f", such as {such}" if kind is tuple else ""
        types[key] = ValueType(fits, rule, example, optional=config[key] is None)
    return types


def type_problem(key: str, value: Any) -> str:
    """Returns "optim.lr='x' must be a finite number.", or "" if the value is of the key's type.

    Args:
      key: a key of `default`, in full.
      value: anything.
    """
    fits, rule, example, optional = value_types()[key]
    if fits(value) or (optional and value is None):
        return ""
    return f"{key}={short_repr(value)} must be {rule}{example}{' or None' * optional}."


def what_fits(key: str) -> str:
    """Returns what the values of a key are, such as "a finite number".

    Args:
      key: a key of `default`, in full.
    """
    return value_types()[key].rule + value_types()[key].example


def short_repr(value: Any) -> str:
    """Returns a value as Python writes it, cut after 100 characters."""
    try:
        text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    except Exception:  # such as a number with more digits than Python writes
        text = f"<{type(value).__name__}>"
    text = text.replace("\n", "")  # of a section within a tuple
    return text if len(text) <= 100 else f"{text[:100]}…"


# --------------------------------------------------------------------------- names of the keys


def all_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields every key in full, sections among them; `compare.runs` counts as one key.

    Args:
      config: a configuration, or a section of one.
      prefix: what the section's keys start with, such as "optim.".
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, ConfigDict) and name != "compare.runs":
            yield from all_keys(value, f"{name}.")


def look_up(config: Any, key: str, otherwise: Any) -> Any:
    """Returns the value of a key in full, or `otherwise` if the configuration lacks the key."""
    for part in key.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return otherwise
        config = config[part]
    return config


def overlap(a: str, b: str) -> bool:
    """Returns True if two keys are the same, or one is a section that holds the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def no_such_key(key: str) -> str:
    """Returns "there is no key optim.lrr; did you mean optim.lr?", or "" for a key of `default`.

    Args:
      key: a key in full, such as "optim.lrr".
    """
    known = list(value_types())
    if key in known:
        return ""
    section, _, name = key.rpartition(".")
    here = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    shallow_last = sorted(known, key=lambda k: (k.count("."), k), reverse=True)
    everywhere = {k.rpartition(".")[2]: k for k in shallow_last}  # of equal names the shallowest
    for wanted, names, likeness in (
        (name, everywhere, 1.0),  # the right name in another section
        (name, here, 0.6),
        (name, everywhere, 0.7),
        (key, {k: k for k in known}, 0.8),
    ):
        if close := difflib.get_close_matches(wanted, names, n=1, cutoff=likeness):
            return f"there is no key {key}; did you mean {names[close[0]]}?"
    return f"there is no key {key}."


# --------------------------------------------------------------------------- derived values


def model_attributes(config: ConfigDict) -> dict[str, Any]:
    """Returns what `config.model` sets besides the variant, for `models.build(variant, …)`."""
    return {k: v for k, v in config.model.items() if k != "variant" and v is not None}


def image_shape(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) in pixels of a `config.data.image_size`: one side, or both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def eval_image_shape(options: ConfigDict) -> tuple[int, int]:
    """Returns (height, width) in pixels of images in evaluation.

    Args:
      options: `config.data`; early versions had no `eval_image_size`.
    """
    other = options.eval_image_size if "eval_image_size" in options else None
    return image_shape(options.image_size if other is None else other)


def is_folder(name: str) -> bool:
    """Returns True if a `config.data.name` is a path, False if it names a data set.

    A path is what starts with "/", "." or "~", whether it exists or not; any other name of a
    directory that exists, seen from the working directory; and what ends with ".parquet" or
    ".arrow".
    """
    is_table = name.lower().endswith((".parquet", ".arrow"))
    return is_table or looks_like_path(name) or os.path.isdir(name)  # False if it is too long


def comparable_name(name: str) -> str:
    """Returns a text that is equal for every spelling of a `config.data.name`'s folder.

    Names of data sets are returned as they are.
    """
    folder = os.path.expanduser(name)
    return os.path.realpath(folder) if is_folder(name) and os.path.exists(folder) else folder


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a configuration with some values changed, {"model.remat": "full"}."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def run_config(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the configuration of one of `compare.runs`, with `job="train"`.

    Raises:
      KeyError, TypeError: the run sets a key that does not exist, or one to another type.
    """
    resolved = config.copy_and_resolve_references()
    single = default()
    single.update({key: value for key, value in resolved.items() if key != "compare"})
    single.update(resolved.compare.runs[name])
    single.job = "train"
    return single
