"""How a run ended, as far as that can be known when its telemetry is closed."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPLETED, STOPPED, FAILED, KILLED = "completed", "stopped", "failed", "killed"


class Ending:
    """Knows how a run ended that began when this was made.

    A run that the guard has stopped says so in its summary. One whose program died of an
    exception does not: it is closed while the interpreter exits, and only there the exception
    that was printed last is its cause. (In a notebook it is that of any cell.)
    """

    def __init__(self) -> None:
        # Not the exception itself: its traceback would keep every frame alive.
        self._earlier = id(_last_exception())

    def status(self, summary: Mapping[str, Any] | None) -> str:
        """Return ``"completed"``, ``"stopped"``, ``"failed"`` or ``"killed"``.

        Args:
            summary: The last of the run, if there was one.
        """
        if (summary or {}).get("status") == "stopped":
            return STOPPED
        error = self._exception()
        if error is None:
            return COMPLETED
        return KILLED if isinstance(error, KeyboardInterrupt) else FAILED

    def reason(self, summary: Mapping[str, Any] | None) -> str | None:
        """Return why it did not come to its end, if it did not."""
        if self.status(summary) == STOPPED:
            ledger = (summary or {}).get("ledger") or [{}]
            reason = ledger[-1].get("reason")
            return None if reason is None else str(reason)
        error = self._exception()
        # The type alone: a message may quote a sample.
        return None if error is None else f"the program ended with {type(error).__name__}"

    def succeeded(self, summary: Mapping[str, Any] | None) -> bool:
        """Tell whether it came to its end, and no fault is known to remain."""
        remains = (summary or {}).get("integrity") == "COMPROMISED"
        return self.status(summary) == COMPLETED and not remains

    def _exception(self) -> BaseException | None:
        if threading.main_thread().is_alive():  # not at exit
            return None
        last = _last_exception()
        return None if id(last) == self._earlier else last


def _last_exception() -> BaseException | None:
    return getattr(sys, "last_value", None)
