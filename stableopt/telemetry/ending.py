"""How a run ended, as far as that can be known when its telemetry is closed."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUTCOMES = {"stopped": "stopped", "failed": "failed", "interrupted": "killed"}
"""By the status of the last summary; any other is ``"completed"``."""


class Ending:
    """How a run ended that began when this was made.

    A run that is closed while an exception is handled, in an ``except`` or a ``finally``, was
    ended by that exception. A run that is not closed is closed when the interpreter exits: it was
    ended by the exception that was printed last (in a notebook, that of any cell). Exceptions from
    before the run began are ignored. ``sys.exit`` with a code other than 0 is a failure only if
    the run is closed while it is handled: Python keeps no other trace of it.
    """

    def __init__(self) -> None:
        # Not the exceptions themselves: their tracebacks would keep every frame alive.
        self._earlier = {id(getattr(sys, "last_value", None)), id(sys.exc_info()[1])}
        self._status = "closed"
        self._ended_by: str | None = None

    def note(self) -> None:
        """Remember the exception that is handled in this thread, if it is a failure."""
        self._remember(sys.exc_info()[1])

    def status(self) -> tuple[str, str | None]:
        """Return the status of the last summary, and the type of the exception that ended it."""
        if not threading.main_thread().is_alive():  # at exit
            self._remember(getattr(sys, "last_value", None))
        return self._status, self._ended_by

    def _remember(self, error: BaseException | None) -> None:
        if error is None or id(error) in self._earlier or _is_meant(error):
            return
        is_interrupt = isinstance(error, KeyboardInterrupt)
        self._status = "interrupted" if is_interrupt else "failed"
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
    return _OUTCOMES.get((summary or {}).get("status", ""), "completed")


def reason(summary: Mapping[str, Any] | None) -> str | None:
    """Return why a run did not complete; ``None`` if it did, or if that is unknown."""
    summary = summary or {}
    if outcome(summary) == "stopped":
        why = (summary.get("ledger") or [{}])[-1].get("reason")
        return None if why is None else str(why)
    error = summary.get("ended_by")
    return None if error is None else f"the program ended with {error}"


def succeeded(summary: Mapping[str, Any] | None) -> bool:
    """Return whether a run completed, and no fault is known to remain."""
    remains = (summary or {}).get("integrity") == "COMPROMISED"
    return outcome(summary) == "completed" and not remains


def _is_meant(error: BaseException) -> bool:
    """Return whether an exception ends a program as planned."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
        return True
    pruned = getattr(sys.modules.get("optuna"), "TrialPruned", None)
    return pruned is not None and isinstance(error, pruned)
