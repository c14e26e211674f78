"""Tests that may fail over the wrapper, because of what a wrapper is or of how it got there."""

from __future__ import annotations

from fnmatch import fnmatchcase

ARTEFACTS: dict[str, str] = {}
"""Why, by a pattern of names; what is listed here must never hide a fault of the wrapper."""


def reason_for(test: str) -> str | None:
    """Return why ``test`` may fail over the wrapper alone, or ``None`` if it may not."""
    found = (why for pattern, why in ARTEFACTS.items() if fnmatchcase(test, pattern))
    return next(found, None)
