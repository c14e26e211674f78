"""The summary of a run: its counts, its integrity and its setup."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from stableopt.runtime.version import __version__
from stableopt.telemetry.encode import plain
from stableopt.telemetry.metrics import COUNTERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stableopt.telemetry.dispatch import Dispatcher
    from stableopt.telemetry.ledger import Ledger


def summarize(
    ledger: Ledger,
    setup: Mapping[str, Any],
    telemetry: Dispatcher | None,
    status: str | None = None,
    ended_by: str | None = None,
) -> dict[str, Any]:
    """Return the summary of a run as a dict of plain values.

    Args:
        ledger: What happened.
        setup: What was trained with; ``setup["guard"]`` is ``False`` without a guard.
        telemetry: Where events went.
        status: Overrides ``"running"``; a stopped run stays ``"stopped"``.
        ended_by: Type of the exception that the program ended with; only then in the summary.
    """
    counts = {name: ledger.counts[name] for name in COUNTERS if name != "interventions"}
    stops = counts["stops"]
    return {
        "status": "stopped" if stops else status or "running",
        **({} if stops or ended_by is None else {"ended_by": ended_by}),
        "integrity": ledger.integrity(guarded=setup["guard"] is not False),
        "calls": ledger.calls,
        "steps": ledger.steps,
        **counts,
        "last_loss": plain(ledger.last_loss),
        **setup,
        "telemetry": None if telemetry is None else telemetry.losses(),
        "versions": {
            "stableopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "ledger": list(ledger.newest),
    }
