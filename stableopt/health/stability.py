"""Has a run been calm long enough to ask more of it?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COOLDOWN = 50
"""Calls that a run without a guard has to be calm for."""


class Stability:
    """Counts the calls of ``step()`` since anything was wrong. Never goes back.

    Args:
        cooldown: Calls that a run must be calm for.
    """

    def __init__(self, cooldown: int) -> None:
        self._cooldown = max(1, cooldown)
        self.calm = 0

    def note(self, *, healthy: bool) -> None:
        """Hear what a call was like."""
        self.calm = self.calm + 1 if healthy else 0

    @property
    def is_stable(self) -> bool:
        """Whether the run has been calm for so many calls: lost at once, regained slowly."""
        return self.calm >= self._cooldown

    def state_dict(self) -> dict[str, int]:
        """Return the count as plain data."""
        return {"calm": self.calm}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the count of a checkpoint."""
        return partial(setattr, self, "calm", int(state.get("calm", 0)))
