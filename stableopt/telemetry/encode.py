"""One line of strict JSON for one record, without long strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

LONGEST_STRING = 256
"""Longer strings are redacted: telemetry holds numbers, not prompts or samples."""

_OURS = frozenset({"reason", "message"})
"""Keys of sentences that stableopt writes, which are never redacted."""


def encode(record: Mapping[str, Any], indent: int | None = None) -> str:
    """Return ``record`` as strict JSON.

    Numbers that JSON has no form for become the strings ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"``; strings of more than 256 characters are replaced by their length, except
    reasons and messages of stableopt.

    Example:
        >>> encode({"loss": float("nan"), "note": "x" * 300})
        '{"loss": "NaN", "note": "<redacted: 300 characters>"}'
    """
    return json.dumps(plain(record), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it, see :func:`encode`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else json.dumps(float(value))
    if isinstance(value, Mapping):
        return {
            _short(str(k)): _clean(v) if k in _OURS and isinstance(v, str) else plain(v)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    return _short(str(value))


def _short(text: str) -> str:
    if len(text) > LONGEST_STRING:
        return f"<redacted: {len(text)} characters>"
    return _clean(text)


def _clean(text: str) -> str:
    # A lone surrogate (an undecodable file name) would make the line unwritable.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
