"""Warnings that are logged once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, MutableSet

logger = logging.getLogger("stableopt")


def warn_once(
    logged: MutableSet[object],
    key: Hashable,
    message: str,
    *arguments: object,
    level: int = logging.WARNING,
) -> None:
    """Log a message, unless that of the same key was logged before.

    Args:
        logged: The keys of messages so far; updated.
        key: Of the message.
        message: As for :func:`logging.warning`.
        *arguments: As for :func:`logging.warning`.
        level: Of the record; a warning if not given.
    """
    if key not in logged:
        logged.add(key)
        logger.log(level, message, *arguments)
