"""What the zoo is to show, and whether it does: fixed before its seeds were run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]

SEEDS = (100, 101, 102, 103, 104)
"""Of the comparison: nothing was developed on them."""

MOST_LEFT_OUT = 0.01
"""Of the calls of a run: batches that were skipped, or whose updates a rollback undid."""

MOST_TAMED = 0.01
"""Of the calls of a run: batches whose gradients were made smaller."""

MARGIN = 1.0
"""By how much of the spread of the bare runs a single wrapped run may be beyond it, either side.

A sixth bare run, of another seed, is beyond the spread of five in a third of all draws, and beyond
half of it in a tenth: what is to be shown is that nothing but noise is there. The median of the
wrapped runs is to be within the spread itself."""

LEAST_MARGIN = 1e-9
"""What it may be beyond it where all bare runs come to the same."""


def allowed(bare: Sequence[float], margin: float = MARGIN) -> tuple[float, float] | None:
    """Return the range in which the metric of a wrapped run is to be.

    Args:
        bare: The metrics of the bare runs; ``None`` is returned if there are none.
        margin: By how much of their spread it may be beyond it.
    """
    if not bare:
        return None
    beyond = margin * (max(bare) - min(bare)) + LEAST_MARGIN
    return min(bare) - beyond, max(bare) + beyond


def targets(rows: Sequence[Row]) -> list[Row]:
    """Return every target, what misses it, and whether it is met.

    Args:
        rows: What :func:`benchmarks.zoo.rows.row_of` made of each training.
    """
    share = f"at most {MOST_LEFT_OUT:.0%} of the calls of a run"
    tamed = f"at most {MOST_TAMED:.0%} of the calls of a run"
    around = f"the spread of the bare runs and {MARGIN:g} of it on either side"
    return [
        _target("every bare run learns", rows, lambda row: row["unlearned"]),
        _target("no exception", rows, lambda row: row["failed"]),
        _target(f"batches left out: {share}", rows, lambda row: row["much_left_out"]),
        _target(f"batches tamed: {tamed}", rows, lambda row: row["much_tamed"]),
        _target(f"metrics of wrapped runs within {around}", rows, lambda row: row["outside"]),
        _target(
            "their median within the spread of the bare runs", rows, lambda row: row["shifted"]
        ),
    ]


def _target(what: str, rows: Sequence[Row], misses: Callable[[Row], list[int]]) -> Row:
    """Return a target over the trainings."""
    missed = [f"{row['name']} ({len(misses(row))} of {row['runs']})" for row in rows if misses(row)]
    return {"target": what, "missed": missed, "met": not missed}
