"""A gradient scaler that asks whether to step, and may never step again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stableopt.loop.restore import Restorer
    from stableopt.ranks.group import Ranks


class ScalerWatch:
    """Counts how often a scaler asks before it steps.

    A scaler that finds an overflow does not call the optimizer. If weights are not finite it finds
    one every time, and the run would be lost without a word: when it asks more often than it has
    before any step (torch once, Lightning three times), the weights are looked at.

    Args:
        restorer: Has the buffers that a batch may have changed; ``None`` without a guard.
        ranks: Those that take one verdict: their scalers find the same.
    """

    def __init__(self, restorer: Restorer | None, ranks: Ranks) -> None:
        self._ranks = ranks
        self._restorer = restorer
        self._asked = 0
        self._usual: int | None = None

    def must_step(self) -> bool:
        """Return whether the scaler has to call the optimizer whatever it has found."""
        restorer = self._restorer
        if restorer is None:
            return False
        restorer.has_scaler = True
        self._asked += 1
        if restorer.buffers is not None and restorer.buffers.spoilt():
            # The scaler will skip this batch: what it did to the running statistics stays.
            restorer.buffers.left_out()
        return self._asked > (self._usual or 1) and self._ranks.any(
            restorer.is_damaged(), "the check after an overflow"
        )

    def note_step(self) -> None:
        """Remember how often it asked before a step."""
        if self._asked:
            self._usual = self._asked if self._usual is None else min(self._usual, self._asked)
            self._asked = 0
