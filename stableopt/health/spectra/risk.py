"""How much a run is in danger of spectral collapse, as one of five levels.

Gradience's names, on a metric that deserves them: the effective rank of a sample of the rows,
relative to that of a Gaussian matrix of the same shape, beside the course of every metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stableopt.health.spectra.tiers import TIERS
from stableopt.types import Drift, Reading, RiskLevel, Standing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOVING = 1e-4
"""Change of the log effective rank per step from which on a weight moves: 1% in 100."""

SEVERAL = 0.1
"""Share of the weights, and at least two, whose danger is an instability of the run."""

HELD = 3
"""Assessments in a row that must be lower before the level falls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightHealth:
    """What is known about one weight.

    Attributes:
        readings: The newest reading of every metric.
        drifts: The confirmed drifts of its newest visit.
        shape: Of the matrix: another one under the same name is another weight.
    """

    readings: Mapping[str, Reading]
    drifts: tuple[Drift, ...] = ()
    shape: tuple[int, int] | None = None

    @property
    def level(self) -> RiskLevel | None:
        """``DANGER``, ``WARNING``, ``STABLE``, or ``None`` if nothing is known."""
        standings = {reading.standing for reading in self.readings.values()}
        if Standing.DANGER in standings:
            return RiskLevel.DANGER
        # However many metrics drift, they may all see the same: one direction that grows.
        if Standing.WARNING in standings or self.drifts:
            return RiskLevel.WARNING
        known = any(reading.defined for reading in self.readings.values())
        return RiskLevel.STABLE if known else None

    def complaint(self) -> str:
        """Return what is wrong, as half a sentence."""
        parts = [_tell(r) for s in _BAD for r in self.readings.values() if r.standing is s]
        parts += [
            f"{drift.metric} {drift.value:.4g} where its course predicts {drift.expected:.4g} "
            f"(limit {drift.limit:.4g})"
            for drift in self.drifts
        ]
        return ", ".join(parts)


_BAD = (Standing.DANGER, Standing.WARNING)


def _tell(reading: Reading) -> str:
    if is_broken(reading):
        return "it is not finite"
    if not reading.defined:
        return f"{reading.metric} does not exist any more"
    limit = TIERS[reading.metric].passed(reading.standing)
    return f"{reading.metric} {reading.value:.3g} {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The level of a run, and why.

    Attributes:
        level: Of the run.
        where: Names of the weights concerned, worst first.
        reason: What is wrong with the first of them; empty below ``WARNING``.
    """

    level: RiskLevel
    where: tuple[str, ...] = ()
    reason: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"level": self.level.value, "where": list(self.where), "reason": self.reason}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Assessment:
        """Return what :meth:`state_dict` was made from."""
        where = tuple(str(name) for name in state["where"])
        return cls(level=RiskLevel(state["level"]), where=where, reason=str(state["reason"]))


class RiskJudge(Protocol):
    """Turns what is known about the weights into a level."""

    def assess(self, step: int, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        """Assess the run, after some weights were visited; ``None`` if nothing is known.

        Args:
            step: Updates behind the weights that were visited last.
            weights: What is known about every weight.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""


class Courses(Protocol):
    """Who follows how metrics of weights change."""

    def slope(self, name: str, metric: str) -> float | None:
        """Return the change of the logarithm per step; ``None`` while it is not known."""
        ...


class SpectralRisk:
    """Reads the level from tiers and drifts.

    - ``STABLE``: every weight is in its healthy range and on its course.
    - ``LEARNING``: so it is, and the effective rank of half of them changes by more than 1% in
      100 steps, or has been read too few times to tell.
    - ``WARNING``: a weight reads beyond a warning limit, or has a confirmed drift.
    - ``DANGER``: a weight reads beyond a danger limit.
    - ``INSTABILITY``: two weights or more, and a tenth of all, are in danger; or one is not
      finite any more.

    What existed and does not any more (the rank of a weight that has become zero) is beyond its
    limit. What never did says nothing.

    The level rises at once, and falls when three assessments in a row were lower.

    Args:
        courses: Have the change per step of a weight's log effective rank.
    """

    def __init__(self, courses: Courses) -> None:
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
        """Tell whether half of the weights move, or are not known long enough to tell."""
        slopes = [self._courses.slope(name, "effective_rank") for name in names]
        known = sorted(math.inf if slope is None else abs(slope) for slope in slopes)
        return bool(known) and known[len(known) // 2] > MOVING

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data."""
        held = None if self._held is None else self._held.state_dict()
        return {"calm": self._calm, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
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
    """Tell whether a reading says that a weight is not finite any more.

    Only such a matrix has no spectral norm: that of zero is zero.
    """
    lost = reading.standing is Standing.DANGER and not reading.defined
    return lost and reading.metric == "spectral_norm"
