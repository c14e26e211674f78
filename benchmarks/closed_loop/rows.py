"""What the runs of the closed-loop benchmark come to, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.closed_loop.scenarios import BASE_ARMS, Scenario
from benchmarks.closed_loop.tasks import Course
from benchmarks.common.figures import median_max

Row = Mapping[str, Any]


def outcome(
    scenario: Scenario, series: Sequence[float], acted: Sequence[int], course: Course
) -> dict[str, Any]:
    """Return what became of one unit, as plain values.

    Args:
        scenario: Where its bound is.
        series: Its metric as the forward pass of every step met it: after so many updates.
        acted: Updates in which it was acted upon, from 1.
        course: When it was driven.

    Returns:
        ``left``, the first step beyond the bound, or ``None``; ``noticed``, steps from then to
        the update that acted upon it; ``back``, steps from that to the first one inside;
        ``worst`` of all; ``worst_after``, once it was back; ``outside``, the share of the steps
        from the begin of the drive on; ``recovered``, whether the last step is inside; ``acts``,
        and ``early``, those before there was a drive.
    """
    pick = max if scenario.is_upper else min
    beyond = [scenario.beyond(value) for value in series]
    left = beyond.index(True) if True in beyond else None
    noticed = back = None
    if left is not None:
        noticed = next((update for update in acted if update > left), None)
    if noticed is not None:
        inside = (step for step in range(noticed, len(series)) if not beyond[step])
        back = next(inside, None)
    return {
        "left": left,
        "noticed": None if left is None or noticed is None else noticed - left,
        "back": None if noticed is None or back is None else back - noticed,
        "worst": _short(pick(series)),
        "worst_after": None if back is None else _short(pick(series[back:])),
        "outside": round(fmean(beyond[course.begin :]), 4),
        "recovered": not beyond[-1],
        "acts": len(acted),
        "early": sum(update <= course.begin for update in acted),
    }


def scenario_row(scenario: Scenario, records: Sequence[Row]) -> dict[str, Any]:
    """Return what became of one scenario: a row for every arm.

    Args:
        scenario: Which.
        records: Of its runs.
    """
    arms = {**BASE_ARMS, **scenario.arms}
    by_arm = {arm: [record for record in records if record["arm"] == arm] for arm in arms}
    healthy = {record["seed"]: record["val"] for record in by_arm["healthy"]}
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "driven": scenario.driven,
        "metric": scenario.metric,
        "bound": scenario.bound,
        "trigger": scenario.trigger,
        "is_upper": scenario.is_upper,
        "arms": [
            {"arm": arm, "title": arms[arm].title, **_arm_row(scenario, found, healthy)}
            for arm, found in by_arm.items()
            if found
        ],
    }


def _arm_row(
    scenario: Scenario, records: Sequence[Row], healthy: Mapping[int, float]
) -> dict[str, Any]:
    pick = max if scenario.is_upper else min
    units = [unit for record in records for unit in record["units"]]
    left = [unit for unit in units if unit["left"] is not None]
    after = [unit["worst_after"] for unit in left if unit["worst_after"] is not None]
    losses = [float(record["val"]) for record in records]
    lost = [float(r["val"]) - float(healthy[r["seed"]]) for r in records if r["seed"] in healthy]
    return {
        "units": len(units),
        "left": len(left),
        "noticed": median_max(unit["noticed"] for unit in left),
        "back": median_max(unit["back"] for unit in left),
        "never_back": sum(unit["back"] is None for unit in left),
        "worst": pick(unit["worst"] for unit in units),
        "worst_after": pick(after) if after else None,
        "outside": fmean(unit["outside"] for unit in units),
        "recovered": sum(unit["recovered"] for unit in units),
        "acts": fmean(unit["acts"] for unit in units),
        "early": sum(unit["early"] for unit in units),
        "val": fmean(losses),
        "lost": fmean(lost) if lost else None,
        "spectra": _spectra(records),
    }


def _spectra(records: Sequence[Row]) -> dict[str, float]:
    """Return the median over weights and seeds of what they were when the drive ended."""
    found = [values for record in records for values in record["spectra"].values()]
    metrics = found[0] if found else ()
    return {m: _short(median(float(values[m]) for values in found)) for m in metrics}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def arm_of(row: Row, arm: str) -> Row | None:
    """Return the row of an arm of a scenario, if it was run."""
    return next((found for found in row["arms"] if found["arm"] == arm), None)
