"""RECORD: the ledger, the telemetry, and the summary of a run."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from stableopt.errors import DivergenceError
from stableopt.health.stability import Stability
from stableopt.sensors.signals import summarize_signals
from stableopt.telemetry.ledger import Ledger
from stableopt.types import Action, Event, RiskLevel, Scope
from stableopt.update.learning_rate import learning_rates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer

    from stableopt.loop.attempt import Attempt
    from stableopt.ranks.group import Ranks
    from stableopt.telemetry.dispatch import Dispatcher
    from stableopt.types import Act, Verdict

logger = logging.getLogger("stableopt")


class Recorder:
    """Counts calls and steps, and records what there is to say about them.

    Args:
        optimizer: The inner optimizer, for its learning rates.
        telemetry: Where events go.
        cooldown: Calls that a run has to be calm for.
        ranks: Of these the first one logs; all have the same to say.

    Attributes:
        ledger: The interventions, and the two clocks.
        stability: How long the run has been calm.
        telemetry: Where events go.
    """

    def __init__(
        self, optimizer: Optimizer, telemetry: Dispatcher | None, cooldown: int, ranks: Ranks
    ) -> None:
        self._optimizer = optimizer
        self._ranks = ranks
        self.telemetry = telemetry
        self.ledger = Ledger()
        self.stability = Stability(cooldown)

    def count(self, verdict: Verdict) -> None:
        """Move the clocks by one call."""
        self.ledger.calls += 1
        self.ledger.steps += verdict.action is Action.TAKE
        if verdict.rollback is not None:
            self.ledger.steps = verdict.rollback.to_step

    def record(
        self,
        attempt: Attempt,
        verdict: Verdict,
        *,
        acts: Sequence[Act],
        risk: RiskLevel | None,
        calm: bool,
        lr_scale: float,
        often: bool,
        summary: Callable[[], dict[str, Any]],
    ) -> Event | None:
        """Record a call, if there is anything to say about it or a writer wants it.

        Args:
            attempt: What was known.
            verdict: What was done.
            acts: What transforms did.
            risk: The level that the sensors say the run is at.
            calm: Whether the guard is.
            lr_scale: Our factor on the learning rates.
            often: Whether every step is recorded for now.
            summary: Returns that of the run.

        Returns:
            The event, if there is one.
        """
        ledger, observation = self.ledger, attempt.observation
        if verdict.action is Action.TAKE:
            ledger.note_loss(observation.loss)
        finite = observation.loss is None or math.isfinite(observation.loss)
        risky = risk is not None and risk.rank >= RiskLevel.WARNING.rank
        healthy = calm and finite and not risky and _is_healthy(verdict, acts)
        self.stability.note(healthy=healthy)
        news = [act.sentence() for act in acts if not act.again]
        routine = verdict.action is Action.TAKE and not verdict.findings and not news
        telemetry = self.telemetry
        always = often or bool(attempt.sensed.readings)
        if routine and not (telemetry and (always or telemetry.wants(ledger.steps))):
            return None
        norms = observation.gradients
        event = Event(
            call=ledger.calls,
            step=ledger.steps,
            action=verdict.action,
            reason="; ".join([verdict.reason, *news] if verdict.reason else news),
            findings=verdict.findings,
            rollback=verdict.rollback,
            backs_off=verdict.backs_off,
            tames=verdict.tames,
            baseline_reset=verdict.baseline_reset,
            lr_scale=lr_scale,
            loss=observation.loss,
            grad_norm=None if norms is None else norms.total_value,
            lr=learning_rates(self._optimizer) if attempt.lr is None else attempt.lr,
            signals=summarize_signals(observation.signals),
            readings=attempt.sensed.readings,
            risk=risk,
            acts=tuple(acts),
            time=time.time(),
        )
        if not routine:
            ledger.add(event)
            level = logging.WARNING if verdict.findings or verdict.reason else logging.INFO
            if self._ranks.rank:
                level = logging.DEBUG
            logger.log(level, "call %d: %s: %s", event.call, event.action.value, event.reason)
        if telemetry is not None:
            telemetry.send(event, always=always)
            if not routine:
                telemetry.send_summary(summary())
        return event

    def stop(self, event: Event) -> DivergenceError:
        """Return the error that ends the run; everything is written before that."""
        if self.telemetry is not None:
            self.telemetry.flush()
        weights = "those after the last step that was taken"
        if event.rollback is not None:
            weights = f"those of step {event.rollback.to_step}, the newest verified snapshot"
        return DivergenceError(
            f"stopped at call {event.call}: {event.reason}. The weights are {weights}. Look at "
            "the data and the layers that this error's .ledger names, at the learning rate, and "
            "whether the gradients are reset after a step that was skipped",
            event,
            self.ledger.entries,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the writers."""
        return {**self.__dict__, "telemetry": None}


def _is_healthy(verdict: Verdict, acts: Sequence[Act]) -> bool:
    """Return whether a call does not end the calm of a run."""
    if verdict.action is not Action.TAKE:
        return False
    noticed = all(finding.scope is Scope.NOTICE for finding in verdict.findings)
    return noticed and all(act.routine for act in acts)
