"""From findings and history to one verdict. Plain Python, no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stableopt.errors import finite
from stableopt.types import Action, Response, Rollback, Scope, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stableopt.guard.options import Guard
    from stableopt.guard.ring import Ring, Slot
    from stableopt.types import Finding

STEPS_PER_ROLLBACK = 1_000
"""New steps that earn one more rollback."""

SPIKES = 5
"""Spikes that may be tamed or skipped at the start, and at most."""

STEPS_PER_SPIKE = 200
"""New steps that earn one more of them."""

_ROUNDING = 1e-9
"""By how much powers may differ from products."""

_NEW_NORMAL = "taken for the new normal, baselines start anew"


class Policy:
    """Skips what cannot be used, goes back from what is lost, and stops what only repeats.

    What is done about a cause is in one table (:mod:`stableopt.guard.responses`); of several
    findings the gravest answer counts. A batch that cannot be used is skipped, and goes back once
    ``max_skips`` in a row were. A spike alone never goes back, and what is done about spikes is
    done five times in a thousand steps at most: what comes more often is what training is made of,
    and is taken as it is. Rollbacks that follow each other belong to one episode, each more
    cautious than the one before:

    1. The newest snapshot (for a fault in the state also one that is not yet verified), the
       learning rate as it is, random states restored: a transient fault leaves no trace.
    2. The newest verified one, the learning rate times ``lr_backoff``, other randomness.
    3. The next older one, the learning rate lowered once more; and so on.

    A rollback for a risk or a rule begins with the second attempt's caution, because the same
    steps would lead to the same place.

    What is counted here is never rolled back.

    Args:
        guard: The limits.

    Attributes:
        lr_scale: Factor on every learning rate.
        skips_in_a_row: Steps skipped since the last one that was taken.
        attempts: Rollbacks of the episode that is open; 0 if none is.
        tokens: Rollbacks at hand.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.skips_in_a_row = 0
        self.attempts = 0
        self.tokens = guard.budget
        self.lr_scale = 1.0
        self._furthest = 0
        self._failed_at = -1
        self._progress = 0
        self._earned = 0
        self._spike_credit = SPIKES * STEPS_PER_SPIKE
        self._recovery: tuple[float, int] | None = None

    @property
    def spikes_left(self) -> int:
        """Spikes about which something may be done."""
        return self._spike_credit // STEPS_PER_SPIKE

    # decide: changes nothing

    def decide(
        self, findings: tuple[Finding, ...], *, step: int, ring: Ring, manual: str | None = None
    ) -> Verdict:
        """Turn what was found into a verdict.

        Args:
            findings: What is held against this step.
            step: Updates behind the weights.
            ring: The snapshots there are.
            manual: The reason of a rollback that the user asked for.
        """
        if manual is not None:
            target = next((s for s in ring.sound() if s.manual or s in ring.verified()), None)
            if target is not None:
                return self._manual(manual, findings, step, target)
        if not findings:
            return Verdict(action=Action.TAKE)
        cause = "; ".join(finding.message for finding in findings)
        response = max(map(self._guard.response_to, findings), key=lambda found: found.rank)
        if response is Response.STOP:
            return self._stop(f"{cause}; this stops the run", findings, step, ring)
        if response is Response.ROLL_BACK:
            return self._go_back(cause, findings, step, ring)
        spent = _has_spike(findings) and not self.spikes_left
        skips = [f for f in findings if self._guard.response_to(f) is Response.SKIP]
        if any(not (spent and finding.scope is Scope.SPIKE) for finding in skips):
            return self._skip(cause, findings, step, ring)
        if spent:
            more = f"more than {SPIKES} spikes in {SPIKES * STEPS_PER_SPIKE:,} steps are no faults"
            return self._take(f"{cause}; {more}: {_NEW_NORMAL}", findings, resets=True)
        return self._take(cause, findings)

    def _skip(self, cause: str, findings: tuple[Finding, ...], step: int, ring: Ring) -> Verdict:
        limit = self._guard.max_skips
        if self.skips_in_a_row < limit:
            reason = f"{cause}; skip {self.skips_in_a_row + 1} of at most {limit} in a row"
            return Verdict(action=Action.SKIP, reason=reason, findings=findings)
        row = f"{cause}; no more than {limit} steps in a row may be skipped (max_skips={limit})"
        if any(finding.scope is Scope.BATCH for finding in findings):
            return self._go_back(row, findings, step, ring)
        spikes = _has_spike(findings)
        taken = _NEW_NORMAL if spikes else "the step is taken"
        return self._take(f"{row}: {taken}", findings, resets=spikes)

    def _take(self, reason: str, findings: tuple[Finding, ...], *, resets: bool = False) -> Verdict:
        """Take the step; what is not skipped may still call for a smaller one, or for smaller ones.

        Args:
            reason: Why.
            findings: What was found.
            resets: Whether spikes are taken for data.
        """
        left = [f for f in findings if not (resets and f.scope is Scope.SPIKE)]
        asked = {self._guard.response_to(finding) for finding in left}
        told = Verdict(
            action=Action.TAKE,
            reason=reason,
            findings=findings,
            baseline_reset=resets,
            tames=Response.TAME in asked,
        )
        return self._back_off(told) if Response.BACK_OFF in asked else told

    def _back_off(self, told: Verdict) -> Verdict:
        scale = self.lr_scale * self._guard.lr_backoff
        lowest = self._guard.lr_backoff**self._guard.max_rollbacks
        if scale < lowest * (1 - _ROUNDING):
            low = f"the learning rate is as low as it may become (times {lowest:g})"
            return replace(told, reason=f"{told.reason}; {low}")
        return replace(told, reason=f"{told.reason}; learning rate times {scale:g}", backs_off=True)

    def _manual(
        self, reason: str, findings: tuple[Finding, ...], step: int, target: Slot
    ) -> Verdict:
        rollback = Rollback(
            from_step=step,
            to_step=target.step,
            attempt=0,
            lr_scale=self.lr_scale,
            restores_rng=True,
        )
        sentence = f"asked for by the user ({reason}); roll back to step {target.step}"
        return Verdict(
            action=Action.ROLL_BACK, reason=sentence, findings=findings, rollback=rollback
        )

    def _go_back(self, cause: str, findings: tuple[Finding, ...], step: int, ring: Ring) -> Verdict:
        scopes = {finding.scope for finding in findings}
        lost = Scope.STATE in scopes
        lowers = scopes <= {Scope.RISK, Scope.RULE, Scope.NOTICE}
        attempt = self.attempts + 1
        target = self._target(attempt, step, ring, lost=lost)
        obstacle = self._obstacle(attempt, target, ring)
        if target is None or obstacle:
            return self._stop(f"{cause}; {self._outside(findings)}{obstacle}", findings, step, ring)
        lowers |= attempt > 1
        scale = self.lr_scale * (self._guard.lr_backoff if lowers else 1.0)
        rollback = Rollback(
            from_step=step,
            to_step=target.step,
            attempt=attempt,
            lr_scale=scale,
            restores_rng=not lowers,
        )
        again = "it recurred at the same step, so it is no transient fault; "
        reason = (
            f"{cause}; {again if attempt > 1 and step == self._failed_at else ''}"
            f"{self._outside(findings)}"
            f"roll back from step {step} to {target.step}, attempt {attempt} of at most "
            f"{self._guard.max_rollbacks}, learning rate times {scale:g}"
        )
        return Verdict(action=Action.ROLL_BACK, reason=reason, findings=findings, rollback=rollback)

    def _outside(self, findings: tuple[Finding, ...]) -> str:
        """Return a hint where weights were restored in vain: the fault may be none of theirs."""
        if not self.attempts or any(f.scope is not Scope.BATCH for f in findings):
            return ""
        return (
            "it came back after the weights were restored: look at what is kept outside of the "
            "model, such as hidden states or running averages (opt.track() takes them), and at the "
            "data; "
        )

    def _target(self, attempt: int, step: int, ring: Ring, *, lost: bool) -> Slot | None:
        """Return the slot to restore: the more attempts, the older."""
        slots = ring.sound() if attempt == 1 and lost else ring.verified()
        # A snapshot of the very state that fails helps only if that state was damaged since.
        slots = [slot for slot in slots if slot.step < step + lost]
        return slots[min(max(0, attempt - 2), len(slots) - 1)] if slots else None

    def _obstacle(self, attempt: int, target: Slot | None, ring: Ring) -> str:
        """Return why there can be no rollback; empty if there can."""
        guard = self._guard
        if not ring.slots:
            return "there are no snapshots to go back to (slots=0)"
        if attempt > guard.max_rollbacks:
            return (
                f"{self.attempts} rollbacks did not help (max_rollbacks={guard.max_rollbacks})"
                if self.attempts
                else "rollbacks are not allowed (max_rollbacks=0)"
            )
        if self.tokens < 1:
            return (
                f"no rollback is left (budget={guard.budget}, and one more per "
                f"{STEPS_PER_ROLLBACK:,} new steps)"
            )
        return "" if target is not None else "there is no snapshot before it to go back to"

    def _stop(self, reason: str, findings: tuple[Finding, ...], step: int, ring: Ring) -> Verdict:
        newest = ring.best()
        rollback = None
        if newest is not None:
            rollback = Rollback(
                from_step=step,
                to_step=newest.step,
                attempt=self.attempts,
                lr_scale=self.lr_scale,
                restores_rng=False,
            )
        return Verdict(action=Action.STOP, reason=reason, findings=findings, rollback=rollback)

    # note: remember what became of a step

    def note(self, verdict: Verdict, step: int, *, endangered: bool = False) -> None:
        """Remember what became of a step.

        Args:
            verdict: What was done.
            step: Updates behind the weights before it was done.
            endangered: Whether the risk is one that is acted upon.
        """
        if verdict.action in (Action.TAKE, Action.SKIP) and not verdict.baseline_reset:
            spent = STEPS_PER_SPIKE * _has_spike(verdict.findings)
            self._spike_credit = max(0, self._spike_credit - spent)
        if verdict.action is Action.TAKE:
            if verdict.backs_off:
                self.lr_scale *= self._guard.lr_backoff
                self._recovery = (self.lr_scale, 0)
            unlike = verdict.backs_off or _has_spike(verdict.findings)
            self._note_taken(step, healthy=not (unlike or endangered))
        elif verdict.action is Action.SKIP:
            self.skips_in_a_row += 1
        elif verdict.action is Action.ROLL_BACK and verdict.rollback is not None:
            self._note_rollback(verdict.rollback)

    def _note_taken(self, step: int, *, healthy: bool) -> None:
        self.skips_in_a_row = 0
        new = max(0, step + 1 - self._progress)
        self._progress += new
        self._earned += new
        self._spike_credit = min(SPIKES * STEPS_PER_SPIKE, self._spike_credit + new)
        while self._earned >= STEPS_PER_ROLLBACK:
            self._earned -= STEPS_PER_ROLLBACK
            self.tokens = min(self._guard.budget, self.tokens + 1)
        if not healthy:
            return
        if self.attempts and step >= self._furthest + self._guard.cooldown:
            self.attempts = 0
            self._failed_at = -1
            self._recovery = (self.lr_scale, 0) if self.lr_scale < 1.0 else None
        if not self.attempts:
            self._recover()

    def _recover(self) -> None:
        """Bring the learning rate back, by the same factor every step."""
        steps = self._guard.lr_recovery
        if self._recovery is None or steps is None:
            return
        scale, done = self._recovery
        done += 1
        self.lr_scale = scale ** (1 - done / steps) if done < steps else 1.0
        self._recovery = (scale, done) if done < steps else None

    def _note_rollback(self, rollback: Rollback) -> None:
        if rollback.attempt == 0:
            return
        self.skips_in_a_row = 0  # what comes after it is judged anew
        self.attempts = rollback.attempt
        self.tokens -= 1
        self._furthest = max(self._furthest, rollback.from_step)
        self._failed_at = rollback.from_step
        self.lr_scale = rollback.lr_scale
        self._recovery = None

    # plain data

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is counted, as plain numbers, for a checkpoint."""
        scale, done = self._recovery or (0.0, 0)
        return {
            "skips_in_a_row": self.skips_in_a_row,
            "spike_credit": self._spike_credit,
            "attempts": self.attempts,
            "tokens": self.tokens,
            "lr_scale": self.lr_scale,
            "furthest": self._furthest,
            "failed_at": self._failed_at,
            "progress": self._progress,
            "earned": self._earned,
            "recovery_from": scale,
            "recovery_steps": done,
        }

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the counts of a checkpoint; what it lacks begins anew."""
        known = {**Policy(self._guard).state_dict(), **state}
        for value in known.values():
            finite(value)

        def assign() -> None:
            self.skips_in_a_row = known["skips_in_a_row"]
            self._spike_credit = known["spike_credit"]
            self.attempts = known["attempts"]
            self.tokens = min(known["tokens"], self._guard.budget)
            self.lr_scale = known["lr_scale"]
            self._furthest = known["furthest"]
            self._failed_at = known["failed_at"]
            self._progress = known["progress"]
            self._earned = known["earned"]
            begun = known["recovery_from"]
            self._recovery = (begun, known["recovery_steps"]) if begun else None

        return assign


def _has_spike(findings: tuple[Finding, ...]) -> bool:
    return any(finding.scope is Scope.SPIKE for finding in findings)
