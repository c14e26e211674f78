"""Metrics that leave their course, which is predicted from a weight's own past."""

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
"""Visits before values are judged."""

KEPT = 12
"""Newest visits that a course consists of."""

RELEARNED = 6
"""Visits in a row off the course after which it starts again from the new value."""

REACH = 6.0 * 1.4826
"""Six standard deviations, from the median absolute deviation."""

ROOM = 12.0
"""Median absolute deviations of the slopes by which the trend may change until the next visit."""


@dataclass(frozen=True, slots=True)
class Law:
    """How a metric is judged.

    Attributes:
        logarithm: Whether its logarithm is judged, or the metric itself.
        sign: +1 if growing is bad, -1 if falling is.
        floor: Distance from the course up to which nothing is a drift.
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

    Values off the course are not added to it. After six in a row it starts again from the new
    value: only the tiers judge absolute values. All visits are judged, but visits that are close
    together are not all added: a course of a few steps predicts too little.

    Args:
        law: How it is judged.
        spacing: Least number of steps between two visits of the course.
        visits: Steps and values so far.
        away: How many visits in a row were off the course.
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
        """Whether there are enough visits to judge the next one."""
        return len(self.visits) >= LEARNED

    @property
    def slopes(self) -> list[float]:
        """Change per step between every two visits."""
        return [(x - w) / max(1, t - s) for (s, w), (t, x) in pairwise(self.visits)]

    def judge(self, step: int, value: float) -> tuple[float, float] | None:
        """Judge a value, and add it to the course if it is on it.

        Args:
            step: Steps taken before it was read.
            value: The value.

        Returns:
            The predicted value, and the limit that ``value`` is beyond; ``None`` if it is not, if
            there are too few visits, or if it is undefined.
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
        """Return the predicted value, and the limit on its bad side."""
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

    A drift is a value off the median prediction of the last twelve unflagged visits, trend
    included, in the bad direction: by more than six robust standard deviations, more than a change
    of the trend since the last visit explains, and more than a floor. It is confirmed by a second
    one in a row. A constant is never a drift. A decay that is slow enough counts as the trend: only
    the tiers (:mod:`stableopt.health.spectra.tiers`) find it.

    Args:
        spacing: Least number of steps between two visits of a course.
    """

    def __init__(self, spacing: int) -> None:
        self._spacing = spacing
        self._courses: dict[str, dict[str, Course]] = {}

    def judge(self, name: str, metric: str, value: float, step: int) -> Drift | None:
        """Judge a reading.

        Args:
            name: Of the weight.
            metric: Its name; one without a law is never a drift.
            value: The value.
            step: Steps taken before it was read.
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
        """Drop the courses of a weight: it was replaced or corrected."""
        self._courses.pop(name, None)

    def learns(self, name: str, step: int) -> bool:
        """Return whether a weight should be visited now because one of its courses is too short."""
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
        """Load the courses of a checkpoint or a snapshot."""
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
