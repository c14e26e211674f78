"""From the records of a training's runs to its row in the table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.zoo.harness import Record, Training
from benchmarks.zoo.targets import MOST_LEFT_OUT, MOST_TAMED, allowed

Row = dict[str, Any]


def row_of(training: Training, records: Sequence[Record]) -> Row:
    """Return what the runs of a training came to, and the seeds that miss a target.

    Args:
        training: Which.
        records: Of all its runs, bare and wrapped, in any order.
    """
    bare = {record["seed"]: record for record in records if not record["wrapped"]}
    wrapped = {record["seed"]: record for record in records if record["wrapped"]}
    pairs = [(bare[seed], wrapped[seed]) for seed in sorted(bare)]
    limits = allowed(_metrics(bare.values()))
    return {
        "name": training.name,
        "title": training.title,
        "metric": training.metric,
        "at_least": training.at_least,
        "at_most": training.at_most,
        "runs": len(pairs),
        "bare": _spread(_metrics(bare.values())),
        "wrapped": _spread(_metrics(wrapped.values())),
        "allowed": limits,
        "difference": max((_apart(*pair) for pair in pairs if _both(*pair)), default=None),
        "calls": sum(w["calls"] for _, w in pairs),
        **{
            count: sum(w[count] for _, w in pairs)
            for count in ("left_out", "tamed", "interventions")
        },
        "identical": sum(_both(b, w) and b["digest"] == w["digest"] for b, w in pairs),
        "time": median(w["seconds"] / b["seconds"] for b, w in pairs),
        "unlearned": [
            b["seed"] for b, _ in pairs if b["error"] or not training.learned(b["metric"])
        ],
        "failed": [w["seed"] for _, w in pairs if w["error"]],
        "much_left_out": _above(wrapped.values(), "left_out", MOST_LEFT_OUT),
        "much_tamed": _above(wrapped.values(), "tamed", MOST_TAMED),
        "outside": [w["seed"] for _, w in pairs if _is_outside(w["metric"], limits)],
        "shifted": _shifted(_metrics(bare.values()), _metrics(wrapped.values())),
        "said": _said(pairs),
    }


def _metrics(records: Any) -> list[float]:
    return [record["metric"] for record in records if record["metric"] is not None]


def _spread(metrics: list[float]) -> dict[str, float] | None:
    if not metrics:
        return None
    return {"median": median(metrics), "min": min(metrics), "max": max(metrics)}


def _both(bare: Record, wrapped: Record) -> bool:
    """Tell whether neither of two runs failed."""
    return bare["error"] is None and wrapped["error"] is None


def _apart(bare: Record, wrapped: Record) -> float:
    return float(abs(wrapped["metric"] - bare["metric"]))


def _above(records: Any, count: str, most: float) -> list[int]:
    """Return the seeds of the runs in which something happened at too many calls."""
    return [record["seed"] for record in records if record[count] > most * record["calls"]]


def _is_outside(metric: float | None, limits: tuple[float, float] | None) -> bool:
    """Tell whether there is a metric, and it is not where it is to be."""
    return metric is not None and limits is not None and not limits[0] <= metric <= limits[1]


def _shifted(bare: list[float], wrapped: list[float]) -> list[float]:
    """Return the median of the wrapped runs, if it is not within the spread of the bare ones."""
    limits = allowed(bare, margin=0.0)
    found = median(wrapped) if wrapped else None
    return [found] if found is not None and _is_outside(found, limits) else []


def _said(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """Return the errors of all runs, and the first reasons of each wrapped one."""
    errors = [
        f"seed {record['seed']}, {'wrapped' if record['wrapped'] else 'bare'}: {record['error']}"
        for pair in pairs
        for record in pair
        if record["error"]
    ]
    reasons = [f"seed {w['seed']}, {reason}" for _, w in pairs for reason in w["reasons"]]
    return errors + reasons
