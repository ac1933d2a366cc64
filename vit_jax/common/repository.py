"""Files of the repository that are not code: configurations, and what is in `checkpoints/`."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable

logger = logging.getLogger(__name__)

_PACKAGE = pathlib.Path(__file__).parents[1]
_IN_WHEEL = _PACKAGE / "repository"  # where setup.py puts copies of them
IS_CLONE = not _IN_WHEEL.is_dir()
REPOSITORY = _PACKAGE.parent if IS_CLONE else _IN_WHEEL


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
