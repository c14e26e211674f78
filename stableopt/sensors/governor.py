"""Limits the cost of the sensors to a share of the training time."""

from __future__ import annotations

import time

CREDIT = 0.02
"""Seconds that may be spent in advance: the first visit of all weights is one of many."""


class Governor:
    """An account that fills by a share of the passing time, and is charged what sensors take.

    Args:
        budget: The share, e.g. 0.01; ``None`` for no limit.

    Attributes:
        spent: Seconds that sensors took, on the host and on the device.
        postponed: How often they were due and did not run, because the account was empty.
    """

    def __init__(self, budget: float | None) -> None:
        self._budget = budget
        self._account = CREDIT
        self._started: float | None = None
        self._last = 0.0
        self.spent = 0.0
        self.postponed = 0

    def allows(self, now: float | None = None) -> bool:
        """Return whether there is anything on the account.

        Args:
            now: Seconds of a monotonic clock; the current time if not given.
        """
        now = time.perf_counter() if now is None else now
        if self._started is None:
            self._started = self._last = now
        if self._budget is None:
            return True
        earned = self._budget * max(0.0, now - self._last)
        self._last = now
        self._account = min(CREDIT, self._account + earned)
        return self._account > 0

    def charge(self, seconds: float) -> None:
        """Subtract the time that sensors took from the account."""
        self.spent += seconds
        self._account -= seconds

    def share(self, now: float | None = None) -> float:
        """Return the share of the time since the first visit that sensors took."""
        now = time.perf_counter() if now is None else now
        passed = 0.0 if self._started is None else now - self._started
        return self.spent / passed if passed > 0 else 0.0
