"""Whether a run has been stable for long enough."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COOLDOWN = 50
"""Calls without a fault before a run without a guard counts as stable."""


class Stability:
    """Counts the calls of ``step()`` since the last fault. A rollback does not restore the count.

    Args:
        cooldown: Calls without a fault before a run counts as stable.
    """

    def __init__(self, cooldown: int) -> None:
        self._cooldown = max(1, cooldown)
        self.calm = 0

    def note(self, *, healthy: bool) -> None:
        """Note whether a call was healthy."""
        self.calm = self.calm + 1 if healthy else 0

    @property
    def is_stable(self) -> bool:
        """Whether there was no fault in the last ``cooldown`` calls."""
        return self.calm >= self._cooldown

    def state_dict(self) -> dict[str, int]:
        """Return the count as plain data."""
        return {"calm": self.calm}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the count of a checkpoint."""
        return partial(setattr, self, "calm", int(state.get("calm", 0)))
