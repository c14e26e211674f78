"""The risk levels of Gradience, read from the slope of κ̃."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from stableopt.health.risk import Assessment
from stableopt.types import RiskLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.health.risk import WeightHealth

LEARNING, WARNING, DANGER = 0.0005, 0.002, 0.004
"""Slopes from which on a level begins, as Gradience's document gives them."""

VOLATILITY = 0.003
"""Standard deviation of the slopes from which on a run is unstable, as it gives it."""

WINDOW = 5
"""Slopes that are looked at together."""


class KappaSlope:
    """Reads the level from how fast κ̃ changes.

    The document gives limits, but no units. Here the slope is that of the mean of ln κ̃ over all
    weights, per step: 0.004 is a factor e in 250 steps. A level is read from the mean of the
    last five slopes, ``INSTABILITY`` from their standard deviation.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, float]] = []

    def assess(self, step: int, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        """Assess the run."""
        values = [w.readings["kappa_tilde"].value for w in weights.values() if _has(w)]
        finite = [math.log(value) for value in values if value > 0]
        if len(finite) < len(values):
            return Assessment(level=RiskLevel.INSTABILITY, reason="a weight's κ̃ is undefined")
        if not finite:
            return None
        self._points = [*self._points[-WINDOW:], (step, fmean(finite))]
        return self._assess()

    def _assess(self) -> Assessment | None:
        pairs = zip(self._points, self._points[1:], strict=False)
        slopes = [(y - x) / max(1, t - s) for (s, x), (t, y) in pairs]
        if len(slopes) < WINDOW:
            return None
        slope, volatility = fmean(slopes), pstdev(slopes)
        told = f"ln κ̃ changes by {slope:.2g} a step, with a standard deviation of {volatility:.2g}"
        if volatility > VOLATILITY:
            return Assessment(level=RiskLevel.INSTABILITY, reason=told)
        for limit, level in ((DANGER, RiskLevel.DANGER), (WARNING, RiskLevel.WARNING)):
            if slope > limit:
                return Assessment(level=level, reason=told)
        moving = slope > LEARNING
        return Assessment(level=RiskLevel.LEARNING if moving else RiskLevel.STABLE)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as plain data."""
        return {"points": [list(point) for point in self._points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it."""
        self._points = [(int(step), float(x)) for step, x in state["points"]]


def _has(weight: WeightHealth) -> bool:
    return "kappa_tilde" in weight.readings
