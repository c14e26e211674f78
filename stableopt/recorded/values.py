"""Numbers as telemetry spells them, and as people read them."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNITS = ("B", "kB", "MB", "GB", "TB")


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


def spell(value: float | None, digits: int = 4) -> str:
    """Return a number in ``digits`` digits, and a dash for what is not there.

    Example:
        >>> [spell(x) for x in (2.34567, 1234567.0, 3e-5, float("nan"), -float("inf"), None)]
        ['2.346', '1.235e+06', '3e-05', 'NaN', '-Inf', '-']
    """
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.{digits}g}"


def count(number: int, what: str, plural: str = "") -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "batch", "batches"), count(1200, "step")
        ('1 batch', '1,200 steps')
    """
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def size(count_of_bytes: float) -> str:
    """Return bytes in a unit that people read.

    Example:
        >>> size(12880), size(3 * 2**30)
        ('12.9 kB', '3.22 GB')
    """
    amount, unit = float(count_of_bytes), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.3g} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units.

    Example:
        >>> duration(0.5), duration(75), duration(7300), duration(200_000)
        ('0.5 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: float) -> str:
    """Return a moment in UTC.

    Args:
        seconds: Since the epoch.

    Example:
        >>> clock(0.0)
        '1970-01-01 00:00:00 UTC'
    """
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{spell(seconds)} s after the epoch"


def printable(text: str) -> str:
    r"""Return ``text`` with escapes for what a name could do to a page or a terminal.

    Example:
        >>> printable("fc.weight\x1b[2J")
        'fc.weight\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return what sorts ``h.10`` after ``h.2``.

    Example:
        >>> sorted(["h.10.weight", "h.2.weight"], key=natural)
        ['h.2.weight', 'h.10.weight']
    """
    parts: list[tuple[int, int, str]] = []
    text = ""
    digits = ""
    for c in f"{name}\0":
        if c in "0123456789":
            digits += c
            continue
        if digits:
            parts += [(0, 0, text), (1, int(digits[:18]), "")]
            text = digits = ""
        text += c
    return (*parts, (0, 0, text))
