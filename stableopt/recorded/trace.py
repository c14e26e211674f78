"""A series of any length in bounded memory that keeps its extremes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Neighbouring points of a series as one.

    Attributes:
        start: Where the first of them is.
        end: Where the last of them is.
        first: The first finite value; NaN if there is none.
        last: The last finite value; NaN if there is none.
        low: The lowest finite value; infinite if there is none.
        high: The highest finite value; minus infinite if there is none.
        total: The sum of the finite values.
        count: How many points.
        undefined: How many of them are NaN.
        infinite: How many of them are infinite.
    """

    start: float
    end: float
    first: float = math.nan
    last: float = math.nan
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    count: int = 0
    undefined: int = 0
    infinite: int = 0

    def add(self, x: float, value: float) -> None:
        """Add a point."""
        self.end = x
        self.count += 1
        if value - value != 0.0:  # NaN or infinite
            if value != value:
                self.undefined += 1
            else:
                self.infinite += 1
            return
        if self.low == math.inf:
            self.first = value
        self.last = value
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    def absorb(self, other: Bucket) -> None:
        """Add the bucket that follows."""
        if other.finite:
            if not self.finite:
                self.first = other.first
            self.last = other.last
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.end = other.end
        self.total += other.total
        self.count += other.count
        self.undefined += other.undefined
        self.infinite += other.infinite

    @property
    def mean(self) -> float:
        """Of the finite values; where their sum overflows, the last one."""
        finite = self.count - self.undefined - self.infinite
        mean = self.total / finite if finite else math.nan
        return min(self.high, max(self.low, mean)) if math.isfinite(mean) else self.last

    @property
    def finite(self) -> bool:
        """Whether any of the values is."""
        return self.low != math.inf


class Trace:
    """Points in the order they came, merged two by two whenever they become too many.

    Lowest and highest values and what is not finite are never lost; where between two
    neighbours they lie is.

    Args:
        capacity: Buckets at most; even.

    Attributes:
        buckets: The points, neighbours together.
        count: How many points there are.
        first: The first value; ``None`` if there is none.
        last: The last value; ``None`` if there is none.

    Cost:
        O(1) per point, O(capacity) memory.

    Example:
        >>> trace = Trace(capacity=4)
        >>> for x in range(100):
        ...     trace.add(x, -1.0 if x == 37 else float(x))
        >>> len(trace.buckets) <= 4, trace.low, trace.high, trace.count
        (True, -1.0, 99.0, 100)
    """

    __slots__ = ("_capacity", "_newest", "_width", "buckets", "count", "first", "last")

    def __init__(self, capacity: int = 800) -> None:
        self._capacity = capacity
        self._width = 1
        self.buckets: list[Bucket] = []
        self._newest = Bucket(0.0, 0.0, count=1)  # one that is full
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None

    def add(self, x: float, value: float) -> None:
        """Append a point."""
        if self.count == 0:
            self.first = value
        self.count += 1
        self.last = value
        if self._newest.count >= self._width:
            if len(self.buckets) >= self._capacity:
                self._halve()
            self._newest = Bucket(x, x)
            self.buckets.append(self._newest)
        self._newest.add(x, value)

    def _halve(self) -> None:
        for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=True):
            left.absorb(right)
        del self.buckets[1::2]
        self._width *= 2

    def __bool__(self) -> bool:
        return bool(self.buckets)

    @property
    def merged(self) -> int:
        """How many points one bucket stands for, at most; 1 if nothing was merged."""
        return self._width

    @property
    def low(self) -> float | None:
        """The lowest finite value; ``None`` if there is none."""
        return min((b.low for b in self.finite()), default=None)

    @property
    def high(self) -> float | None:
        """The highest finite value; ``None`` if there is none."""
        return max((b.high for b in self.finite()), default=None)

    @property
    def nonfinite(self) -> int:
        """How many values are NaN or infinite."""
        return sum(b.undefined + b.infinite for b in self.buckets)

    def finite(self) -> Iterator[Bucket]:
        """Yield the buckets that have a finite value."""
        return (bucket for bucket in self.buckets if bucket.finite)


class Readings(Trace):
    """What a sensor read from one weight, rollbacks included.

    Args:
        capacity: As in :class:`Trace`.
    """

    __slots__ = ("_recent",)

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def read(self, call: int, step: int, value: float) -> None:
        """Append a reading.

        Args:
            call: Of ``step()`` at which it was recorded.
            step: Steps taken so far when it was read.
            value: What was read.
        """
        self.add(call, value)
        self._recent.append((step, value))

    def roll_back(self, step: int) -> None:
        """Forget what was read from updates that were undone; the series keeps it."""
        while self._recent and self._recent[-1][0] > step:
            self._recent.pop()

    @property
    def newest(self) -> float | None:
        """The newest reading of the weight as it is; ``None`` if that is not known."""
        return self._recent[-1][1] if self._recent else None


_RECENT = 8
"""Newest readings that are kept for a rollback."""
