"""The risk levels of Gradience, from the slope of κ̃."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from stableopt.health.spectra.risk import Assessment
from stableopt.types import RiskLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.health.spectra.risk import WeightHealth

LEARNING, WARNING, DANGER = 0.0005, 0.002, 0.004
"""Slopes above which a level begins, from Gradience's document."""

VOLATILITY = 0.003
"""Standard deviation of the slopes above which a run is unstable, from the same document."""

WINDOW = 5
"""Newest slopes that the level is read from."""

SETTLING = 5
"""Slopes before those: the first changes of a network are neither steady nor a fault."""


class KappaSlope:
    """Reads the level from how fast κ̃ changes.

    The document gives limits without units. Here the slope is that of ln κ̃ per step, in the mean
    over all weights: 0.004 is a factor e in 250 steps. A level is the median of the last five
    slopes, ``INSTABILITY`` their robust standard deviation, so that one jump is neither; and there
    is none before ten slopes are known. A weight whose κ̃ is undefined (a zero matrix) is left out,
    but one whose κ̃ was defined before is an ``INSTABILITY``.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, dict[str, float]]] = []
        self._slopes: list[float] = []

    def assess(self, step: int, weights: Mapping[str, WeightHealth]) -> Assessment | None:
        """Assess the run."""
        point = {name: x for name, w in weights.items() if math.isfinite(x := _logarithm(w))}
        last = self._points[-1][1] if self._points else {}
        lost = tuple(name for name in last if name not in point and name in weights)
        if lost:
            reason = f"{lost[0]}: kappa_tilde is undefined, and was not before"
            return Assessment(level=RiskLevel.INSTABILITY, where=lost, reason=reason)
        self._points = [*self._points[-1:], (step, point)]
        for (before, left), (now, right) in pairwise(self._points):
            both = left.keys() & right.keys()
            if both and now > before:
                change = fmean(right[name] - left[name] for name in both)
                self._slopes = [*self._slopes[1 - WINDOW - SETTLING :], change / (now - before)]
        return self._read()

    def _read(self) -> Assessment | None:
        if len(self._slopes) < WINDOW + SETTLING:
            return None
        slopes = self._slopes[-WINDOW:]
        slope = median(slopes)
        volatility = 1.4826 * median(abs(other - slope) for other in slopes)
        fastest = self._fastest()
        reason = (
            f"ln κ̃ changes by {slope:.2g} a step, with a standard deviation of {volatility:.2g}; "
            f"highest at {fastest[0]}"
        )
        if volatility > VOLATILITY:
            return Assessment(level=RiskLevel.INSTABILITY, where=fastest, reason=reason)
        for limit, level in ((DANGER, RiskLevel.DANGER), (WARNING, RiskLevel.WARNING)):
            if slope > limit:
                return Assessment(level=level, where=fastest, reason=reason)
        return Assessment(level=RiskLevel.LEARNING if slope > LEARNING else RiskLevel.STABLE)

    def _fastest(self) -> tuple[str, ...]:
        """Return the three weights whose κ̃ has grown most."""
        (_, left), (_, right) = self._points
        changes = {name: right[name] - left[name] for name in left.keys() & right.keys()}
        return tuple(sorted(changes, key=lambda name: (-changes[name], name))[:3])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        points = [{"step": step, "values": dict(point)} for step, point in self._points]
        return {"points": points, "slopes": list(self._slopes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state of :meth:`state_dict`."""
        self._points = [
            (int(point["step"]), {str(name): float(x) for name, x in point["values"].items()})
            for point in state["points"]
        ]
        self._slopes = [float(slope) for slope in state["slopes"]]


def _logarithm(weight: WeightHealth) -> float:
    """Return ln κ̃ of a weight; NaN if it is undefined or was not read."""
    reading = weight.readings.get("kappa_tilde")
    return math.log(reading.value) if reading is not None and reading.value > 0 else math.nan
