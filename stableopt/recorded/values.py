"""Numbers in a record, which may hold anything."""

from __future__ import annotations

import math
from typing import Any

_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number_of(value: Any) -> float | None:
    """Return a number from a record; ``None`` for what is none.

    Example:
        >>> [number_of(x) for x in (1, "Infinity", None, True, "spam")]
        [1.0, inf, None, None, None]
    """
    if type(value) is float:  # nearly all of them are
        return value
    if isinstance(value, str):
        return _SPELLED.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any length
        return math.inf if value > 0 else -math.inf


def whole_of(value: Any) -> int | None:
    """Return a count from a record; ``None`` for what is none, or larger than any count."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) < 2**63 else None


def dict_of(value: Any) -> dict[str, Any]:
    """Return a dict from a record; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """Return a list from a record; an empty one for what is none."""
    return value if isinstance(value, list) else []
