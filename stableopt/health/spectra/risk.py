"""The risk of spectral collapse of a run, as one of five levels.

The levels have Gradience's names, but another metric: the effective rank of a sample of the rows,
relative to that of a Gaussian matrix of the same shape, together with the course of every metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stableopt.health.spectra.tiers import TIERS
from stableopt.types import Drift, Reading, RiskLevel, Standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stableopt.health.spectra.drift import DriftDetector

MOVING = 1e-4
"""Change of the log effective rank per step above which a weight is learning: 1% in 100."""

SEVERAL = 0.1
"""Share of the weights in danger, at least two, from which the run is unstable."""

HELD = 3
"""Assessments in a row that must be lower before the level falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHealth:
    """The readings of one weight.

    Attributes:
        readings: The newest reading of every metric.
        drifts: The confirmed drifts of its newest visit.
        shape: Of the matrix; a weight of another shape under the same name has no past.
    """

    readings: Mapping[str, Reading]
    drifts: tuple[Drift, ...] = ()
    shape: tuple[int, int] | None = None

    @property
    def level(self) -> RiskLevel | None:
        """``DANGER``, ``WARNING``, ``STABLE``, or ``None`` if no reading is defined."""
        standings = {reading.standing for reading in self.readings.values()}
        if Standing.DANGER in standings:
            return RiskLevel.DANGER
        # Several drifts may have one cause, a single direction that grows: still a warning.
        if Standing.WARNING in standings or self.drifts:
            return RiskLevel.WARNING
        known = any(reading.defined for reading in self.readings.values())
        return RiskLevel.STABLE if known else None

    def complaint(self) -> str:
        """Return what is wrong, for a message."""
        parts = [_describe(r) for s in _BAD for r in self.readings.values() if r.standing is s]
        parts += [
            f"{drift.metric} {drift.value:.4g} where its course predicts {drift.expected:.4g} "
            f"(limit {drift.limit:.4g})"
            for drift in self.drifts
        ]
        return ", ".join(parts)


_BAD = (Standing.DANGER, Standing.WARNING)


def _describe(reading: Reading) -> str:
    if is_broken(reading):
        return "it is not finite"
    if not reading.defined:
        return f"{reading.metric} is not defined any more"
    limit = TIERS[reading.metric].passed(reading.standing)
    return f"{reading.metric} {reading.value:.3g} {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The level of a run, and why.

    Attributes:
        level: Of the run.
        where: Names of the weights, worst first.
        reason: What is wrong with the first of them; empty below ``WARNING``.
    """

    level: RiskLevel
    where: tuple[str, ...] = ()
    reason: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return the assessment as plain data."""
        return {"level": self.level.value, "where": list(self.where), "reason": self.reason}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Assessment:
        """Return the assessment of a state of :meth:`state_dict`."""
        where = tuple(str(name) for name in state["where"])
        return cls(level=RiskLevel(state["level"]), where=where, reason=str(state["reason"]))


class RiskJudge(Protocol):
    """Reads a level from the readings of all weights."""

    def assess(self, step: int, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        """Assess the run, after some weights were visited; ``None`` if nothing is known.

        Args:
            step: Steps taken before the last visit.
            weights: The readings of every weight.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state of :meth:`state_dict`."""


class SpectralRisk:
    """Reads the level from tiers and drifts.

    - ``STABLE``: every weight is in its healthy range and on its course.
    - ``LEARNING``: the same, but the effective rank of half of them changes by more than 1% in
      100 steps, or has too few readings.
    - ``WARNING``: a weight reads beyond a warning limit, or has a confirmed drift.
    - ``DANGER``: a weight reads beyond a danger limit.
    - ``INSTABILITY``: two weights or more, and a tenth of all, are in danger; or one is not
      finite any more.

    A metric that is not defined any more (the rank of a weight that has become zero) is beyond its
    limit. One that never was is left out.

    The level rises at once, and falls when three assessments in a row were lower.

    Args:
        courses: Has the change per step of a weight's log effective rank.
    """

    def __init__(self, courses: DriftDetector) -> None:
        self._courses = courses
        self._held: Assessment | None = None
        self._calm = 0

    def assess(self, step: int, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        """Assess the run."""
        found = self._now(weights)
        if found is None or self._held is None or found.level.rank >= self._held.level.rank:
            self._held, self._calm = found, 0
            return found
        self._calm += 1
        if self._calm >= HELD:
            self._held, self._calm = found, 0
        return self._held

    def _now(self, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        levels = {name: w.level for name, w in weights.items() if w.level is not None}
        if not levels:
            return None
        broken = [n for n in levels if any(map(is_broken, weights[n].readings.values()))]
        danger = [n for n, level in levels.items() if level is RiskLevel.DANGER]
        warned = [n for n, level in levels.items() if level is RiskLevel.WARNING]
        danger.sort(key=lambda n: n not in broken)
        several = len(danger) > 1 and len(danger) >= SEVERAL * len(levels)
        if broken or several:
            return _with_reason(RiskLevel.INSTABILITY, danger, weights)
        if danger:
            return _with_reason(RiskLevel.DANGER, danger, weights)
        if warned:
            return _with_reason(RiskLevel.WARNING, warned, weights)
        moving = self._moves([n for n in levels if _has_rank(weights[n])])
        return Assessment(level=RiskLevel.LEARNING if moving else RiskLevel.STABLE)

    def _moves(self, names: Sequence[str]) -> bool:
        """Return whether half of the weights are learning, or have too few readings."""
        slopes = [self._courses.slope(name, "effective_rank") for name in names]
        known = sorted(math.inf if slope is None else abs(slope) for slope in slopes)
        return bool(known) and known[len(known) // 2] > MOVING

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        held = None if self._held is None else self._held.state_dict()
        return {"calm": self._calm, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state of :meth:`state_dict`."""
        self._calm = int(state["calm"])
        held = state["held"]
        self._held = None if held is None else Assessment.from_state(held)


def _with_reason(
    level: RiskLevel, where: list[str], weights: Mapping[str, WeightHealth]
) -> Assessment:
    others = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
    reason = f"{where[0]}: {weights[where[0]].complaint()}{others}"
    return Assessment(level=level, where=tuple(where), reason=reason)


def _has_rank(weight: WeightHealth) -> bool:
    reading = weight.readings.get("effective_rank")
    return reading is not None and reading.defined


def is_broken(reading: Reading) -> bool:
    """Return whether a reading shows that a weight is not finite any more.

    Only the spectral norm of such a matrix is undefined: that of zero is zero.
    """
    lost = reading.standing is Standing.DANGER and not reading.defined
    return lost and reading.metric == "spectral_norm"
