"""Numbers, names, sizes and times as text for messages, terminals and pages."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB")


def spell(value: float | None, digits: int = 4) -> str:
    """Return a number in ``digits`` digits, and a dash for ``None``.

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


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, and how many more there are.

    Example:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
        ('a, b', 'a, b, c and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size(count_of_bytes: float) -> str:
    """Return bytes in the unit that keeps the number short.

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
    """Return a time of day in UTC.

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
    r"""Return ``text`` with escapes for characters that could control a terminal or a page.

    Example:
        >>> printable("fc.weight\x1b[2J")
        'fc.weight\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``h.10`` after ``h.2``.

    Example:
        >>> sorted(["h.10.weight", "h.2.weight"], key=natural)
        ['h.2.weight', 'h.10.weight']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part[:18]), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)]
