"""Files of the repository that are not code: configurations, and what is in `checkpoints/`."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PACKAGE = pathlib.Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "repository"  # where setup.py puts copies of them
IS_CLONE = not _IN_WHEEL.is_dir()
REPOSITORY = _PACKAGE.parent if IS_CLONE else _IN_WHEEL


def install_command(extra: str) -> str:
    """Returns the command that installs what an extra of setup.py names, such as "onnx"."""
    return f'pip install -e ".[{extra}]"' if IS_CLONE else f'pip install "vit_jax[{extra}]"'


def find_in_repository(path: str, say: Callable[[str], None] = logger.info) -> str:
    """Returns a path; if nothing is there, that of the repository's file with the same name.

    So `configs/quickstart.py` and `checkpoints/quickstart` are found in every current folder, also
    if the package was installed from a wheel.

    Args:
      path: of a file or folder. Another one than `configs/…` or `checkpoints/…` is returned as it
        is.
      say: is called with a line that names the file, if it is the repository's.
    """
    if pathlib.PurePath(path).parts[:1] not in (("configs",), ("checkpoints",)):
        return path
    found = REPOSITORY / path
    if os.path.exists(path) or not found.exists():
        return path
    say(f"There is no {path} in this folder: taking the package's own, {found}.")
    return str(found)


def find_config(path: str, say: Callable[[str], None] = logger.info) -> str:
    """Returns the path of a configuration file.

    `quickstart`, `quickstart.py`, `configs/quickstart.py` and `vit_jax/configs/quickstart.py` name
    the same file: `configs/quickstart.py` of the current folder, or else of the repository.

    Args:
      path: of a file, or such a name. It is returned as it is if it is a file's path, or if there
        is no configuration of that name.
      say: is called with a line that names the file, if it is the repository's.
    """
    name = re.fullmatch(r"(?:(?:vit_jax/)?configs/)?([^/]+?)(?:\.py)?", path)
    if os.path.isfile(path) or not name:
        return path
    named = f"configs/{name[1]}.py"
    found = find_in_repository(named, say)
    return found if os.path.isfile(found) else path
