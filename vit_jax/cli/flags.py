"""Command lines with `--config=FILE` and `--config.KEY=VALUE`."""

from __future__ import annotations

import difflib
import functools
import glob
import itertools
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax.common.repository import REPOSITORY, find_config
from vit_jax.config.defaults import default
from vit_jax.config.keys import look_up, no_such_key, what_fits
from vit_jax.data.transforms import View
from vit_jax.models import attributes

SEE_KEYS = "`python -m vit_jax.main --help` lists the configurations and keys."
_ABSENT = object()  # the value of keys that have no default: those of `compare.runs`


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses a command line with a configuration; returns the arguments that are no flags.

    Exits with one paragraph if a flag, a key of the configuration or its value is wrong, or if the
    configuration file is not given, doesn't exist or raises an error.
    """
    argv = _find_configs(argv)
    try:
        left = values(argv)
        getattr(values["config"].value, "lock", None)  # a file that can't be read raises when used
        if values["config"].value is None:
            sys.exit(f"--config=FILE is needed. {SEE_KEYS}")
        _replace_lengths(values["config"])
        _forget_recipe(values["config"])
        return left
    except flags.Error as error:
        message = re.sub("^flags .*?: ", "", str(error).strip())  # a head that lists several flags
        if "Traceback" in message:  # the configuration file raised an error
            sys.exit(f"{message.partition(': Error')[0]}: {message.splitlines()[-1].strip()}")
        if key := re.match(r"flag --config\.([\w.]+)=", message):
            message = f"{message.rstrip('.')}. {key[1]} must be {what_fits(key[1])}."
        command = argv[0] if argv[0].startswith("python") else "python -m vit_jax.main"
        see = SEE_KEYS if "--config." in message else f"`{command} --help` lists the flags."
        sys.exit(f"{message}{'' if message[-1] in '.?' else '.'} {see}")
    except Exception as error:  # a configuration file can raise anything
        hidden = error.__cause__ if isinstance(error, OSError) else None
        sys.exit(_config_message(argv, hidden or error))


def _find_configs(argv: list[str]) -> list[str]:
    """Returns the command line, with paths in place of the names of configurations."""
    say = functools.partial(print, file=sys.stderr)  # logging starts later
    found = []
    for before, argument in itertools.pairwise(["", *argv]):
        match = re.fullmatch("(--?config=)?([^:]+)(.*)", argument, re.DOTALL)
        if match and (match[1] or before in ("-config", "--config")):
            argument = f"{match[1] or ''}{find_config(match[2], say)}{match[3]}"
        found.append(argument)
    return found


def _replace_lengths(flag: flags.Flag) -> None:
    """Lets a length of training on the command line take the place of the configuration file's.

    `--config.epochs=3` would not be read if the file sets `total_steps`, which no flag can unset.
    """
    config: Any = flag.value
    given = config_flags.get_override_values(flag)
    lengths: dict[str, Any] = {"total_steps": None, "epochs": None}
    if "job" in config and config.job == "compare":
        lengths["compare.epochs"] = ()
    if given.keys() & lengths:
        unset = {key: value for key, value in lengths.items() if key not in given}
        config.update_from_flattened_dict(unset)


def _forget_recipe(flag: flags.Flag) -> None:
    """Unsets what a recipe of training says of the model and of the view, to test other weights.

    `--config=configs/finetune.py:… --config.job=evaluate` shows images as the weights say, not as
    that recipe does. Keys on the command line stay, and so do those of a file with this job.
    """
    config: Any = flag.value
    given = config_flags.get_override_values(flag)
    if given.get("job") not in ("evaluate", "fewshot"):
        return
    keys = [("data", key) for key in View._fields]
    keys += [("model", key) for key in attributes.names("size", "weights", "mathematics")]
    for part, key in keys:
        if part in config and key in config[part] and f"{part}.{key}" not in given:
            config[part][key] = None


def _config_message(argv: list[str], error: BaseException) -> str:
    """Returns what is wrong with the configuration file of a command line, or with its keys."""
    found = re.search(r"--?config[= ]([^: ]*)", " ".join(argv))
    file = found[1] if found else ""
    if isinstance(error, OSError) and not os.path.exists(file):
        known = {*glob.glob(f"{os.path.dirname(file) or '.'}/*.py"), *glob.glob("configs/*.py")}
        own = list(REPOSITORY.glob("configs/*.py"))
        known |= {f"configs/{path.name}" for path in own} | {path.stem for path in own}
        close = difflib.get_close_matches(file, map(os.path.normpath, known), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        return f"There is no configuration file {file!r}{hint} {SEE_KEYS}"
    lines = [x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == file]
    keys = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]+)", arg))]
    unknown = [key for key in keys if no_such_key(key)]
    unknown = [key for key in unknown if not key.startswith("compare.runs.")] or unknown
    if unknown and not lines and not isinstance(error, SyntaxError):
        problems = "\n- ".join(map(no_such_key, unknown))
        return f"The command line can't be used:\n- {problems}\n{SEE_KEYS}"
    where = f"{file}, line {lines[-1]}" if lines else f"--config={file}"
    message = re.sub(r' Other fields present: ".*?"(?=\n|$)', "", str(error).replace("\\n", "\n"))
    return f"{where}: {type(error).__name__}: {' '.join(message.split())}"


def as_flags(config: ConfigDict, *, only_changes: bool = False) -> Iterator[str]:
    """Yields "--config.KEY=VALUE" for each key of a configuration, quoted for a shell.

    A key that is None can't be set by a flag: it follows a "# ".

    Args:
      config: any configuration.
      only_changes: leaves out the keys that have their default.
    """
    defaults = default()
    for key, value in _leaves(config):
        if only_changes and value == look_up(defaults, key, _ABSENT):
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f"{'# ' if value is None else ''}--config.{key}={shlex.quote(text)}"


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
