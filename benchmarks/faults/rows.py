"""From runs to figures: one plain record per run, and one row per fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.figures import median_max
from benchmarks.faults.kinds import Changed, Fault
from benchmarks.faults.rivals import OURS
from benchmarks.faults.runs import Outcome, Setting, Strike
from benchmarks.faults.state import Whole
from stableopt import Guard
from stableopt.types import Event

CLOSE = 0.01
"""Largest difference of the validation loss that counts as none, in nats."""

DIVERGED = 1.0
"""Difference above which a run that survived has not come back, in nats."""

SOON = 1
"""Calls of ``step()`` after which a fault that reaches loss or gradients is to be found."""


def record_of(
    setting: Setting, strike: Strike, outcome: Outcome, clean: float, twin: Outcome | None
) -> dict[str, Any]:
    """Return what is written about a run, as plain values.

    Args:
        setting: What was trained.
        strike: The fault.
        outcome: Of the run with the fault.
        clean: The validation loss of the run without it.
        twin: Of the bare optimizer on the batches that count in ``outcome``, if it was ours.
    """
    survived = outcome.finished and outcome.finite and outcome.error is None
    shared = {
        "task": setting.task,
        "optimizer": setting.optimizer,
        "implementation": setting.implementation,
        "seed": setting.seed,
        "phase": strike.phase,
        "moment": strike.moment,
        "strike_seed": strike.seed,
        "struck_calls": outcome.struck,
        "injections": [_injection(injection) for injection in outcome.injections],
        "survived": survived,
        "error": outcome.error,
        "validation": outcome.validation if survived else None,
        "validation_clean": clean,
        "delta": outcome.validation - clean if survived else None,
        "poisoned_at_end": outcome.poisoned,
        "steps_lost": outcome.lost,
    }
    return shared if twin is None else {**shared, **_of_guard(outcome, twin)}


def _of_guard(outcome: Outcome, twin: Outcome) -> dict[str, Any]:
    struck = outcome.struck[0] if outcome.struck else 0
    after = [event for event in outcome.events if event.call >= struck]
    summary = outcome.summary
    return {
        "skips": summary["skips"],
        "rollbacks": summary["rollbacks"],
        "baseline_resets": summary["baseline_resets"],
        "steps_lost": summary["steps_lost"] + summary["skips"],
        "identical": outcome.digest == twin.digest,
        "latency": after[0].call - struck if after else None,
        "false_alarms": len(outcome.events) - len(after),
        "poisoned_restores": outcome.poisoned_restores,
        "events": [_event(event) for event in outcome.events],
    }


def _event(event: Event) -> dict[str, Any]:
    back = event.rollback
    return {
        "call": event.call,
        "action": event.action.value,
        "findings": [finding.kind for finding in event.findings],
        "from_to": None if back is None else [back.from_step, back.to_step],
    }


def _injection(injection: Changed) -> dict[str, Any]:
    return {
        "target": injection.target,
        "index": None if isinstance(injection, Whole) else injection.index,
        "before": repr(injection.before),  # JSON knows neither NaN nor Inf
        "after": repr(injection.after),
    }


def bound_of(fault: Fault, guard: Guard) -> int:
    """Return how many steps a run may lose: with I = ``every``, k = ``confirm``, no lag.

    I + 1 for what is not finite or absurdly large, and one more I where the newest snapshot is
    damaged; k + 2I for what is finite and plausible, or comes back at once and so goes back to
    a verified snapshot; no more than the skips in a row where there is no fault.
    """
    near, far = guard.every + 1, guard.confirm_steps + 2 * guard.every
    if fault.shift:
        return guard.max_skips
    if fault.in_snapshot:
        return near + guard.every
    if fault.again is not None:
        return near + far
    return far if fault.spike else near


def summarize_runs(
    fault: Fault, guard: Guard, records: Mapping[str, Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the row of one fault.

    Args:
        fault: Which.
        guard: The options of our runs.
        records: Of the runs of every contestant.
    """
    runs = records[OURS]
    bound = bound_of(fault, guard)
    latencies = [run["latency"] for run in runs if run["latency"] is not None]
    lost = [run["steps_lost"] for run in runs]
    return {
        "fault": fault.name,
        "title": fault.title,
        "contestants": {name: _score(found) for name, found in records.items()},
        "identical": sum(run["identical"] for run in runs),
        "detected": len(latencies),
        "latency": median_max(latencies),
        "steps_lost": median_max(lost),
        "bound": bound,
        "beyond_bound": sum(steps > bound for steps in lost),
        "not_close": sum(run["delta"] is None or abs(run["delta"]) > CLOSE for run in runs),
        "late": sum(run["latency"] is None or run["latency"] > SOON for run in runs),
        "silent": sum(run["latency"] is None for run in runs),
        "rollbacks": sum(run["rollbacks"] for run in runs),
        "false_alarms": sum(run["false_alarms"] for run in runs),
        "poisoned_restores": sum(run["poisoned_restores"] for run in runs),
    }


def _score(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is said of every contestant."""
    survivors = [run for run in runs if run["survived"]]
    clean = [run for run in survivors if not run["poisoned_at_end"]]
    return {
        "runs": len(runs),
        "survived": len(survivors),
        "poisoned": len(survivors) - len(clean),
        "diverged": sum(run["delta"] > DIVERGED for run in clean),
        "delta": _worst(runs),
        "steps_lost": median_max([run["steps_lost"] for run in survivors]),
    }


def _worst(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the largest difference in size, with its sign, among runs that survived."""
    deltas: list[float] = [run["delta"] for run in runs if run["delta"] is not None]
    return max(deltas, key=abs, default=None)
