"""JUDGE and DECIDE: from an attempt to a verdict."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from stableopt.guard.policy import Policy
from stableopt.health.advice import vanishing_eps
from stableopt.health.judge import Alone
from stableopt.loop.agree import Agreement
from stableopt.loop.attempt import Fate
from stableopt.loop.tame import tame_memory
from stableopt.sensors.signals import signals_of
from stableopt.triggers.rule_book import RuleBook
from stableopt.types import Action, RiskLevel, Scope, Verdict

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.health.judge import Judge
    from stableopt.health.spectra.sensing import Sensing
    from stableopt.loop.attempt import Attempt
    from stableopt.ranks.group import Ranks
    from stableopt.ranks.replicas import Replicas
    from stableopt.snapshots.keeper import Keeper
    from stableopt.telemetry.ledger import Ledger
    from stableopt.transforms.chain import Transforming
    from stableopt.types import Finding, Observation

logger = logging.getLogger("stableopt")

_TAKE = Verdict(action=Action.TAKE)


class Decider:
    """Asks the judge, the rules and the policy.

    Args:
        optimizer: The inner optimizer.
        guard: The limits.
        judge: The detectors.
        keeper: Has the snapshots that a verdict may name.
        sensing: The sensors, whose risk may be acted upon.
        ranks: Those that take one verdict.
        ledger: Has the clocks.
        replicas: Compares the copies of weights on other ranks.
        transforms: Read signals.

    Attributes:
        agree: Tells all ranks what each of them knows.
        detectors: The judge.
        answers_risk: Whether a risk that rises is answered by more than a warning.
        policy: Counts what was done.
        rules: What signals have to be like.
        manual: The reason of a rollback that the user asked for.
        suspicious: Whether everything is looked at in the next step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        guard: Guard,
        judge: Judge,
        keeper: Keeper,
        sensing: Sensing | None,
        ranks: Ranks,
        ledger: Ledger,
        replicas: Replicas,
        transforms: Transforming,
    ) -> None:
        self._optimizer = optimizer
        self.detectors = judge
        self._keeper = keeper
        self._sensing = sensing
        self.answers_risk = guard.answers_risk
        self.policy = Policy(guard)
        self.rules = RuleBook(guard.rules)
        self.manual: str | None = None
        self.suspicious = False
        self.replicas = replicas
        # Notices and risks that had to wait, because there were faults.
        self._unreported: tuple[tuple[Finding, ...], tuple[Finding, ...]] = ((), ())
        self.agree = Agreement(
            optimizer, ranks, ledger, self.policy, keeper, self.rules, transforms
        )

    def judge(self, attempt: Attempt, step: int) -> Verdict:
        """Return what is to be done about an attempt.

        Args:
            attempt: What is known.
            step: Steps taken before it.
        """
        if attempt.found:
            verdict = self.decide((*attempt.found, *self.detectors.damage()), step)
        elif attempt.of_graph and not self.detectors.accepted and (lost := self.detectors.damage()):
            verdict = self.decide(lost, step)
        else:
            verdict = self._judge_observed(attempt, step)
        return self._as_it_came(verdict, attempt)

    def ask(self, attempt: Attempt) -> None:
        """Replace what this rank knows of an attempt by what all ranks know.

        Raises:
            RanksError: A rank is missing, or they are out of step.
        """
        if attempt.of_graph:  # too late to leave its batch out
            attempt.observation = replace(attempt.observation, loss=None)
        alone = self.detectors.alone(attempt.observation, attempt.numbers)
        sensing, keeper = self._sensing, self._keeper
        looks = alone.faulty or alone.notices or self._unreported[0] or self.suspicious
        flags = {
            "urgent": bool(alone.findings),
            "looks": bool(looks),
            "wants": keeper.wanted,
            "manual": self.manual is not None,
            "postpones": sensing is not None and sensing.over_budget,
        }
        self.suspicious = False
        known = self.agree(attempt.observation, flags)
        attempt.observation, attempt.alone, attempt.flags = known.observation, alone, known.flags
        keeper.wanted = "wants" in known.flags
        if sensing is not None:
            sensing.sharing.postpones = "postpones" in known.flags
        if "manual" in known.flags:
            self.manual = self.agree.word(self.manual)

    def _judge_observed(self, attempt: Attempt, step: int) -> Verdict:
        if attempt.alone is None:
            self.ask(attempt)
        alone, flags = attempt.alone or Alone(), attempt.flags
        parted = self.replicas.step()  # every rank finds the same
        noticed, risen = self._unreported
        noticed, risen = (*noticed, *alone.notices), (*risen, *attempt.sensed.risen)
        unusual: tuple[Finding, ...] = ()
        if "urgent" not in flags:
            unusual = self.detectors.unusual(attempt.observation)
        if not (alone.findings or unusual or alone.faulty):
            self.detectors.learn_part(attempt.numbers)
        faults = (*alone.findings, *unusual)
        suspicious = attempt.scans_all or attempt.sensed.broken
        looks = "looks" in flags or (suspicious and self.detectors.accepted)
        if unusual or parted or looks or "urgent" in flags:
            faults, noticed = self.agree.words((*faults, *self.detectors.damage()), noticed)
        faults += tuple(finding for finding in parted if finding.scope is Scope.STATE)
        noticed += tuple(finding for finding in parted if finding.scope is not Scope.STATE)
        if faults:
            verdict = self.decide(faults, step)
            kept = (noticed, risen) if verdict.rollback is None else ((), ())
        else:
            ruled = self.rules.judge(signals_of(attempt.observation))
            verdict = self.decide((*noticed, *ruled, *risen), step)
            kept = ((), risen) if verdict.action is Action.SKIP else ((), ())
        self._unreported = kept
        return verdict

    def decide(self, findings: tuple[Finding, ...], step: int) -> Verdict:
        """Return what is to be done about findings."""
        if not findings and self.manual is None:
            return _TAKE
        ring = self._keeper.ring
        verdict = self.policy.decide(findings, step=step, ring=ring, manual=self.manual)
        if verdict.action is Action.STOP:
            causes = "; ".join([verdict.reason, *vanishing_eps(self._optimizer)])
            return replace(verdict, reason=causes)
        return verdict

    def _as_it_came(self, verdict: Verdict, attempt: Attempt) -> Verdict:
        """Return the verdict on a step that may have been taken, or left out, already."""
        if attempt.fate is Fate.TAKEN and (verdict.action is Action.SKIP or verdict.tames):
            verdict = too_late(verdict)
            done = tame_memory(self._optimizer, verdict.findings)
            return replace(verdict, tames=bool(done), reason="; ".join([verdict.reason, *done]))
        if attempt.fate is Fate.LEFT_OUT and verdict.action is Action.TAKE:
            why = verdict.reason or "the norm of the gradients overflows"
            reason = f"{why}; the device has left the step out"
            return Verdict(action=Action.SKIP, reason=reason, findings=verdict.findings)
        return verdict

    def spoils(self, observation: Observation) -> tuple[Finding, ...]:
        """Return what is not finite at another point of the same step, and spoils it."""
        found = self.detectors.nonfinite(observation)
        return tuple(finding for finding in found if finding.scope is Scope.BATCH)

    def note(self, observation: Observation, verdict: Verdict, step: int) -> bool:
        """Remember what became of a step; return whether it counts as a healthy one.

        Args:
            observation: What was known.
            verdict: What was done.
            step: Steps taken before it.
        """
        taken, spikes = verdict.action is Action.TAKE, self.detectors.spikes
        self.rules.settle(taken=taken)
        # A loss that is not finite is a symptom: nothing is called healthy by it.
        loss = observation.loss
        endangered = self.endangered or (loss is not None and not math.isfinite(loss))
        self.policy.note(verdict, step, endangered=endangered)
        if self.manual is not None and verdict.action is not Action.ROLL_BACK:
            logger.warning("there is no snapshot yet: the rollback that was asked for is dropped")
        self.manual = None
        if verdict.baseline_reset:
            spikes.accept()
            return False
        spiked = any(finding.scope is Scope.SPIKE for finding in verdict.findings)
        if not taken:
            if verdict.rollback is None and all(f.scope is Scope.SPIKE for f in verdict.findings):
                spikes.note_spike()
            return False
        if spiked:
            spikes.note_spike()
        else:
            self.detectors.learn(observation)
        return not (spiked or endangered)

    @property
    def calm(self) -> bool:
        """Whether no episode is open, and no rule holds or could not be asked."""
        return self.policy.attempts == 0 and self.rules.calm

    @property
    def endangered(self) -> bool:
        """Whether sensors or rules see a danger that this guard acts upon."""
        if self.rules.endangered:
            return True
        assessment = None if self._sensing is None else self._sensing.assessment
        if assessment is None or not self.answers_risk:
            return False
        return assessment.level.rank >= RiskLevel.DANGER.rank

    def __getstate__(self) -> dict[str, object]:
        """Give copies no request of the user: it was about the original."""
        return {**self.__dict__, "manual": None}


def unjudged(risen: tuple[Finding, ...]) -> Verdict:
    """Return the verdict where there is no guard: every step is taken."""
    if not risen:
        return _TAKE
    reason = "; ".join(finding.message for finding in risen)
    return Verdict(action=Action.TAKE, reason=reason, findings=risen)


def too_late(verdict: Verdict) -> Verdict:
    """Return a verdict to skip or tame a step that has been taken as what it comes to."""
    found = "; ".join(finding.message for finding in verdict.findings)
    what = "tame" if verdict.tames else "skip"
    reason = f"{found or verdict.reason}: too late to {what} it, the step has been taken"
    if all(finding.kind == "first_gradient" for finding in verdict.findings):
        reason = verdict.reason  # it is about an earlier step
    return replace(verdict, action=Action.TAKE, reason=reason)
