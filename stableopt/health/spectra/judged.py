"""From the values that sensors measured to readings with a standing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stableopt.health.spectra.tiers import TIERS, standing_of
from stableopt.types import Reading, Standing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from stableopt.health.spectra.risk import WeightHealth
    from stableopt.health.spectra.sharing import Values, Visited


def readings_of(
    found: Mapping[Visited, Values],
    step: int,
    shapes: Mapping[str, tuple[int, int]],
    heads: Collection[str],
    weights: Mapping[str, WeightHealth],
) -> list[Reading]:
    """Return a reading for every metric of every visit.

    Args:
        found: What was measured.
        step: Steps taken before that.
        shapes: Rows and columns of the weights.
        heads: Output layers, which have no limits.
        weights: The readings before these.
    """
    readings = []
    for (name, metrics), values in found.items():
        known = dict.fromkeys(metrics, math.nan) if values is None else values
        for metric, value in known.items():
            standing = standing_of(metric, value, *shapes[name])
            if name in heads and standing is not Standing.UNDEFINED:
                standing = Standing.UNJUDGED
            if math.isnan(value) and values is not None and _was_defined(weights.get(name), metric):
                standing = Standing.DANGER
            readings.append(
                Reading(name=name, metric=metric, value=value, step=step, standing=standing)
            )
    return readings


def _was_defined(known: WeightHealth | None, metric: str) -> bool:
    """Return whether a metric was defined before: its weight is zero or not finite now.

    A metric that never was is no fault: a mask of infinities, a factor that starts at zero.
    """
    before = None if known is None else known.readings.get(metric)
    judged = metric in TIERS or metric == "spectral_norm"
    return judged and before is not None and before.standing is not Standing.UNDEFINED


def is_unjudged(health: WeightHealth) -> bool:
    """Return whether no limit applies to a weight: an output layer, or one that is too small."""
    limited = [reading for metric, reading in dict(health.readings).items() if metric in TIERS]
    return bool(limited) and all(reading.standing is Standing.UNJUDGED for reading in limited)


def shape_of(weight: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a weight as a matrix."""
    return weight.shape[0], weight.numel() // weight.shape[0]
