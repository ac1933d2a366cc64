"""errors"""

from __future__ import annotations

import logging
import sys
from typing import Any


def log_errors_once() -> None:
    """Leaves out what threads of Orbax and TensorStore print of errors that are raised, too."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_is_news)
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # for writes after the first error
            usual(unraisable)

    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    """Tells whether nothing is raised of what Orbax logs, which is then logged in one line."""
    raised = record.exc_info and record.getMessage().startswith("[process=")  # by saving threads
    record.exc_info = None
    return not raised
