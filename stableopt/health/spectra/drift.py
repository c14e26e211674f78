"""Does a metric leave the course that it was on? Judged against a weight's own past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
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

ROOM = 12.0
"""Median absolute deviations of the slopes that a trend may change by until the next visit."""


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
    "kappa_p10": Law(logarithm=True, sign=1, floor=0.35),
    "spectral_norm": Law(logarithm=True, sign=1, floor=0.20),
    "redundancy": Law(logarithm=True, sign=1, floor=0.40),
    "fiedler": Law(logarithm=False, sign=-1, floor=0.10),
}
"""The metrics whose course is followed."""


class Course:
    """The recent past of one metric of one weight.

    Values that were off the course never become part of it, until six in a row were: then the
    new place is learned, and what is absolute about it is left to the tiers. Visits that are
    close together are all judged, but only some become part of it: a course of a few steps
    says little about where the next one in its turn will be.

    Args:
        law: How it is judged.
        spacing: Steps that lie between two visits of a course, at least.
        visits: Steps and values that are known already.
        away: How many visits in a row were off.
    """

    def __init__(
        self, law: Law, spacing: int, visits: Sequence[tuple[int, float]] = (), away: int = 0
    ) -> None:
        self._law = law
        self._spacing = spacing
        self.visits = list(visits)
        self.away = away

    @property
    def learned(self) -> bool:
        """Whether there is enough of a past to judge by."""
        return len(self.visits) >= LEARNED

    @property
    def slopes(self) -> list[float]:
        """Change per step between every two visits."""
        return [(x - w) / max(1, t - s) for (s, w), (t, x) in pairwise(self.visits)]

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
            self._absorb(step, x)
            return None
        expected, limit = self._predict(step)
        if self._law.sign * (x - limit) <= 0:
            self.away = 0
            self._absorb(step, x)
            return None
        self.away += 1
        if self.away >= RELEARNED:
            self.visits, self.away = [(step, x)], 0
        return self._unscaled(expected), self._unscaled(limit)

    def _predict(self, step: int) -> tuple[float, float]:
        """Return where the course leads, and where the bad side of it begins."""
        slopes = self.slopes
        slope = median(slopes)
        guesses = [known + slope * (step - at) for at, known in self.visits]
        expected = median(guesses)
        spread = REACH * median(abs(guess - expected) for guess in guesses)
        turn = ROOM * median(abs(other - slope) for other in slopes)
        reach = max(spread, turn * (step - self.visits[-1][0]), self._law.floor)
        return expected, expected + self._law.sign * reach

    def _absorb(self, step: int, x: float) -> None:
        if not self.visits or step - self.visits[-1][0] >= self._spacing:
            self.visits = [*self.visits[1 - KEPT :], (step, x)]

    def _scaled(self, value: float) -> float:
        if not self._law.logarithm:
            return value
        return math.log(value) if value > 0 else math.nan

    def _unscaled(self, x: float) -> float:
        return math.exp(min(x, 700.0)) if self._law.logarithm else x


class DriftDetector:
    """Follows the course of every metric of every weight.

    A drift is a value beyond the median of what the last twelve unflagged visits predict, trend
    included, in the bad direction: by more than six robust standard deviations, more than the
    trend may have turned by since the last visit, and more than a floor. It is confirmed by a
    second one in a row. A constant never is one. A decay that is slow enough is taken for the
    trend: it meets the tiers (:mod:`stableopt.health.spectra.tiers`) instead.

    Args:
        spacing: Steps that lie between two visits of a course, at least.
    """

    def __init__(self, spacing: int) -> None:
        self._spacing = spacing
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
        course = self._courses.setdefault(name, {}).setdefault(metric, Course(law, self._spacing))
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

    def forget(self, name: str) -> None:
        """Give up the courses of a weight: it is another one now."""
        self._courses.pop(name, None)

    def learns(self, name: str, step: int) -> bool:
        """Tell whether a course of a weight that is not known yet should be visited now."""
        courses = self._courses.get(name, {}).values()
        return any(
            course.visits and not course.learned and step - course.visits[-1][0] >= self._spacing
            for course in courses
        )

    def slope(self, name: str, metric: str) -> float | None:
        """Return the change per step of a metric (of its logarithm).

        ``None`` while there are fewer than three visits.
        """
        course = self._courses.get(name, {}).get(metric)
        return median(course.slopes) if course is not None and len(course.visits) > 2 else None

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
                    self._spacing,
                    [(int(step), float(x)) for step, x in known["visits"]],
                    int(known["away"]),
                )
                for metric, known in courses.items()
                if metric in LAWS
            }
            for name, courses in state.items()
        }
