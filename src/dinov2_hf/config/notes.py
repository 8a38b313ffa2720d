"""What a user has to know of a configuration that is accepted, as lines of the log."""

from __future__ import annotations

import logging
import os
from functools import cache

logger = logging.getLogger(__name__)


@cache
def say(level: int, line: str) -> None:
    """Logs a line, once in a process and only on the main one."""
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, "%s", line)
