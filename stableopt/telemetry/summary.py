"""The summary of a run: what happened, whether it can be trusted, and how to repeat it."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from stableopt.types import Action
from stableopt.version import __version__

if TYPE_CHECKING:
    from stableopt.step import StepLoop


def summarize(loop: StepLoop, status: str | None = None) -> dict[str, Any]:
    """Return the summary of ``loop`` as a dict of plain values.

    Args:
        loop: The run.
        status: Overrides ``"running"``; a stopped run stays ``"stopped"``.
    """
    ledger, guard, telemetry = loop.ledger, loop.guard, loop.telemetry
    stops = ledger.count(Action.STOP)
    groups = loop.optimizer.param_groups
    return {
        "status": "stopped" if stops else status or "running",
        "integrity": ledger.integrity(guarded=guard is not None),
        "calls": ledger.calls,
        "steps": ledger.steps,
        "skips": ledger.count(Action.SKIP),
        "stops": stops,
        "last_loss": ledger.last_loss,
        "optimizer": type(loop.optimizer).__name__,
        "parameters": sum(p.numel() for group in groups for p in group["params"]),
        "guard": False if guard is None else {"max_skips": guard.max_skips},
        "transforms": [repr(transform) for transform in loop.transforms],
        "telemetry": None
        if telemetry is None
        else {"dropped": telemetry.dropped, "failed": telemetry.failed},
        "versions": {
            "stableopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "ledger": [event.to_dict() for event in ledger.interventions],
    }
