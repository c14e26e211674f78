"""Does a metric leave the course that it was on? Judged against a weight's own past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from stableopt.types import Drift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEARNED = 8
"""Visits before a course is known."""

KEPT = 12
"""Visits that a course is made of."""

RELEARNED = 6
"""Visits away from the course after which the new place is learned."""

REACH = 6.0 * 1.4826
"""Six standard deviations, from the median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Law:
    """How a metric is judged.

    Attributes:
        logarithm: Whether its logarithm is, or the metric itself.
        sign: +1 if growing is bad, -1 if falling is.
        floor: Distance from the course that is no drift, however quiet the course was.
    """

    logarithm: bool
    sign: float
    floor: float


LAWS: Mapping[str, Law] = {
    "effective_rank": Law(logarithm=True, sign=-1, floor=0.10),
    "kappa_p10": Law(logarithm=True, sign=1, floor=0.25),
    "spectral_norm": Law(logarithm=True, sign=1, floor=0.15),
    "fiedler": Law(logarithm=False, sign=-1, floor=0.08),
}
"""The metrics whose course is followed."""


class Course:
    """The recent past of one metric of one weight.

    Values that were off the course never become part of it, until six in a row were: then the
    new place is learned, and what is absolute about it is left to the tiers.

    Args:
        law: How it is judged.
        visits: Steps and values that are known already.
        away: How many visits in a row were off.
    """

    def __init__(self, law: Law, visits: Sequence[tuple[int, float]] = (), away: int = 0) -> None:
        self._law = law
        self.visits = list(visits)
        self.away = away

    @property
    def learned(self) -> bool:
        """Whether there is enough of a past to judge by."""
        return len(self.visits) >= LEARNED

    @property
    def slope(self) -> float:
        """Change per step: the median of those between two visits."""
        pairs = zip(self.visits, self.visits[1:], strict=False)
        changes = [(x - w) / max(1, t - s) for (s, w), (t, x) in pairs]
        return median(changes) if changes else 0.0

    def judge(self, step: int, value: float) -> tuple[float, float] | None:
        """Judge a value, and learn it if there is nothing against it.

        Args:
            step: When it was read.
            value: What was read.

        Returns:
            What was expected, and the limit that ``value`` lies beyond; ``None`` if it does not,
            if too little is known, or if it is undefined.
        """
        x = self._scaled(value)
        if not math.isfinite(x):
            return None
        if not self.learned:
            self.visits.append((step, x))
            return None
        slope = self.slope
        guesses = [known + slope * (step - at) for at, known in self.visits]
        expected = median(guesses)
        spread = REACH * median(abs(guess - expected) for guess in guesses)
        limit = expected + self._law.sign * max(spread, self._law.floor)
        if self._law.sign * (x - limit) <= 0:
            self.away = 0
            self.visits = [*self.visits[1 - KEPT :], (step, x)]
            return None
        self.away += 1
        if self.away >= RELEARNED:
            self.visits, self.away = [(step, x)], 0
        return self._unscaled(expected), self._unscaled(limit)

    def _scaled(self, value: float) -> float:
        if not self._law.logarithm:
            return value
        return math.log(value) if value > 0 else math.nan

    def _unscaled(self, x: float) -> float:
        return math.exp(min(x, 700.0)) if self._law.logarithm else x


class DriftDetector:
    """Follows the course of every metric of every weight.

    A drift is a value beyond the median of what the last twelve unflagged visits predict, trend
    included, by more than six robust standard deviations and more than a floor, in the bad
    direction; it is confirmed by a second one in a row. A constant never is one. A decay that
    is slow enough is taken for the trend: it meets the tiers
    (:mod:`stableopt.health.tiers`) instead.
    """

    def __init__(self) -> None:
        self._courses: dict[str, dict[str, Course]] = {}

    def judge(self, name: str, metric: str, value: float, step: int) -> Drift | None:
        """Judge a reading.

        Args:
            name: Of the weight.
            metric: One that has a law is followed; others are never a drift.
            value: What was read.
            step: Updates behind the weight.
        """
        law = LAWS.get(metric)
        if law is None:
            return None
        course = self._courses.setdefault(name, {}).setdefault(metric, Course(law))
        before = course.away
        found = course.judge(step, value)
        if found is None:
            return None
        expected, limit = found
        return Drift(
            name=name,
            metric=metric,
            value=value,
            step=step,
            expected=expected,
            limit=limit,
            confirmed=before >= 1,
        )

    def learns(self, name: str) -> bool:
        """Tell whether a course of a weight has begun, and is not known yet."""
        courses = self._courses.get(name, {}).values()
        return any(course.visits and not course.learned for course in courses)

    def slope(self, name: str, metric: str) -> float:
        """Return the change per step of a metric (of its logarithm); 0 if none is known."""
        course = self._courses.get(name, {}).get(metric)
        return course.slope if course is not None and course.learned else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return all courses as plain data."""
        return {
            name: {
                metric: {"visits": [list(visit) for visit in course.visits], "away": course.away}
                for metric, course in courses.items()
            }
            for name, courses in self._courses.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the courses of a checkpoint or a snapshot."""
        self._courses = {
            str(name): {
                metric: Course(
                    LAWS[metric],
                    [(int(step), float(x)) for step, x in known["visits"]],
                    int(known["away"]),
                )
                for metric, known in courses.items()
                if metric in LAWS
            }
            for name, courses in state.items()
        }
