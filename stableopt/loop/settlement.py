"""What compiled steps did, told afterwards: at the next call that is not compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stableopt.health.spectra.sensing import Sensed
from stableopt.loop.lagged import too_late
from stableopt.runtime.scalars import read_scalars
from stableopt.types import Action, Finding, Observation, Scope, Verdict

if TYPE_CHECKING:
    from stableopt.loop.guardian import Guardian
    from stableopt.loop.step import StepLoop
    from stableopt.update.traced import Counts

NOT_FINITE = Finding(
    kind="nonfinite_gradient", message="the loss or a gradient of a compiled step is not finite"
)


MANY = 50
"""Compiled steps between two calls of ours, of which somebody should know that nobody looked."""


class Settlement:
    """Judges compiled steps by what they left behind.

    A graph decides for itself whether a step is taken, by gradients and loss being finite. All that
    needs memory comes afterwards: clocks, ledger and telemetry, the scan of the weights, rules,
    sensors, snapshots, and the way back.

    Args:
        loop: The loop whose steps they were.
    """

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop

    def settle(self, counts: Counts) -> None:
        """Account for all of them, in an order in which they may have happened.

        Args:
            counts: What happened.

        Raises:
            DivergenceError: Nothing helped.
        """
        loop = self._loop
        if (guardian := loop.guardian) is None:
            return
        loop.called = True
        if counts.calls > MANY:
            loop.tell_unsettled(counts.calls)
        skipped = counts.calls - counts.taken - counts.vetoed
        for _ in range(counts.vetoed):
            reason = "the gradients of a compiled step may be those of weights that have gone back"
            veto = Verdict(action=Action.SKIP, reason=reason)
            loop.finish(veto, Observation(), Sensed(), buffers=False)
        for _ in range(skipped - counts.row):
            self._skip(guardian)
        for _ in range(counts.taken - 1):
            loop.pass_by()
        if counts.taken:
            self._take(guardian, whole=counts.calls > 1)
        for _ in range(counts.row):
            if self._skip(guardian):
                break  # the weights have gone back, and with them what is left to tell
        loop.traced.scale.fill_(loop.lr_scale)
        loop.look_at_graph()

    def _take(self, guardian: Guardian, *, whole: bool) -> None:
        """Account for the last step that moved the weights, and look at them.

        Args:
            guardian: Judges them.
            whole: Whether to look at all of them at once: in the steps that nobody saw, no part of
                the scan was looked at.
        """
        loop, steps = self._loop, self._loop.ledger.steps
        losses, signals = loop.signals.take()
        numbers = read_scalars([*losses, *guardian.start()])
        told = numbers[: len(losses)]
        loss = sum(told) / len(told) if told else None
        observation = Observation(loss=loss, signals=signals)
        sensed = Sensed() if loop.sensing is None else loop.sensing.join(steps)
        unjudged = replace(observation, loss=None)  # too late to leave its batch out
        suspect = whole or sensed.broken
        if not guardian.begun and (damage := guardian.damage()):
            verdict = guardian.decide_on(damage, steps)
            self._finish(guardian, verdict, observation, sensed)
            return
        verdict = guardian.decide(
            unjudged, numbers[len(told) :], steps, sensed.risen, suspect=suspect
        )
        if verdict.action is Action.SKIP or verdict.tames:
            verdict = guardian.tame_late(too_late(verdict))
        self._finish(guardian, verdict, observation, sensed)

    def _skip(self, guardian: Guardian) -> bool:
        """Account for a step that a graph left out; return whether the run has gone back."""
        verdict = guardian.decide_on((NOT_FINITE, *guardian.damage()), self._loop.ledger.steps)
        self._loop.signals.take()
        return self._finish(guardian, verdict, Observation(), Sensed())

    def _finish(
        self, guardian: Guardian, verdict: Verdict, observation: Observation, sensed: Sensed
    ) -> bool:
        if guardian.begun or all(f.scope is not Scope.STATE for f in verdict.findings):
            guardian.begin(self._loop.ledger.steps + (verdict.action is Action.TAKE))
        # A graph has kept the buffers already.
        self._loop.finish(verdict, observation, sensed, buffers=False)
        went_back = self._loop.verdict is not None and self._loop.verdict.rollback is not None
        if went_back:
            self._loop.traced.veto()
        return went_back
