"""The layers that were named most, and their readings beyond a limit."""

from __future__ import annotations

import math
from typing import NamedTuple

from stableopt.functional import gaussian_effective_rank
from stableopt.health.spectra.tiers import SMALLEST, TIERS
from stableopt.recorded.run import LayerTally, Run
from stableopt.runtime.words import count, listed, natural, spell
from stableopt.sensors.targets import without_limits
from stableopt.types import Standing

_CRITICAL = (*TIERS, "spectral_norm")
"""Metrics that a weight loses only by becoming zero, or not finite."""


class Offender(NamedTuple):
    """A layer that stands out.

    Attributes:
        name: Of the parameter.
        tally: How often it was named.
        standing: The worst of its newest readings.
        reading: What is wrong with them in words; empty if nothing is.
    """

    name: str
    tally: LayerTally
    standing: Standing
    reading: str


def top_offenders(run: Run, most: int = 10) -> list[Offender]:
    """Return the layers that stand out, the worst first.

    Those in danger come first (also those whose metrics are now undefined), then those beyond a
    warning limit, then by how often interventions, rises of the risk and transforms named them.

    Args:
        run: Which.
        most: How many at most.
    """
    named = {*run.layers, *(name for metric in _CRITICAL for name in run.readings.get(metric, ()))}
    found = [_offender(run, name) for name in named]
    found = [o for o in found if o.reading or o.tally.faults or o.tally.risks or o.tally.acts]
    return sorted(found, key=_badness)[:most]


def _offender(run: Run, name: str) -> Offender:
    standing, words = Standing.HEALTHY, []
    if gone := [metric for metric in _CRITICAL if is_gone(run, metric, name)]:
        standing = Standing.DANGER
        words.append(f"undefined, and was not before: {', '.join(gone)}")
    for metric, tier in TIERS.items():
        now = judge(run, metric, name, run.newest(metric, name))
        if now in (Standing.WARNING, Standing.DANGER):
            words.append(f"{metric} {spell(run.newest(metric, name), 3)}, {tier.passed(now)}")
            standing = Standing.DANGER if Standing.DANGER in (now, standing) else now
    return Offender(name, run.layers.get(name, LayerTally()), standing, "; ".join(words))


def _badness(offender: Offender) -> tuple[int, int, int, int, object]:
    order = [Standing.DANGER, Standing.WARNING, Standing.HEALTHY].index(offender.standing)
    tally = offender.tally
    return (order, -tally.faults, -tally.risks, -tally.acts, natural(offender.name))


def is_gone(run: Run, metric: str, name: str) -> bool:
    """Return whether the newest reading of a layer is NaN, and an earlier one was a number.

    The weight has become zero, or is not finite. What never was a number is meant to be so.

    Args:
        run: Which.
        metric: What was read.
        name: Of the layer.
    """
    readings = run.readings.get(metric, {}).get(name)
    if readings is None or readings.newest is None or not math.isnan(readings.newest):
        return False
    return any(bucket.undefined < bucket.count for bucket in readings.buckets)


def say_undefined(run: Run) -> str:
    """Return which layers have lost their metrics, as a sentence; empty if none has."""
    known = {name for metric in _CRITICAL for name in run.readings.get(metric, ())}
    gone = [name for name in known if any(is_gone(run, metric, name) for metric in _CRITICAL)]
    if not gone:
        return ""
    these = listed(sorted(gone, key=natural))
    verbs = ("is", "was") if len(gone) == 1 else ("are", "were")
    return (
        f"{len(gone)} of {count(len(known), 'layer')} {verbs[0]} undefined now, and {verbs[1]} "
        f"not before (not finite, or zero): {these}."
    )


def judge(run: Run, metric: str, name: str, value: float | None) -> Standing:
    """Return on which side of its limits a reading lies, where limits apply to that weight.

    They do not for an output layer, nor for a weight of fewer than 16 rows or columns: the summary
    lists those. Without a summary they follow from the name, and from the effective rank that a
    random matrix of the shape has.

    Args:
        run: Which.
        metric: What was read.
        name: Of the layer.
        value: What was read there.
    """
    tier = TIERS.get(metric)
    if tier is None or value is None:
        return Standing.UNJUDGED
    unjudged = run.setting("sensors", "unjudged")
    if isinstance(unjudged, list):
        return Standing.UNJUDGED if name in unjudged else tier.standing(value)
    if without_limits(name):
        return Standing.UNJUDGED
    rank = run.newest("effective_rank", name)
    relative = run.newest("relative_rank", name)
    if rank is None or relative is None or not relative > 0:
        return tier.standing(value)
    if rank / relative < _LEAST_RANK * (1 - 1e-3):
        return Standing.UNJUDGED
    return tier.standing(value)


_LEAST_RANK = gaussian_effective_rank(SMALLEST, SMALLEST)
