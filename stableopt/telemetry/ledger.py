"""Every intervention of a run, and the counts that the summary is made of."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from stableopt.telemetry.encode import plain
from stableopt.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stableopt.types import Event


MANY = 32
"""Losses in a row that are not finite, though all gradients are, which are no coincidence."""

NEWEST = 100
"""How many entries of the ledger a summary lists; all of them would make it ever slower."""


class Ledger:
    """The interventions and the two clocks of a run.

    Attributes:
        calls: Calls of ``step()``; never decreases.
        steps: Updates that the weights contain; a rollback lowers it.
        entries: The event of every call that was not simply taken, or at which the risk rose.
        newest: The newest entries as plain values, for summaries.
        last_loss: The loss of the last step that was taken, if it was observed.
        steps_lost: Updates that rollbacks have undone.
        back_offs: How often the learning rate was lowered without going back.
        tames: Steps whose gradients were scaled down to what is usual.
        resets: How often what looked like spikes was taken for data.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0
        self.entries: list[Event] = []
        self.newest: deque[dict[str, Any]] = deque(maxlen=NEWEST)
        self.last_loss: float | None = None
        self.steps_lost = 0
        self.back_offs = 0
        self.tames = 0
        self.resets = 0
        self._bad_losses = 0
        self._incomplete = False
        self._counts: Counter[Action] = Counter()

    def add(self, event: Event) -> None:
        """Keep an event that there is something to say about."""
        self.entries.append(event)
        self.newest.append(plain(event.to_dict()))
        self._counts[event.action] += event.action is not Action.TAKE
        self.back_offs += event.backs_off
        self.tames += event.tames
        self.resets += event.baseline_reset
        if event.action is Action.ROLL_BACK and event.rollback is not None:
            self.steps_lost += event.rollback.from_step - event.rollback.to_step
            self._incomplete |= bool(event.rollback.left_behind)

    def note_loss(self, loss: float | None) -> None:
        """Hear the loss of a step that was taken."""
        self.last_loss = loss
        if loss is not None:
            self._bad_losses = 0 if math.isfinite(loss) else self._bad_losses + 1

    def count(self, action: Action) -> int:
        """Return how many calls ended in ``action``, which is not to take the step."""
        return self._counts[action]

    def integrity(self, guarded: bool) -> str:
        """Return whether a fault is known to remain.

        ``"OK"``: nothing harmful remained; steps that were skipped or undone are no harm.
        ``"COMPROMISED"``: the run was stopped, it trains on with losses that are not finite, or
        something that is tracked was not restored. ``"UNCHECKED"``: there is no guard that
        could know. With a guard, whose gradients are finite, that takes 32 such losses in a row.
        """
        bad_loss = self._bad_losses >= (MANY if guarded else 1)
        if self.count(Action.STOP) or bad_loss or self._incomplete:
            return "COMPROMISED"
        return "OK" if guarded else "UNCHECKED"

    def state_dict(self) -> dict[str, int]:
        """Return the clocks as plain numbers, for the optimizer's checkpoint."""
        return {"calls": self.calls, "steps": self.steps}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the clocks of a checkpoint.

        Raises:
            ValueError: They are not ints of at least 0.
        """
        calls, steps = state.get("calls", 0), state.get("steps", 0)
        if not all(isinstance(clock, int) and clock >= 0 for clock in (calls, steps)):
            raise ValueError(f"calls={calls!r} and steps={steps!r} must be ints of at least 0")

        def assign() -> None:
            self.calls, self.steps = calls, steps

        return assign
