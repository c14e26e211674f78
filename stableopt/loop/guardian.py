"""Behind every step: who judges it, who decides, who knows the way back."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stableopt.errors import ConfigError
from stableopt.guard.policy import Policy
from stableopt.health.advice import beyond_reach, vanishing_eps
from stableopt.health.judge import Judge
from stableopt.loop.tame import tame_gradients, tame_memory
from stableopt.sensors.signals import signals_of
from stableopt.snapshots.buffers import BufferShadow
from stableopt.snapshots.keeper import Keeper
from stableopt.snapshots.tracked import Tracked, forgive_overflow
from stableopt.triggers.rule_book import RuleBook
from stableopt.types import Action, RiskLevel, Scope, Verdict
from stableopt.update.learning_rate import scaled_lr
from stableopt.update.option_watch import OptionWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.health.spectra.sensing import Sensing
    from stableopt.transforms.chain import Transforming
    from stableopt.types import Finding, Observation, Rollback

logger = logging.getLogger("stableopt")


class Guardian:
    """Turns observations into verdicts, and carries out all but the step itself.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, and buffers to protect.
        options: The limits.
        sensing: What the sensors remember goes back with the weights.
        transforming: So does what transforms remember.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        options: Guard,
        sensing: Sensing | None,
        transforming: Transforming,
    ) -> None:
        self.options = options
        self._sensing = sensing
        self._transforming = transforming
        self.tracked = Tracked()
        self._optimizer = optimizer
        self._buffers = None if model is None else BufferShadow(model)
        self._judge = Judge(optimizer, model, self._buffers, options, self.tracked)
        self._policy = Policy(options)
        self._rules = RuleBook(options.rules)
        self._keeper = Keeper(optimizer, options, self._judge, self._buffers, self.tracked)
        self._watch = OptionWatch()
        self._suspect = False
        self._manual: str | None = None
        self._asked_by_scaler = 0
        self._asks: int | None = None
        self._scaled = False
        self._untold = True
        self._said: set[str] = set()
        self._say_what_is_known()

    @property
    def lr_scale(self) -> float:
        """Our factor on the learning rates."""
        return self._policy.lr_scale

    @property
    def calm(self) -> bool:
        """Whether no episode is open, and no rule holds or could not be asked."""
        return self._policy.attempts == 0 and self._rules.calm

    # the order of a step

    def start(self) -> list[float | Tensor]:
        """Return the scalars that :meth:`decide` needs read."""
        if self._asked_by_scaler:
            asks = self._asked_by_scaler
            self._asks = asks if self._asks is None else min(self._asks, asks)
        self._asked_by_scaler = 0
        return self._judge.start()

    def decide(
        self,
        observation: Observation,
        numbers: Sequence[float],
        step: int,
        risen: tuple[Finding, ...] = (),
        *,
        suspect: bool = False,
    ) -> Verdict:
        """Judge an observation and decide.

        Args:
            observation: What is known about the step.
            numbers: What :meth:`start` asked for.
            step: Updates behind the weights.
            risen: The risk, if it has risen; answered, as rules are, unless something is wrong
                at once.
            suspect: Whether somebody has seen a weight that is not finite.
        """
        findings = self._judge.findings(observation, numbers)
        if (self._suspect or (suspect and self._judge.accepted)) and not findings:
            findings = self._judge.damage()
        self._suspect = False
        if findings:
            return self.decide_on(findings, step)
        told = self._judge.notices(numbers)
        ruled = self._rules.judge(signals_of(observation))
        return self.decide_on((*told, *ruled, *risen), step)

    def decide_on(self, findings: tuple[Finding, ...], step: int) -> Verdict:
        """Decide, given what is held against a step."""
        ring = self._keeper.ring
        verdict = self._policy.decide(findings, step=step, ring=ring, manual=self._manual)
        if verdict.action is Action.STOP:
            causes = "; ".join([verdict.reason, *vanishing_eps(self._optimizer)])
            return replace(verdict, reason=causes)
        return verdict

    def suspect(self) -> None:
        """Have everything looked at in the next step."""
        self._suspect = True

    def nonfinite(self, observation: Observation) -> tuple[Finding, ...]:
        """Return what is not finite at another point of the same step, and spoils it."""
        found = self._judge.nonfinite(observation)
        return tuple(finding for finding in found if finding.scope is Scope.BATCH)

    def damage(self) -> tuple[Finding, ...]:
        """Look at all weights, state and buffers; return what is wrong with them."""
        return self._judge.damage()

    def adapt(self) -> None:
        """See whether parameters have come, left or been replaced since the last call."""
        if not self._judge.has_same_parameters():
            self._keeper.adapt(self._judge.meet())
            self._say_what_is_known()

    def begin(self, step: int) -> None:
        """Make sure that there is a way back to what is there after ``step`` updates."""
        self._keeper.begin(step, self._remembered)

    def pass_by(self, step: int) -> None:
        """Count a step that was taken after ``step`` updates, and that nobody saw."""
        self._policy.note(Verdict(action=Action.TAKE), step)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Surround the inner step: there is a way back from it, and our factor on its lr."""
        self.begin(step)
        with ExitStack() as stack:
            stack.enter_context(scaled_lr(self._optimizer, self._policy.lr_scale))
            stack.enter_context(self._watch.watch(self._optimizer))
            self._judge.updates.before()
            yield
            self._judge.updates.after()

    def go_back(self, verdict: Verdict, step: int) -> Verdict:
        """Restore the snapshot that ``verdict`` names; return what was done in the end.

        A snapshot with a fault in it is given up, and the policy asked again.
        """
        goes_back, given_up = verdict.rollback is not None, 0
        while verdict.rollback is not None:
            numbers = self._watch.numbers
            restored = self._keeper.restore(verdict.rollback, self._goes_back, numbers)
            if restored is not None:
                self._remember(restored.baselines)
                self._judge.restart()
                for scaler in self.tracked.scalers:
                    forgive_overflow(scaler)
                return _with(verdict, verdict.rollback, restored.left_behind)
            verdict, given_up = self.decide_on(verdict.findings, step), given_up + 1
        if given_up and verdict.reason:
            several = "s were" if given_up > 1 else " was"
            lost = f"{given_up} snapshot{several} found damaged and given up"
            verdict = replace(verdict, reason=f"{verdict.reason} ({lost})")
        if goes_back and verdict.action is Action.TAKE:
            # It was asked for by hand, and there is nothing left to go back to.
            reason = "no snapshot is left for the rollback that was asked for; the batch is skipped"
            return replace(verdict, action=Action.SKIP, reason=reason)
        return verdict

    def settle(self, verdict: Verdict, observation: Observation, step: int) -> None:
        """Remember what became of a step, and take a snapshot if one is due.

        Args:
            verdict: What was done.
            observation: What was known.
            step: Updates behind the weights before it.
        """
        self._rules.settle(taken=verdict.action is Action.TAKE)
        endangered = self._endangered() or _is_symptom(observation)
        self._policy.note(verdict, step, endangered=endangered)
        if self._manual is not None and verdict.action is not Action.ROLL_BACK:
            logger.warning("there is no snapshot yet: the rollback that was asked for is dropped")
        self._manual = None
        if verdict.action is Action.TAKE:
            self._settle_taken(verdict, observation, step)
        elif verdict.rollback is None and _is_spike(verdict):
            self._judge.spikes.note_spike()

    def tame(
        self, verdict: Verdict, observation: Observation, *, own: bool
    ) -> tuple[Verdict, Observation]:
        """Scale down the gradients that stand out; return what was done, and the norms after it.

        Args:
            verdict: What was decided.
            observation: What was measured.
            own: Whether the optimizer evaluates the closure again, and steps on other gradients.
        """
        said = tame_memory(self._optimizer, verdict.findings)
        tamed = observation
        if not own:
            tamed, done = tame_gradients(self._optimizer, observation, verdict.findings)
            said += done
        told = replace(verdict, tames=bool(said), reason="; ".join([verdict.reason, *said]))
        return told, tamed

    def tame_late(self, verdict: Verdict) -> Verdict:
        """Do what can still be done once the step has been taken."""
        said = tame_memory(self._optimizer, verdict.findings)
        if not said:
            return replace(verdict, tames=False)
        return replace(verdict, reason="; ".join([verdict.reason, *said]))

    def keep_buffers(self, verdict: Verdict) -> None:
        """Remember the buffers of a step that was taken, or put them back if it was left out.

        A batch that was tamed has no more influence on running statistics than on weights.
        """
        if self._buffers is None or verdict.rollback is not None:
            return
        if verdict.action is Action.TAKE and not verdict.tames:
            self._buffers.taken()
        else:
            self._buffers.left_out()

    def keep_buffers_if(self, sound: Tensor) -> None:
        """The same for a step whose fate is known on the device alone."""
        if self._buffers is not None:
            self._buffers.taken_if(sound)

    def buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Return copies of the model's buffers, and what they are copies of."""
        return [] if self._buffers is None else self._buffers.pairs()

    @property
    def begun(self) -> bool:
        """Whether what training begins with has been looked at."""
        return self._judge.accepted

    def _settle_taken(self, verdict: Verdict, observation: Observation, step: int) -> None:
        if verdict.baseline_reset:
            self._judge.spikes.accept()
            return
        spikes = tuple(f for f in verdict.findings if f.scope is Scope.SPIKE)
        if spikes:
            self._judge.spikes.note_spike()
        else:
            self._judge.learn(observation)
        if not (spikes or self._endangered() or _is_symptom(observation)):
            self._keeper.ring.healthy(step)
        risks = [finding for finding in verdict.findings if finding.scope is Scope.RISK]
        now = self.options.answers_risk and bool(risks)
        found = self._keeper.after(step + 1, self._remembered, now=now)
        self._suspect = bool(found)
        if self._untold and self._keeper.taken > 1:
            self._tell_untracked()

    def _endangered(self) -> bool:
        """Tell whether sensors or rules see a danger that this guard acts upon."""
        if self._rules.endangered:
            return True
        assessment = None if self._sensing is None else self._sensing.assessment
        if assessment is None or not self.options.answers_risk:
            return False
        return assessment.level.rank >= RiskLevel.DANGER.rank

    def _remembered(self) -> dict[str, Any]:
        """Return what goes back together with the weights."""
        return {
            "spikes": self._judge.spikes.state_dict(),
            "rules": self._rules.state_dict(),
            "sensing": {} if self._sensing is None else self._sensing.state_dict(),
            "transforms": self._transforming.state_dict(),
        }

    def _remember(self, baselines: Mapping[str, Any]) -> None:
        self._judge.spikes.load_state_dict(baselines["spikes"])
        self._rules.load_state_dict(baselines["rules"])
        if self._sensing is not None:
            self._sensing.load_state_dict(baselines["sensing"])
        self._transforming.load_state_dict(baselines["transforms"])

    def _say_what_is_known(self) -> None:
        """Say what no snapshot holds, and what cannot end well, each once."""
        for sentence in (*beyond_reach(self._optimizer), *vanishing_eps(self._optimizer)):
            if sentence not in self._said:
                self._said.add(sentence)
                logger.warning(sentence)

    def _goes_back(self, option: str) -> bool:
        return self.tracked.has_scheduler or option in self._watch.moved

    def _tell_untracked(self) -> None:
        """Say once what a rollback would leave as it is, where that can be known."""
        self._untold = False
        self._say_what_is_known()
        forgotten = []
        scheduled = any("initial_lr" in group for group in self._optimizer.param_groups)
        if scheduled and not self.tracked.has_scheduler:
            forgotten.append("scheduler")
        if self._scaled and not self.tracked.scalers:
            forgotten.append("scaler")
        forgotten = [name for name in forgotten if name not in self.tracked.declined]
        if forgotten:
            names = ", ".join(f"{name}={name}" for name in forgotten)
            logger.warning(
                "there seems to be a %s that is not tracked: a rollback leaves it as it is; "
                "call opt.track(%s) to have it go back with the weights",
                " and a ".join(forgotten),
                names,
            )

    # requests

    def want_snapshot(self) -> None:
        """Take a snapshot after the next step that is taken, and keep it."""
        self._require_snapshots("snapshot()")
        self._keeper.wanted = True

    def want_rollback(self, reason: str) -> None:
        """Go back at the next step, whatever it brings."""
        self._require_snapshots("rollback()")
        self._manual = reason

    def _require_snapshots(self, what: str) -> None:
        if not self._keeper.ring.slots:
            raise ConfigError(f"slots=0 leaves {what} nothing to work with: use Guard(slots=3)")

    def scaler_must_call(self) -> bool:
        """Tell a gradient scaler, which asks before it decides, whether to call regardless.

        A scaler that finds an overflow does not call the optimizer. If weights are not finite
        it would find one every time, and the run would be lost without a word: when it asks
        more often than it has before any step (torch once, Lightning three times), the weights are
        looked at.
        """
        self._scaled = True
        self._asked_by_scaler += 1
        if self._buffers is not None and self._buffers.spoilt():
            # The scaler will skip this batch: what it did to the running statistics stays.
            self._buffers.left_out()
        return self._asked_by_scaler > (self._asks or 1) and bool(self._judge.damage())

    # checkpoints, copies and summaries

    def close(self) -> None:
        """Take the hooks off the model."""
        if self._buffers is not None:
            self._buffers.close()

    def __getstate__(self) -> dict[str, Any]:
        """Let copies tell anew what is not tracked: they track nothing."""
        return {**self.__dict__, "_untold": True, "_manual": None}

    def accept(self) -> None:
        """Begin anew with what is there now: a checkpoint was loaded."""
        if self._buffers is not None:
            self._buffers.refresh()
        self._keeper.forget()
        self._judge.forget()
        self._suspect = False

    def state_dict(self) -> dict[str, Any]:
        """Return what is counted and remembered, as plain data."""
        return {
            "policy": self._policy.state_dict(),
            "baselines": self._judge.spikes.state_dict(),
            "rules": self._rules.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what a checkpoint counted and remembered; what it lacks starts anew."""
        self._policy.load_state_dict(state.get("policy", {}))
        self._rules.load_state_dict(state.get("rules", {}))
        self._judge.spikes.reset()
        if "baselines" in state:
            self._judge.spikes.load_state_dict(state["baselines"])

    def summary(self) -> dict[str, Any]:
        """Return what is kept and counted, as plain values."""
        return {
            "lr_scale": self._policy.lr_scale,
            "rollbacks_left": self._policy.tokens,
            "tracked": list(self.tracked.names),
            "snapshots": self._keeper.summary(),
        }


def _is_spike(verdict: Verdict) -> bool:
    return all(finding.scope is Scope.SPIKE for finding in verdict.findings)


def _is_symptom(observation: Observation) -> bool:
    """Return whether there is a loss that is not finite: nothing is called healthy by it."""
    return observation.loss is not None and not math.isfinite(observation.loss)


def _with(verdict: Verdict, rollback: Rollback, left_behind: tuple[str, ...]) -> Verdict:
    """Return ``verdict``, saying what has not gone back."""
    if not left_behind:
        return verdict
    names = ", ".join(left_behind)
    reason = f"{verdict.reason}; {names} raised and has NOT gone back (see the log)"
    return replace(verdict, reason=reason, rollback=replace(rollback, left_behind=left_behind))
