"""Figures that sum up many values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def quartiles(values: Iterable[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    values = list(values)
    if len(values) == 1:
        values *= 2
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"p25": low, "median": middle, "p75": high}


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return the quartiles of the quotients of values of the same round."""
    return quartiles(a / b for a, b in zip(mine, theirs, strict=True))


def median_max(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return the median and the largest value; ``None`` are left out."""
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "max": max(known)} if known else None


def nearest_rank(values: Sequence[float], quantile: float) -> float:
    """Return the quantile that is one of ``values``: the largest, if they are few."""
    ordered = sorted(values)
    return ordered[math.ceil(quantile * len(ordered)) - 1]
