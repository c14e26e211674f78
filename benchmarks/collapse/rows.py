"""What the runs of the collapse benchmark come to, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.collapse.kinds import Collapse
from benchmarks.collapse.runs import Trajectory, Visited, Watch
from benchmarks.collapse.tasks import TASKS
from benchmarks.common.figures import median_max
from stableopt.functional import gaussian_kappa_p10
from stableopt.functional.row_spectrum import SAMPLED_ROWS
from stableopt.health.spectra.tiers import SMALLEST, TIERS
from stableopt.types import RiskLevel, Standing

PER = 10_000
"""Visits that rates are given for."""


def healthy_row(trajectory: Trajectory, seen: Watch) -> dict[str, Any]:
    """Return what the sensors said over a run in which nothing was struck.

    Args:
        trajectory: The run.
        seen: Its sensors, at the end.
    """
    last = trajectory.losses[-20:]
    return {
        "kind": trajectory.kind,
        "seed": trajectory.seed,
        "steps": trajectory.steps,
        "weights": len(trajectory.at(0)),
        "first_loss": trajectory.losses[0],
        "last_loss": sum(last) / len(last),
        "visits": len(seen.visits),
        "warning": _standings(seen.visits, Standing.WARNING),
        "danger": _standings(seen.visits, Standing.DANGER),
        "unconfirmed": _drifts(seen.visits, sure=False),
        "confirmed": _drifts(seen.visits, sure=True),
        "drifted_visits": sum(any(v.drifts.values()) for v in seen.visits),
        "levels": dict(Counter(v.level.value for v in seen.visits if v.level is not None)),
        "assessments": {level.value: seen.assessments[level] for level in RiskLevel},
        "extremes": _extremes(trajectory, seen.visits),
        "complaints": _complaints(seen.visits),
    }


def _standings(visits: Iterable[Visited], wanted: Standing) -> dict[str, int]:
    return dict(Counter(m for v in visits for m, s in v.standings.items() if s is wanted))


def _drifts(visits: Iterable[Visited], *, sure: bool) -> dict[str, int]:
    return dict(Counter(m for v in visits for m, known in v.drifts.items() if known is sure))


def _complaints(visits: Iterable[Visited]) -> dict[str, list[int]]:
    """Return by weight and metric the steps of the first and the last complaint, and how many."""
    found: dict[str, list[int]] = {}
    for visited in visits:
        for metric in visited.bad:
            entry = found.setdefault(f"{visited.name}: {metric}", [visited.step, 0, 0])
            entry[1:] = [visited.step, entry[2] + 1]
    return found


def _extremes(
    trajectory: Trajectory, visits: Iterable[Visited]
) -> dict[str, dict[str, list[float]]]:
    """Return by role and metric the extreme value among judged weights, and the visits."""
    found: dict[str, dict[str, list[float]]] = {}
    for visited in visits:
        weight = trajectory.at(0)[visited.name]
        rows, columns = weight.shape[0], weight[0].numel()
        if min(rows, columns) < SMALLEST:
            continue
        role = found.setdefault(TASKS[trajectory.kind].role(visited.name), {})
        kappa = visited.values["kappa_p10"]
        typical = gaussian_kappa_p10(min(rows, SAMPLED_ROWS), columns)
        for metric, value, sign in (
            ("relative_rank", visited.values["relative_rank"], -1),
            ("relative_fiedler", visited.values["relative_fiedler"], -1),
            ("kappa_p10", min(kappa, 1e6), 1),
            ("relative_kappa", min(kappa / typical, 1e6), 1),
        ):
            if not math.isnan(value):
                known = role.setdefault(metric, [value, visited.step])
                if sign * (value - known[0]) > 0:
                    known[:] = [value, visited.step]
    return found


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the false positives of several runs, per 10,000 visits of weights."""
    visits = sum(row["visits"] for row in rows)
    levels = Counter[str]()
    assessments = Counter[str]()
    for row in rows:
        levels.update(row["levels"])
        assessments.update(row["assessments"])
    per = PER / max(1, visits)
    act = levels["danger"] + levels["instability"]
    return {
        "visits": visits,
        "weights": sum(row["weights"] for row in rows),
        "confirmed_drifts": per * sum(sum(row["confirmed"].values()) for row in rows),
        "warning": per * (levels["warning"] + act),
        "act": per * act,
        "assessments": dict(assessments),
    }


def tiers() -> dict[str, dict[str, float | None]]:
    """Return the limits that were in force."""
    return {name: {"warning": t.warning, "danger": t.danger} for name, t in TIERS.items()}


def collapse_row(collapse: Collapse, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many of the weights were found in one kind of collapse, and how soon.

    Args:
        collapse: The kind.
        records: Of every weight that it was tried on.
    """
    fresh = [record for record in records if not record["already"]]
    found = [record["found"] for record in fresh if record["found"]]
    acted = [record["acted"] for record in fresh if record["acted"]]
    return {
        "collapse": collapse.name,
        "title": collapse.title,
        "published": collapse.published,
        "weights": len(fresh),
        "already": len(records) - len(fresh),
        "found": len(found),
        "missed": dict(Counter(r["name"] for r in fresh if not r["found"]).most_common()),
        "visits": median_max(entry["visits"] for entry in found),
        "steps": median_max(entry["steps"] for entry in found),
        "by": dict(Counter(metric for entry in found for metric in entry["by"]).most_common()),
        "acted": len(acted),
        "acted_visits": median_max(entry["visits"] for entry in acted),
        "acted_steps": median_max(entry["steps"] for entry in acted),
    }
