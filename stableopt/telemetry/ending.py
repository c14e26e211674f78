"""How a run ended, as far as that can be known when its telemetry is closed."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CLOSED, INTERRUPTED, FAILED = "closed", "interrupted", "failed"
"""Statuses of a summary that is the last one; beside ``"stopped"``, which the guard brings."""

COMPLETED, STOPPED, KILLED = "completed", "stopped", "killed"
"""What trackers record, beside ``"failed"``."""

_OUTCOMES = {STOPPED: STOPPED, FAILED: FAILED, INTERRUPTED: KILLED}


class Ending:
    """Knows how a run ended that began when this was made.

    A run that is closed while an exception is handled, in an ``except`` or a ``finally``, has
    ended by it. One that is not closed is closed while the interpreter exits, and there the
    exception that was printed last is its cause. (In a notebook it is that of any cell.) What was
    there before the run began is not its end. ``sys.exit`` with a code that is not 0 is a failure
    where the run is closed on the way out; of one that is not handled Python keeps no trace.
    """

    def __init__(self) -> None:
        # Not the exceptions themselves: their tracebacks would keep every frame alive.
        self._earlier = {id(_last_exception()), id(sys.exc_info()[1])}
        self._status = CLOSED
        self._ended_by: str | None = None

    def note(self) -> None:
        """Remember the exception that is being handled in this thread, if it is a fault."""
        self._remember(sys.exc_info()[1])

    def tell(self) -> tuple[str, str | None]:
        """Return the status of the last summary, and the exception it is due to, by its type."""
        if not threading.main_thread().is_alive():  # at exit
            self._remember(_last_exception())
        return self._status, self._ended_by

    def _remember(self, error: BaseException | None) -> None:
        if error is None or id(error) in self._earlier or _is_meant(error):
            return
        self._status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
        # The type alone: a message may quote a sample.
        self._ended_by = type(error).__name__


def outcome(summary: Mapping[str, Any] | None) -> str:
    """Return ``"completed"``, ``"stopped"``, ``"failed"`` or ``"killed"``.

    Args:
        summary: The last of the run, if there was one.

    Example:
        >>> outcome({"status": "interrupted"})
        'killed'
    """
    return _OUTCOMES.get((summary or {}).get("status", CLOSED), COMPLETED)


def reason(summary: Mapping[str, Any] | None) -> str | None:
    """Return why a run did not come to its end, if it did not."""
    summary = summary or {}
    if outcome(summary) == STOPPED:
        why = (summary.get("ledger") or [{}])[-1].get("reason")
        return None if why is None else str(why)
    error = summary.get("ended_by")
    return None if error is None else f"the program ended with {error}"


def succeeded(summary: Mapping[str, Any] | None) -> bool:
    """Return whether a run came to its end, and no fault is known to remain."""
    remains = (summary or {}).get("integrity") == "COMPROMISED"
    return outcome(summary) == COMPLETED and not remains


def _is_meant(error: BaseException) -> bool:
    """Return whether an exception ends a program as planned."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
        return True
    pruned = getattr(sys.modules.get("optuna"), "TrialPruned", None)
    return pruned is not None and isinstance(error, pruned)


def _last_exception() -> BaseException | None:
    return getattr(sys, "last_value", None)
