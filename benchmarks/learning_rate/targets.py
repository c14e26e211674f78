"""What the learning-rate benchmark is to show, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.learning_rate.methods import BASELINE, METHODS, ROBUST, SCHEDULED
from benchmarks.learning_rate.plan import UNSEEN, VARIANTS
from benchmarks.learning_rate.tasks import LONG, MAIN

Row = Mapping[str, Any]

MOST_SENSITIVE = 0.03
"""LRS+ of ours, on either of the main tasks."""

MARGIN = 0.01
"""By which our best loss may be above that of the baseline."""

WITHIN = {"Lion + clip": "Lion, robust", "SGD + clip": "SGD, robust"}
"""By method with another inner optimizer, ours with the same one inside."""

LARGEST_LOGIT = 100.0
FEWEST_SEEDS = 3
HIGHEST_LR = 1.0


def targets(rows: Sequence[Row], records: Sequence[Row]) -> list[Row]:
    """Return every target, what was found, and whether it is met; ``None`` if not measured.

    Args:
        rows: The scores.
        records: All runs.
    """
    ours = [record for record in records if METHODS[record["method"]].robust]
    pairs = [(task, BASELINE, ROBUST) for task in (*MAIN, *VARIANTS)]
    pairs += [(MAIN[0], bare, robust) for bare, robust in WITHIN.items()]
    found = [_sensitive(find(rows, task, robust), task, robust) for task, _, robust in pairs]
    found += [_best(rows, *pair) for pair in (*pairs, (LONG, BASELINE, ROBUST))]
    found += [_best(rows, task, BASELINE, ROBUST) for task in UNSEEN]
    return [*found, _logits(ours), _survival(ours)]


def find(rows: Sequence[Row], task: str, method: str) -> Row | None:
    """Return the scores of a method on a task, if it was run."""
    pairs = {(row["task"], row["method"]): row for row in rows}
    return pairs.get((task, method))


def schedule_share(rows: Sequence[Row], task: str) -> Row | None:
    """Return how much of our gain at the best learning rate a slower schedule has, too.

    Returns:
        The best losses of baseline, √-cosine and ours, and ``share``: of the gain of ours over
        the baseline, that of √-cosine; ``None`` where ours is not better.
    """
    found = [find(rows, task, method) for method in (BASELINE, SCHEDULED, ROBUST)]
    bests = [row["best"]["mean"] for row in found if row is not None]
    if len(bests) < len(found):
        return None
    baseline, scheduled, ours = bests
    gain = baseline - ours
    share = (baseline - scheduled) / gain if gain > 0 else None
    return {"baseline": baseline, "scheduled": scheduled, "ours": ours, "share": share}


def _target(text: str, found: str, met: bool | None) -> Row:
    return {"target": text, "found": found, "met": met}


def _sensitive(row: Row | None, task: str, robust: str) -> Row:
    text = (
        f"{_name(task, robust)}: LRS+ at most {MOST_SENSITIVE} over at least {FEWEST_SEEDS} seeds, "
        f"learning rates up to {HIGHEST_LR:g}"
    )
    if row is None:
        return _target(text, "-", None)
    found = row["lrs_plus"]["mean"]
    enough = len(row["seeds"]) >= FEWEST_SEEDS and max(row["grid"]) >= HIGHEST_LR
    said = f"{found:.3f} over {len(row['seeds'])} seed(s), up to {max(row['grid']):g}"
    return _target(text, said, found <= MOST_SENSITIVE if enough else None)


def _best(rows: Sequence[Row], task: str, bare: str, robust: str) -> Row:
    text = f"{_name(task, robust)}: best loss at most {MARGIN} above that of {bare}"
    ours, baseline = find(rows, task, robust), find(rows, task, bare)
    if ours is None or baseline is None:
        return _target(text, "-", None)
    found = ours["best"]["mean"] - baseline["best"]["mean"]
    said = f"{found:+.3f} ({ours['best']['mean']:.3f} to {baseline['best']['mean']:.3f})"
    return _target(text, said, found <= MARGIN)


def _name(task: str, robust: str) -> str:
    return task if robust == ROBUST else f"{task}, {robust}"


def _logits(ours: Sequence[Row]) -> Row:
    text = f"no attention logit of ours above {LARGEST_LOGIT:g}, at any learning rate"
    watched = [record for record in ours if record["logit"] is not None]
    if not watched:
        return _target(text, "-", None)
    worst = max(watched, key=lambda record: float(record["logit"]))
    largest = float(worst["logit"])
    said = f"{largest:.3g} ({worst['task']}, {worst['method']}, lr {worst['lr']:g})"
    return _target(text, said, largest <= LARGEST_LOGIT)


def _survival(ours: Sequence[Row]) -> Row:
    text = "no run of ours that is not finite or that was stopped"
    if not ours:
        return _target(text, "-", None)
    lost = [record for record in ours if not record["finite"] or record["stopped"]]
    return _target(text, f"{len(lost)} of {len(ours)}", not lost)
