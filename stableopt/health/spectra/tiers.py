"""Absolute limits of the sampled metrics, in units of a Gaussian matrix of the same shape.

Drift is judged against a weight's own past, so that it misses a slow decay. These limits find it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stableopt.types import Standing

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALLEST = 16
"""Least number of rows and columns of a weight that is judged: a head of ten classes has a low rank
and redundant rows without a fault."""


@dataclass(frozen=True, slots=True)
class Tier:
    """The limits of a metric.

    Attributes:
        warning: The limit of a warning.
        danger: The limit of a danger; ``None`` if the metric alone never is one.
        low_is_bad: Whether values below the limits are bad, or values above.
    """

    warning: float
    danger: float | None
    low_is_bad: bool

    def standing(self, value: float) -> Standing:
        """Return the standing of a value."""
        if math.isnan(value):
            return Standing.UNDEFINED
        sign = -1.0 if self.low_is_bad else 1.0
        if self.danger is not None and sign * (value - self.danger) > 0:
            return Standing.DANGER
        return Standing.WARNING if sign * (value - self.warning) > 0 else Standing.HEALTHY

    def passed(self, standing: Standing) -> str:
        """Return the limit that a value of a standing is beyond, e.g. ``"below 0.45"``.

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
"""The metrics that have limits."""


def standing_of(metric: str, value: float, rows: int, columns: int) -> Standing:
    """Return the standing of a reading, without its past.

    Args:
        metric: Its name.
        value: The value.
        rows: Of the weight as a matrix.
        columns: Of the weight as a matrix.
    """
    if math.isnan(value):
        return Standing.UNDEFINED
    tier = TIERS.get(metric)
    if tier is None or min(rows, columns) < SMALLEST:
        return Standing.UNJUDGED
    return tier.standing(value)
