"""The two clocks of a run: which call of ``step()`` made which update."""

from __future__ import annotations


class StepClock:
    """Which call made which update, as far as it is not one call for each.

    Only where a call made no update, or several had not been recorded, a knee is kept.
    """

    def __init__(self) -> None:
        self._knees: list[tuple[int, int]] = []
        self._last: tuple[int, int] | None = None

    def add(self, call: int, step: int) -> None:
        """Add a record.

        Args:
            call: Of ``step()``.
            step: Updates taken so far, this one included.
        """
        if self._last is None or call - self._last[0] != step - self._last[1]:
            self._knees.append((call, step))
        self._last = (call, step)

    def call_of(self, step: int, before: int) -> int:
        """Return the newest call before ``before`` after which ``step`` updates were taken.

        Example:
            >>> clock = StepClock()
            >>> for call, step in ((1, 1), (51, 50), (251, 200)):  # a skip, a rollback
            ...     clock.add(call, step)
            >>> clock.call_of(200, 251)
            201
        """
        for call, known in reversed(self._knees):
            if call < before and known <= step:
                return min(before - 1, call + step - known)
        return self._knees[0][0] if self._knees else before
