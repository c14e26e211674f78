"""From runs to figures: one plain record per run, and one row per fault."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fault_kinds import Fault
    from benchmarks.fault_runs import Outcome, Setting, Strike
    from stableopt import Guard
    from stableopt.testing import Injection
    from stableopt.types import Event

CLOSE = 0.01
"""Largest difference of the validation loss that counts as none, in nats."""


def record_of(
    setting: Setting, strike: Strike, outcome: Outcome, clean: Outcome, twin: Outcome | None
) -> dict[str, Any]:
    """Return what is written about a run, as plain values.

    Args:
        setting: What was trained.
        strike: The fault.
        outcome: Of the run with the fault.
        clean: Of the run without it.
        twin: Of the bare optimizer on the batches that count in ``outcome``.
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
        "validation_clean": clean.validation,
        "delta": outcome.validation - clean.validation if survived else None,
        "poisoned_at_end": outcome.poisoned,
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


def _injection(injection: Injection) -> dict[str, Any]:
    return {
        "target": injection.target,
        "index": injection.index,
        "before": repr(injection.before),  # JSON knows neither NaN nor Inf
        "after": repr(injection.after),
    }


def bound_of(fault: Fault, guard: Guard) -> int:
    """Return how many steps a run may lose: with I = ``every``, k = ``confirm``, no lag.

    I + 1 for what is not finite or absurdly large, k + 2I for what shows as a spike alone or
    comes back at once and so goes back to a verified snapshot.
    """
    near, far = guard.every + 1, guard.confirm_steps + 2 * guard.every
    if fault.again is not None:
        return near + far
    return far if fault.spike else near


def summarize_runs(
    fault: Fault, guard: Guard, runs: Sequence[dict[str, Any]], bare: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the row of one fault.

    Args:
        fault: Which.
        guard: The options of ``runs``.
        runs: Records of the runs with the guard.
        bare: Records of the runs without it; may be empty.
    """
    bound = bound_of(fault, guard)
    latencies = [run["latency"] for run in runs if run["latency"] is not None]
    lost = [run["steps_lost"] for run in runs]
    return {
        "fault": fault.name,
        "title": fault.title,
        "runs": len(runs),
        "survived": sum(run["survived"] for run in runs),
        "identical": sum(run["identical"] for run in runs),
        "delta": _worst(runs),
        "bare_runs": len(bare),
        "bare_survived": sum(run["survived"] for run in bare),
        "bare_poisoned": sum(run["survived"] and run["poisoned_at_end"] for run in bare),
        "bare_delta": _worst(bare),
        "detected": len(latencies),
        "latency": _spread(latencies),
        "steps_lost": _spread(lost),
        "bound": bound,
        "beyond_bound": sum(steps > bound for steps in lost),
        "not_close": sum(run["delta"] is None or abs(run["delta"]) > CLOSE for run in runs),
        "silent": sum(run["latency"] is None for run in runs),
        "false_alarms": sum(run["false_alarms"] for run in runs),
        "poisoned_restores": sum(run["poisoned_restores"] for run in runs),
        "poisoned_at_end": sum(run["poisoned_at_end"] for run in runs),
    }


def _worst(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the largest difference in size, with its sign, among runs that survived."""
    deltas: list[float] = [run["delta"] for run in runs if run["delta"] is not None]
    return max(deltas, key=abs, default=None)


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    return {"median": statistics.median(values), "max": max(values)} if values else None
