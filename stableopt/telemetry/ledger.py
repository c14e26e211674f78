"""Every intervention of a run, and the counts that the summary is made of."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from stableopt.telemetry.encode import plain
from stableopt.telemetry.metrics import interventions_of
from stableopt.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stableopt.types import Event


MANY = 32
"""Consecutive losses that are not finite after which a guarded run is compromised."""

NEWEST = 100
"""Entries of the ledger that a summary lists, so that its size is bounded."""


class Ledger:
    """The interventions of a run, and its calls and steps so far.

    Attributes:
        calls: Calls of ``step()``; never decreases.
        steps: Steps taken and not undone; a rollback lowers it.
        entries: The event of every call that was not simply taken, or at which the risk rose.
        newest: The newest entries as plain values, for summaries.
        last_loss: The loss of the last step that was taken, if it was observed.
        counts: The interventions by their kind, see :data:`~stableopt.telemetry.metrics.COUNTERS`.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0
        self.entries: list[Event] = []
        self.newest: deque[dict[str, Any]] = deque(maxlen=NEWEST)
        self.last_loss: float | None = None
        self.counts: Counter[str] = Counter()
        self._bad_losses = 0
        self._incomplete = False

    def add(self, event: Event) -> None:
        """Keep an event that is not routine."""
        self.entries.append(event)
        self.newest.append(plain(event.to_dict()))
        self.counts.update(interventions_of(event))
        if event.action is Action.ROLL_BACK and event.rollback is not None:
            self._incomplete |= bool(event.rollback.left_behind)

    def note_loss(self, loss: float | None) -> None:
        """Note the loss of a step that was taken."""
        self.last_loss = loss
        if loss is not None:
            self._bad_losses = 0 if math.isfinite(loss) else self._bad_losses + 1

    def integrity(self, guarded: bool) -> str:
        """Return whether a fault is known to remain.

        ``"OK"``: no; steps may have been skipped or undone. ``"COMPROMISED"``: the run was
        stopped, its losses are not finite (without a guard one, with a guard 32 in a row), or
        something that is tracked was not restored. ``"UNCHECKED"``: there is no guard.
        """
        bad_loss = self._bad_losses >= (MANY if guarded else 1)
        if self.counts["stops"] or bad_loss or self._incomplete:
            return "COMPROMISED"
        return "OK" if guarded else "UNCHECKED"

    def state_dict(self) -> dict[str, int]:
        """Return calls and steps as plain numbers, for the optimizer's checkpoint."""
        return {"calls": self.calls, "steps": self.steps}

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return a function that assigns the calls and steps of a checkpoint.

        Raises:
            ValueError: They are not ints of at least 0.
        """
        calls, steps = state.get("calls", 0), state.get("steps", 0)
        if not all(isinstance(clock, int) and clock >= 0 for clock in (calls, steps)):
            raise ValueError(f"calls={calls!r} and steps={steps!r} must be ints of at least 0")

        def assign() -> None:
            self.calls, self.steps = calls, steps

        return assign
