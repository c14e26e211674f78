"""Absolute limits of the sampled metrics, calibrated by what a Gaussian of that shape reads.

Drift is judged against a weight's own past, which a slow decay takes along. These limits are
what it cannot take along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stableopt.types import Standing

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALLEST = 16
"""Rows and columns from which on a weight is judged: a head of ten classes is low in rank,
and its rows are redundant, for reasons of its own."""


@dataclass(frozen=True, slots=True)
class Tier:
    """From where on a metric is a warning, and from where on a danger.

    Attributes:
        warning: The first limit.
        danger: The second; ``None`` if the metric alone never is one.
        low_is_bad: Whether what lies below is bad, or what lies above.
    """

    warning: float
    danger: float | None
    low_is_bad: bool

    def standing(self, value: float) -> Standing:
        """Return on which side of the limits ``value`` lies."""
        if math.isnan(value):
            return Standing.UNDEFINED
        sign = -1.0 if self.low_is_bad else 1.0
        if self.danger is not None and sign * (value - self.danger) > 0:
            return Standing.DANGER
        return Standing.WARNING if sign * (value - self.warning) > 0 else Standing.HEALTHY

    def passed(self, standing: Standing) -> str:
        """Return which limit a value of that standing has passed, e.g. ``"below 0.45"``.

        Args:
            standing: ``WARNING`` or ``DANGER``.
        """
        limit = self.danger if standing is Standing.DANGER else self.warning
        return f"{'below' if self.low_is_bad else 'above'} {limit:g}"


TIERS: Mapping[str, Tier] = {
    "relative_rank": Tier(warning=0.6, danger=0.45, low_is_bad=True),
    "relative_kappa_p10": Tier(warning=10.0, danger=None, low_is_bad=False),
    "relative_fiedler": Tier(warning=0.5, danger=None, low_is_bad=True),
}
"""The limits of every metric that has some."""


def standing_of(metric: str, value: float, rows: int, columns: int) -> Standing:
    """Return what a reading says by itself.

    Args:
        metric: What was measured.
        value: What was read.
        rows: Of the weight as a matrix.
        columns: Of the weight as a matrix.
    """
    if math.isnan(value):
        return Standing.UNDEFINED
    tier = TIERS.get(metric)
    if tier is None or min(rows, columns) < SMALLEST:
        return Standing.UNJUDGED
    return tier.standing(value)
