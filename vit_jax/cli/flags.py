"""Command lines with `--config=FILE` and `--config.KEY=VALUE`."""

from __future__ import annotations

import difflib
import glob
import os
import re
import sys
import traceback

from absl import flags

from vit_jax.config.keys import no_such_key, what_fits


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses a command line with a configuration; returns the arguments that are no flags.

    Exits with one paragraph if a flag, a key of the configuration or its value is wrong, or if the
    configuration file doesn't exist or raises an error.
    """
    try:
        left = values(argv)
        getattr(values["config"].value, "lock", None)  # a file that can't be read raises when used
        return left
    except flags.Error as error:
        message = str(error).strip()
        if "Traceback" in message:  # the configuration file raised an error
            message = f"{message.partition(': Error')[0]}: {message.splitlines()[-1].strip()}"
        elif key := re.match(r"flag --config\.([\w.]+)=", message):
            message = f"{message.rstrip('.')}. {key[1]} must be {what_fits(key[1])}."
        sys.exit(message)
    except Exception as error:  # a configuration file can raise anything
        hidden = error.__cause__ if isinstance(error, OSError) else None
        sys.exit(_config_message(argv, hidden or error))


def _config_message(argv: list[str], error: BaseException) -> str:
    """Returns what is wrong with the configuration file of a command line, or with its keys."""
    found = re.search(r"--?config[= ]([^: ]*)", " ".join(argv))
    file = found[1] if found else ""
    if isinstance(error, OSError) and not os.path.exists(file):
        known = {*glob.glob(f"{os.path.dirname(file) or '.'}/*.py"), *glob.glob("configs/*.py")}
        close = difflib.get_close_matches(file, map(os.path.normpath, known), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        return f"There is no configuration file {file!r}{hint}"
    lines = [x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == file]
    keys = [match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]+)", arg))]
    unknown = [key for key in keys if no_such_key(key)]
    unknown = [key for key in unknown if not key.startswith("compare.runs.")] or unknown
    if unknown and not lines and not isinstance(error, SyntaxError):
        problems = "\n- ".join(map(no_such_key, unknown))
        return f"The command line can't be used:\n- {problems}"
    where = f"{file}, line {lines[-1]}" if lines else f"--config={file}"
    message = re.sub(r' Other fields present: ".*?"(?=\n|$)', "", str(error).replace("\\n", "\n"))
    return f"{where}: {type(error).__name__}: {' '.join(message.split())}"
