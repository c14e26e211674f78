"""Where a value lies on a plot, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stableopt.recorded.trace import Trace

_RATIO = 8.0
"""Of the largest to the smallest value from which on an axis is logarithmic."""

_USUAL = 0.98
"""Share of the buckets that an axis must hold."""

_OVER = 10.0
"""How many times as far as these a value may lie before it is left out of the frame."""

_ROOM = 0.05

_LEAST, _MOST = 1e-307, 1.7e308


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An interval of numbers.

    Attributes:
        low: Its lower end.
        high: Its upper end, above the lower one.
        logarithmic: Whether equal ratios have equal lengths.
    """

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at the lower end, 1 at the upper, never beyond.

        Example:
            >>> Axis(low=1, high=100, logarithmic=True).at(10)
            0.5
        """
        if self.logarithmic:
            if value <= 0:
                return 0.0
            low, high = math.log(self.low), math.log(self.high)
            share = (math.log(value) - low) / (high - low)
        else:
            # Halves: the length of the interval itself may overflow.
            share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return min(1.0, max(0.0, share))

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values inside, in order.

        Example:
            >>> Axis(low=0.4, high=3.2).ticks()
            [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
        """
        if self.logarithmic:
            found = _decades(self.low, self.high, most)
            if len(found) > 1:
                return found
        return _steps(self.low, self.high, most)


def span(low: float, high: float) -> Axis:
    """Return a linear axis from ``low`` to ``high``, widened where these are equal."""
    if not low < high:
        margin = abs(low) * 0.05 or 0.5
        low, high = low - margin, low + margin
    return Axis(low=low, high=high)


def fitted(trace: Trace, *, linear: bool = False) -> Axis | None:
    """Return an axis for the finite values of a series; ``None`` if there are none.

    Values so large that nothing else could be seen beside them are left outside of it.

    Args:
        trace: The series.
        linear: Whether it is never logarithmic.
    """
    highs = sorted(bucket.high for bucket in trace.finite())
    if not highs:
        return None
    low = min(bucket.low for bucket in trace.finite())
    usual = highs[min(len(highs) - 1, int(_USUAL * len(highs)))]
    positive = low > _LEAST
    most = usual * _OVER if positive else usual + _OVER * (usual - low)
    high = max((h for h in highs if h <= most), default=usual)
    if positive and not linear and high / low > _RATIO:
        room = min(high / low, _MOST) ** _ROOM
        return Axis(low=max(low / room, _LEAST), high=min(high * room, _MOST), logarithmic=True)
    room = _ROOM * (high / 2 - low / 2) * 2
    return span(low - room, high + room) if math.isfinite(room) else span(low, high)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten."""
    width = high / most - low / most
    if not width > 0 or not math.isfinite(width):
        return [low, high]
    power = 10.0 ** math.floor(math.log10(width))
    if power == 0.0 or not math.isfinite(power):
        return [low, high]
    unit = next((n * power for n in (1, 2, 2.5, 5) if n * power >= width), 10 * power)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    if last - first > 4 * most:  # the interval is too short for its distance from zero
        return [low, high]
    return [float(f"{i * unit:.12g}") for i in range(first, last + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten: fewer if there are many, with others between them if there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    count = last - first + 1
    if count > most:
        return [10.0**power for power in range(first, last + 1, -(-count // most))]
    for digits in ((1.0, 2.0, 5.0), (1.0, 3.0)):
        found = list(_between(low, high, digits, first - 1, last))
        if len(found) <= most:
            return found
    return [10.0**power for power in range(first, last + 1)]


def _between(
    low: float, high: float, digits: Sequence[float], first: int, last: int
) -> Iterator[float]:
    for power in range(first, last + 1):
        for digit in digits:
            value = digit * 10.0**power
            if low <= value <= high:
                yield float(f"{value:.6g}")
