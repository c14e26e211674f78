"""From findings and history to one verdict. Plain Python, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
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

_NEW_NORMAL = "accepted as the new normal, and the baselines start again"


@dataclass(kw_only=True, eq=False)
class Counts:
    """What the policy counts, as checkpoints hold it. Never rolled back.

    Attributes:
        skips_in_a_row: Steps skipped since the last one that was taken.
        spike_credit: Steps that are left for responses to spikes, ``STEPS_PER_SPIKE`` for each.
        attempts: Rollbacks in the current episode; 0 if there is none.
        tokens: Rollbacks left.
        lr_scale: Factor on every learning rate.
        furthest: The furthest step that failed in this episode.
        failed_at: The step that failed last; -1 if none did in this episode.
        progress: The furthest step reached.
        earned: New steps that count towards the next rollback.
        recovery_from: Factor from which the learning rate is raised again; 0 if it is not.
        recovery_steps: Steps of that so far.
    """

    skips_in_a_row: int = 0
    spike_credit: int
    attempts: int = 0
    tokens: int
    lr_scale: float = 1.0
    furthest: int = 0
    failed_at: int = -1
    progress: int = 0
    earned: int = 0
    recovery_from: float = 0.0
    recovery_steps: int = 0


class Policy(Counts):
    """Decides whether a step is taken or skipped, a snapshot restored, or the run stopped.

    The response to each cause is in one table (:mod:`stableopt.guard.responses`); of several
    findings the most severe response counts. A batch that cannot be used is skipped; after
    ``max_skips`` skips in a row, the next one is answered by a rollback. A spike alone never causes
    a rollback, and there are at most five responses to spikes in a thousand steps: spikes that are
    more frequent are treated as normal data. Rollbacks that follow each other form one episode,
    each more cautious than the one before:

    1. The newest snapshot (for a fault in the state also one that is not yet verified), the
       learning rate unchanged, random states restored: a transient fault leaves no trace.
    2. The newest verified one, the learning rate times ``lr_backoff``, other randomness.
    3. The next older one, the learning rate lowered once more; and so on.

    A rollback for a risk or a rule starts as cautiously as a second attempt, because repeating
    the same steps would lead to the same state.

    Args:
        guard: The limits.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__(tokens=guard.budget, spike_credit=SPIKES * STEPS_PER_SPIKE)
        self._guard = guard

    @property
    def spikes_left(self) -> int:
        """Spikes that may still be tamed or skipped."""
        return self.spike_credit // STEPS_PER_SPIKE

    # decide: changes nothing

    def decide(
        self, findings: tuple[Finding, ...], *, step: int, ring: Ring, manual: str | None = None
    ) -> Verdict:
        """Return the verdict on a step.

        Args:
            findings: What the detectors found.
            step: Steps taken so far.
            ring: The snapshots.
            manual: The reason of a rollback that the user asked for.
        """
        if manual is not None:
            target = next((s for s in ring.sound() if s.manual or s in ring.verified()), None)
            if target is not None:
                return Verdict(
                    action=Action.ROLL_BACK,
                    reason=f"asked for by the user ({manual}); roll back to step {target.step}",
                    findings=findings,
                    rollback=self._rollback(step, target, 0, restores_rng=True),
                )
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
            more = f"more than {SPIKES} spikes in {SPIKES * STEPS_PER_SPIKE:,} steps"
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
        """Take the step, with tamed gradients or a lower learning rate if a response asks for it.

        Args:
            reason: Why.
            findings: What the detectors found.
            resets: Whether spikes are treated as normal data from here on.
        """
        left = [f for f in findings if not (resets and f.scope is Scope.SPIKE)]
        asked = {self._guard.response_to(finding) for finding in left}
        verdict = Verdict(
            action=Action.TAKE,
            reason=reason,
            findings=findings,
            baseline_reset=resets,
            tames=Response.TAME in asked,
        )
        if Response.BACK_OFF not in asked:
            return verdict
        scale = self.lr_scale * self._guard.lr_backoff
        lowest = self._guard.lr_backoff**self._guard.max_rollbacks
        if scale < lowest * (1 - _ROUNDING):
            low = f"the learning rate is at its lowest already (times {lowest:g})"
            return replace(verdict, reason=f"{reason}; {low}")
        return replace(verdict, reason=f"{reason}; learning rate times {scale:g}", backs_off=True)

    def _rollback(
        self, step: int, to: Slot, attempt: int, *, restores_rng: bool, lr_factor: float = 1.0
    ) -> Rollback:
        return Rollback(
            from_step=step,
            to_step=to.step,
            attempt=attempt,
            lr_scale=self.lr_scale * lr_factor,
            restores_rng=restores_rng,
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
        factor = self._guard.lr_backoff if lowers else 1.0
        rollback = self._rollback(step, target, attempt, restores_rng=not lowers, lr_factor=factor)
        again = "it recurred at the same step, so it is no transient fault; "
        reason = (
            f"{cause}; {again if attempt > 1 and step == self.failed_at else ''}"
            f"{self._outside(findings)}"
            f"roll back from step {step} to {target.step}, attempt {attempt} of at most "
            f"{self._guard.max_rollbacks}, learning rate times {rollback.lr_scale:g}"
        )
        return Verdict(action=Action.ROLL_BACK, reason=reason, findings=findings, rollback=rollback)

    def _outside(self, findings: tuple[Finding, ...]) -> str:
        """Return a hint after a rollback that did not help: the fault may be outside the model."""
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
            return "there are no snapshots to restore (slots=0)"
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
        return "" if target is not None else "there is no earlier snapshot to restore"

    def _stop(self, reason: str, findings: tuple[Finding, ...], step: int, ring: Ring) -> Verdict:
        newest, rollback = ring.best(), None
        if newest is not None:
            rollback = self._rollback(step, newest, self.attempts, restores_rng=False)
        return Verdict(action=Action.STOP, reason=reason, findings=findings, rollback=rollback)

    # note: count what was done

    def note(self, verdict: Verdict, step: int, *, endangered: bool = False) -> None:
        """Count what was done about a step.

        Args:
            verdict: What was done.
            step: Steps taken before it was done.
            endangered: Whether a risk or a rule with a response holds.
        """
        if verdict.action in (Action.TAKE, Action.SKIP) and not verdict.baseline_reset:
            spent = STEPS_PER_SPIKE * _has_spike(verdict.findings)
            self.spike_credit = max(0, self.spike_credit - spent)
        if verdict.action is Action.TAKE:
            if verdict.backs_off:
                self.lr_scale *= self._guard.lr_backoff
                self.recovery_from, self.recovery_steps = self.lr_scale, 0
            unlike = verdict.backs_off or _has_spike(verdict.findings)
            self._note_taken(step, healthy=not (unlike or endangered))
        elif verdict.action is Action.SKIP:
            self.skips_in_a_row += 1
        elif verdict.action is Action.ROLL_BACK and verdict.rollback is not None:
            self._note_rollback(verdict.rollback)

    def _note_taken(self, step: int, *, healthy: bool) -> None:
        self.skips_in_a_row = 0
        new = max(0, step + 1 - self.progress)
        self.progress += new
        self.earned += new
        self.spike_credit = min(SPIKES * STEPS_PER_SPIKE, self.spike_credit + new)
        while self.earned >= STEPS_PER_ROLLBACK:
            self.earned -= STEPS_PER_ROLLBACK
            self.tokens = min(self._guard.budget, self.tokens + 1)
        if not healthy:
            return
        if self.attempts and step >= self.furthest + self._guard.cooldown:
            self.attempts, self.failed_at = 0, -1
            self.recovery_from = self.lr_scale if self.lr_scale < 1.0 else 0.0
            self.recovery_steps = 0
        if not self.attempts and self.recovery_from and self._guard.lr_recovery is not None:
            self._recover(self._guard.lr_recovery)

    def _recover(self, steps: int) -> None:
        """Raise the learning rate again, by the same factor every step."""
        self.recovery_steps += 1
        if self.recovery_steps < steps:
            self.lr_scale = self.recovery_from ** (1 - self.recovery_steps / steps)
        else:
            self.lr_scale, self.recovery_from, self.recovery_steps = 1.0, 0.0, 0

    def _note_rollback(self, rollback: Rollback) -> None:
        if rollback.attempt == 0:
            return
        self.skips_in_a_row = 0  # as many may be skipped again
        self.attempts = rollback.attempt
        self.tokens -= 1
        self.furthest = max(self.furthest, rollback.from_step)
        self.failed_at = rollback.from_step
        self.lr_scale = rollback.lr_scale
        self.recovery_from, self.recovery_steps = 0.0, 0

    # plain data

    def state_dict(self) -> dict[str, Any]:
        """Return all counts, as plain numbers, for a checkpoint."""
        return asdict(self)

    def prepare(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Return what assigns the counts of a checkpoint; those it lacks start again."""
        new = asdict(Policy(self._guard))
        counts = {name: finite(state.get(name, start)) for name, start in new.items()}
        if any(value < -(name == "failed_at") for name, value in counts.items()):
            raise ValueError(f"{counts} must be at least 0")
        counts["tokens"] = min(counts["tokens"], self._guard.budget)
        return partial(vars(self).update, counts)


def _has_spike(findings: tuple[Finding, ...]) -> bool:
    return any(finding.scope is Scope.SPIKE for finding in findings)
