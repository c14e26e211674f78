"""Every intervention of a run, and the counts that the summary is made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError
from stableopt.types import Action

if TYPE_CHECKING:
    from stableopt.types import Event


class Ledger:
    """The interventions and the two clocks of a run.

    Attributes:
        calls: Calls of ``step()``; never goes back.
        steps: Updates taken.
        interventions: The event of every call that was not simply taken.
        last_loss: The loss of the last step that was taken, if it was observed.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0
        self.interventions: list[Event] = []
        self.last_loss: float | None = None
        self._counts: Counter[Action] = Counter()
        self._lost = False

    def add(self, event: Event) -> None:
        """Keep an intervention."""
        self.interventions.append(event)
        self._counts[event.action] += 1
        self._lost |= any(finding.kind == "nonfinite_weight" for finding in event.findings)

    def count(self, action: Action) -> int:
        """Return how many interventions took ``action``."""
        return self._counts[action]

    def integrity(self, guarded: bool) -> str:
        """Return whether a fault is known to remain.

        ``"OK"``: nothing harmful remained; skipped steps are no harm. ``"COMPROMISED"``: the
        run was stopped, its weights were found not to be finite, or it trains on with a loss
        that is not. ``"UNCHECKED"``: there is no guard that could know.
        """
        bad_loss = self.last_loss is not None and not math.isfinite(self.last_loss)
        if self.count(Action.STOP) or self._lost or bad_loss:
            return "COMPROMISED"
        return "OK" if guarded else "UNCHECKED"

    def state_dict(self) -> dict[str, int]:
        """Return the clocks as plain numbers, for the optimizer's checkpoint."""
        return {"calls": self.calls, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the clocks of a checkpoint."""
        self.calls, self.steps = clocks_of(state)


def clocks_of(state: object) -> tuple[int, int]:
    """Return calls and steps of what :meth:`Ledger.state_dict` returned.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(state, Mapping):
        clocks = state.get("calls", 0), state.get("steps", 0)
        if all(isinstance(clock, int) and clock >= 0 for clock in clocks):
            return clocks
    raise ConfigError(
        f"state_dict['stableopt']={state!r} is not what state_dict() writes: "
        "delete the key to start the clocks anew"
    )
