"""The usual values of one number that is observed in every step."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from stableopt.errors import finite

if TYPE_CHECKING:
    from collections.abc import Mapping


WINDOW = 96
"""Normal values that a baseline remembers."""


NEWEST = 64
"""Newest values, which a spike has to exceed by far: early losses fall fast."""


WARMUP = 32
"""Normal values before anything is judged."""


ALIKE = 3
"""Flagged values after which others that are no larger are normal data."""


MEMORY = 10_000
"""Normal values over which a flagged one is remembered; longer if others like it follow."""


_UPPER_QUARTILE = 0.6745
"""Of a standard normal distribution."""


class Baseline:
    """The recent normal values, their median and spread, and the values that were flagged.

    The spread is that of the upper quartile, because only large values are judged. Flagged values
    are never added, so that a fault cannot become the new normal unnoticed. But three that are
    equally large are no coincidence: the data have a tail (a sparse reward, a rare class, a rare
    task), and values that are no larger are normal from then on.
    """

    def __init__(self) -> None:
        self.first_median: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._flagged: deque[tuple[int, float]] = deque()
        self._count = 0

    def add(self, value: float) -> None:
        """Remember a normal value."""
        self._count += 1
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if self.first_median is None and self.ready:
            self.first_median = self.median
        while self._flagged and self._flagged[0][0] < self._count - MEMORY:
            self._flagged.popleft()

    def flag(self, value: float) -> None:
        """Remember a value that was flagged."""
        self._flagged.append((self._count, value))

    def accept(self, value: float) -> None:
        """Accept ``value`` as normal, and forget all values before it."""
        self._flagged.extend([(self._count, value)] * ALIKE)
        self._recent.clear()
        self._sorted.clear()

    def alike(self, least: float) -> int:
        """Return how many values of at least ``least`` were flagged."""
        return sum(value >= least for _, value in self._flagged)

    def renew(self) -> None:
        """Remember the flagged values for longer: there was another one like them."""
        self._flagged = deque((self._count, value) for _, value in self._flagged)

    def has(self, count: int) -> bool:
        """Return whether at least ``count`` values are remembered."""
        return len(self._recent) >= count

    @property
    def ready(self) -> bool:
        """Whether there are enough values to judge the next one."""
        return self.has(WARMUP)

    @property
    def median(self) -> float:
        """The median of the remembered values."""
        return self._sorted[len(self._sorted) // 2]

    @property
    def largest(self) -> float:
        """The largest of the newest values."""
        return max(islice(reversed(self._recent), NEWEST))

    @property
    def usual(self) -> float:
        """Of logarithms of gradient norms: the largest usual norm.

        At least the median of the first ones: a model that has learned all but rare data has almost
        no gradient, and to scale that of a rare batch to such a size would discard it.
        """
        return math.exp(
            max(self.largest, -math.inf if self.first_median is None else self.first_median)
        )

    def newest(self, count: int) -> list[float]:
        """Return the newest values, oldest first."""
        return list(self._recent)[-count:]

    def score(self, value: float, floor: float) -> float:
        """Return by how many spreads ``value`` exceeds the median.

        Args:
            value: The value.
            floor: The smallest spread, for values that hardly differ.
        """
        upper = self._sorted[(3 * len(self._sorted)) // 4]
        spread = max((upper - self.median) / _UPPER_QUARTILE, floor)
        return (value - self.median) / spread if spread > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, oldest values first."""
        return {
            "first_median": self.first_median,
            "recent": list(self._recent),
            "flagged": [list(pair) for pair in self._flagged],
            "count": self._count,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Baseline:
        """Return a baseline with a state of :meth:`state_dict`."""
        base, first = cls(), state["first_median"]
        base.first_median = None if first is None else finite(first)
        base._recent = deque(map(finite, state["recent"]))
        base._sorted = sorted(base._recent)
        flagged = state.get("flagged", ())
        base._flagged = deque((int(count), finite(value)) for count, value in flagged)
        base._count = int(state["count"])
        return base
