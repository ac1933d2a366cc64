"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    iterable: Iterable[Any] | None = None, *, active: bool = True, **options: Any
) -> tqdm:
    """Returns a progress bar; none is shown where sys.stderr is None.

    Args:
      iterable: what the bar counts as it is read; None if the caller counts.
      active: False shows no bar.
      **options: those of tqdm.
    """
    stderr = sys.stderr
    in_terminal = stderr is not None and stderr.isatty()
    return tqdm(
        iterable,
        file=stderr,
        disable=not active or stderr is None,
        dynamic_ncols=True,
        mininterval=0.1 if in_terminal else 30,  # seconds: a log file stays short
        **options,
    )
