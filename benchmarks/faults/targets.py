"""What the fault benchmark is to show, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from benchmarks.faults.kinds import FAULTS
from benchmarks.faults.rivals import BASELINE, OURS
from benchmarks.faults.rows import CLOSE, SOON

Row = dict[str, Any]

FINITE = ("weight-100", "v-zero", "v-zero-all")
"""Faults that leave everything finite and plausible, and are to be found nevertheless."""


def targets(result: dict[str, Any]) -> list[Row]:
    """Return every target, what misses it, and whether it is met; ``None`` if not measured."""
    rows = result["rows"]
    faults = [row for row in rows if is_fault(row)]
    fatal = [row for row in faults if is_fatal(row)]
    shows = [row for row in faults if FAULTS[row["fault"]].shows]
    finite = [row for row in faults if row["fault"] in FINITE]
    shifts = [row for row in rows if FAULTS[row["fault"]].shift]
    quiet = result["clean_interventions"]
    return [
        _target("survives, and well, every fault that AdamW + clip does not", fatal, _harmed),
        _target(f"Δval within {CLOSE} of the run without a fault", faults, itemgetter("not_close")),
        _target("steps lost within the bound", rows, itemgetter("beyond_bound")),
        _target(
            f"found within {SOON} call where loss or gradients show it", shows, itemgetter("late")
        ),
        _target(
            "weights times 100 and vanished second moments found", finite, itemgetter("silent")
        ),
        _target("nothing missed in silence", faults, itemgetter("silent")),
        _target(
            "every restored snapshot bit for bit what it was", rows, itemgetter("poisoned_restores")
        ),
        _target(
            "no intervention without a fault",
            rows,
            itemgetter("false_alarms"),
            [f"{quiet} in {result['clean_runs']} clean runs"] if quiet else [],
        ),
        _target("data that become others are not rolled back", shifts, _mistaken),
    ]


def is_fault(row: Row) -> bool:
    """Tell whether a row is of a fault: not the control, nor a shift of the data."""
    return row["fault"] != "none" and not FAULTS[row["fault"]].shift


def is_fatal(row: Row) -> bool:
    """Tell whether a run with AdamW + clip died of a fault, kept it, or never came back."""
    return sound(row, BASELINE) < row["contestants"][BASELINE]["runs"]


def sound(row: Row, contestant: str) -> int:
    """Return how many runs survived, do not hold the fault and have not diverged."""
    score = row["contestants"][contestant]
    return int(score["survived"] - score["poisoned"] - score["diverged"])


def _target(
    what: str, rows: Sequence[Row], misses: Callable[[Row], int], also: Sequence[str] = ()
) -> Row:
    """Return a target over some rows."""
    missed = [
        f"{row['title']} ({misses(row)} of {row['contestants'][OURS]['runs']})"
        for row in rows
        if misses(row)
    ]
    missed += also
    return {"target": what, "missed": missed, "met": not missed if rows else None}


def _harmed(row: Row) -> int:
    return int(row["contestants"][OURS]["runs"]) - sound(row, OURS)


def _mistaken(row: Row) -> int:
    return max(int(row["rollbacks"]), _harmed(row))
