"""flags"""

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
    """Returns what is left of the command line; exits with what is wrong with it.

    That can be a flag, a key of the configuration or its value, or the configuration file: that it
    isn't there, or what it raises.
    """
    try:
        left = values(argv)
        getattr(values["config"].value, "lock", None)  # a file that can't be read raises when used
        return left
    except flags.Error as error:
        told = str(error).strip()
        if "Traceback" in told:  # of what a configuration file raised
            told = f"{told.partition(': Error')[0]}: {told.splitlines()[-1].strip()}"
        elif key := re.match(r"flag --config\.([\w.]+)=", told):
            told = f"{told.rstrip('.')}. {key[1]} must be {what_fits(key[1])}."
        sys.exit(told)
    except Exception as error:  # a configuration file can raise anything
        hidden = error.__cause__ if isinstance(error, OSError) else None
        sys.exit(_told(argv, hidden or error))


def _told(argv: list[str], error: BaseException) -> str:
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
        told = "\n- ".join(map(no_such_key, unknown))
        return f"The command line can't be used:\n- {told}"
    where = f"{file}, line {lines[-1]}" if lines else f"--config={file}"
    told = re.sub(r' Other fields present: ".*?"(?=\n|$)', "", str(error).replace("\\n", "\n"))
    return f"{where}: {type(error).__name__}: {' '.join(told.split())}"
