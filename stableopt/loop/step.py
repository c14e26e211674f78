"""The order of a step: observe, judge, decide, act, record."""

from __future__ import annotations

import logging
import math
import sys
import time
import weakref
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stableopt.errors import DivergenceError
from stableopt.health.spectra.sensing import Sensed, Sensing
from stableopt.health.stability import COOLDOWN, Stability
from stableopt.loop.guardian import Guardian
from stableopt.loop.lagged import LaggedStep
from stableopt.loop.settlement import Settlement
from stableopt.runtime.scalars import read_scalars
from stableopt.runtime.storage import has_data
from stableopt.sensors.gradients import measure_gradients
from stableopt.sensors.signals import Signals, loss_of, summarize_signals
from stableopt.snapshots.state_copy import StateCopy
from stableopt.telemetry.ledger import Ledger
from stableopt.telemetry.setup import hyperparameters
from stableopt.telemetry.summary import summarize
from stableopt.transforms.chain import Transforming
from stableopt.types import Action, Event, Finding, Observation, RiskLevel, Scope, Verdict
from stableopt.update.closures import Replay, call_step, requires_closure, takes_closure
from stableopt.update.compiled import CompiledUpdate
from stableopt.update.learning_rate import is_priming, learning_rates
from stableopt.update.traced import TracedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.sensors import Sensors
    from stableopt.telemetry.dispatch import Dispatcher
    from stableopt.transforms import Transform
    from stableopt.types import Act

logger = logging.getLogger("stableopt")


class StepLoop:
    """One call is one step of the inner optimizer, or the decision not to take it.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, and buffers to protect.
        sensors: What is measured between steps; ``None`` for nothing.
        guard: Its options; ``None`` takes every step unjudged.
        transforms: What changes gradients and weights in a step that is taken, in order; those
            that parameter groups bring come after them.
        telemetry: Where events go.
        compiles: Options of ``torch.compile`` for the inner update; ``None`` not to compile it.
        transforms_of: Returns the transforms that a parameter group has brought.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None,
        sensors: Sensors | None,
        guard: Guard | None,
        transforms: Sequence[Transform],
        telemetry: Dispatcher | None,
        compiles: Mapping[str, Any] | None = None,
        transforms_of: Callable[[Mapping[str, Any]], Sequence[Transform]],
    ) -> None:
        self.optimizer = optimizer
        self._transforms_of = transforms_of
        self.takes_closure = takes_closure(optimizer)
        self._evaluates_again = requires_closure(optimizer)
        self._first_closure = True
        self._may_undo = False
        self._hyperparameters = hyperparameters(optimizer)
        self.telemetry = telemetry
        self.ledger = Ledger()
        self.signals = Signals()
        self.verdict: Verdict | None = None
        self.called = False
        self.skips_losses = guard is not None and guard.skips_losses
        acts = guard is not None and guard.answers_risk
        self.sensing = None if sensors is None else Sensing(optimizer, model, sensors, acts=acts)
        self.transforming = Transforming(optimizer, model, self.sensing)
        self.transforming.add(transforms)
        self.guardian = None
        if guard is not None:
            self.guardian = Guardian(optimizer, model, guard, self.sensing, self.transforming)
        self.stability = Stability(COOLDOWN if guard is None else guard.cooldown)
        self.traced = TracedStep(optimizer)
        self._told_untraced = self._told_unsettled = False
        self._unanswered: tuple[Finding, ...] = ()
        self._before = StateCopy()
        lags = guard is not None and guard.sync == "lagged"
        self.compiled = None
        if compiles is not None:
            take = self.traced if lags and not self.traced.obstacle else None
            self.compiled = CompiledUpdate(optimizer, compiles, take)
        self.lagged = LaggedStep(self) if lags else None
        self.adopt_group_transforms()
        self.look_at_graph()
        if telemetry is not None:
            telemetry.begin(_weakly(self.close))
            telemetry.send_summary(self.summary())

    def __call__(self, closure: Callable[[], Any] | None) -> Any:
        """Run one step; see the module for its order."""
        self.called = True
        if not self._has_data():
            return call_step(self.optimizer, closure)
        if self.guardian is not None:
            self.guardian.adapt()
        if self.lagged is not None and self.lagged.is_ready(self):
            return self.lagged(self, closure)
        self.settle()
        loss = self.evaluate(closure)
        observation, numbers = self._observe(loss)
        told = closure is not None or observation.loss is not None
        if not told and is_priming(self.optimizer, _norm(observation)):
            return self.optimizer.step()
        sensed = self.sense()
        verdict, result = self.decide(observation, numbers, sensed), None
        if verdict.action is Action.TAKE:
            tamed = observation
            if verdict.tames and self.guardian is not None:
                own = closure is not None and self._evaluates_again
                verdict, tamed = self.guardian.tame(verdict, observation, own=own)
            result, late = self._take(closure, loss, tamed)
            if late and self.guardian is not None:
                verdict = self.guardian.decide_on(late, self.ledger.steps)
        self.finish(verdict, observation, sensed)
        return result if closure is None else loss

    def _has_data(self) -> bool:
        """Return whether there is anything to look at: not on the meta device, nor in a rehearsal.

        Tools that ask how much memory a run will need train a step of tensors without values.
        """
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        first = next(every, None)
        return first is None or has_data(first) or any(map(has_data, every))

    def finish(
        self,
        verdict: Verdict,
        observation: Observation,
        sensed: Sensed,
        *,
        buffers: bool = True,
        lr: tuple[float, ...] | None = None,
    ) -> None:
        """Carry out what is not a step, remember it, and tell it.

        Args:
            verdict: What was decided.
            observation: What was known.
            sensed: What the sensors had read.
            buffers: Whether the model's buffers have to be kept, or put back; not if the device
                has done that.
            lr: The learning rates of the step, if they may have moved since.
        """
        verdict = self._settle(verdict, observation, buffers)
        if self.sensing is not None and verdict.action is Action.TAKE:
            self.sensing.launch(self.ledger.steps)
        self._record(verdict, observation, sensed, lr)

    def tell_untraced(self) -> None:
        """Say once why a step that is compiled from outside runs as Python."""
        if not self._told_untraced:
            self._told_untraced = True
            reason = self.traced.obstacle or "it has a closure"
            logger.warning("inside torch.compile step() runs as Python, all of it: %s", reason)

    def tell_unsettled(self, calls: int) -> None:
        """Say once that many compiled steps were taken that nobody looked at."""
        if not self._told_unsettled:
            self._told_unsettled = True
            logger.warning(
                "%d compiled steps were taken since the last call that is not compiled: nothing "
                "was looked at, and no snapshot taken, in between; call opt.zero_grad() or "
                "opt.observe() between two steps",
                calls,
            )

    def look_at_graph(self) -> None:
        """Find out whether a step can be traced as things are now, and what it has to keep."""
        # compile=True has its own graph, around which buffers are kept as ever.
        kept = [] if self.guardian is None or self.compiled else self.guardian.buffers()
        self.traced.look(
            transforms=bool(self.transforming), guarded=self.guardian is not None, buffers=kept
        )

    def pass_by(self) -> None:
        """Count a step that was taken, and that nobody saw."""
        if self.guardian is not None:
            self.guardian.pass_by(self.ledger.steps)
        self.stability.note(healthy=True)
        self.ledger.calls += 1
        self.ledger.steps += 1

    def settle(self, *, lagged: bool = True) -> None:
        """Account for steps that nobody has judged yet.

        Args:
            lagged: Whether to wait for what is on its way to the host; steps inside of compiled
                code are accounted for in any case.
        """
        if self.lagged is not None and (lagged or self.traced.called):
            self.lagged.settle(self)  # it was taken before those of a graph
        counts = self.traced.take_counts()
        if counts is not None:
            Settlement(self).settle(counts)

    def adopt_group_transforms(self) -> None:
        """Take the transforms out of the parameter groups that bring some, and have them act.

        Raises:
            ConfigError: One of them cannot work.
        """
        bringing = [
            (number, group)
            for number, group in enumerate(self.optimizer.param_groups)
            if "transforms" in group
        ]
        for number, group in bringing:
            self.add_transforms(self._transforms_of(group), number)
        for _, group in bringing:
            del group["transforms"]

    def add_transforms(self, transforms: Sequence[Transform], group: int) -> None:
        """Have transforms act on a parameter group.

        Raises:
            ConfigError: One of them cannot work.
        """
        if self.lagged is not None:
            self.lagged.check(bool(transforms))
        self.transforming.add(transforms, group)

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the writers and scratch memory."""
        return {**self.__dict__, "telemetry": None, "_before": StateCopy()}

    # observe

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Return what the closure does, its gradients taken; ``None`` without one."""
        if closure is None:
            return None
        try:
            with torch.enable_grad():
                return closure()
        except BaseException:
            self.signals.take()  # they belong to a step that will not be
            raise

    def sense(self) -> Sensed:
        """Return what the sensors have read since the last step."""
        sensed = Sensed() if self.sensing is None else self.sensing.join(self.ledger.steps)
        self.transforming.note(sensed)
        return sensed

    def _observe(self, closure_loss: Any) -> tuple[Observation, list[float]]:
        """Return what is known about the step, and the numbers that the guardian asked for."""
        losses, others = self.signals.take()
        if not losses:
            losses = loss_of(closure_loss)
        if self.guardian is None and self.telemetry is None and not self.transforming.wants("loss"):
            losses = []  # nobody looks at it: do not wait for the device
        if self.guardian is None and not self.transforming:
            return Observation(loss=_mean(read_scalars(losses)), signals=others), []
        asked = [] if self.guardian is None else self.guardian.start()
        return self._measure(losses, others, asked)

    def _measure(
        self,
        losses: Sequence[float | Tensor],
        signals: dict[str, Any],
        asked: Sequence[float | Tensor],
    ) -> tuple[Observation, list[float]]:
        gradients, values = measure_gradients(self.optimizer.param_groups, beside=[*losses, *asked])
        loss = _mean(values[: len(losses)])
        observation = Observation(loss=loss, gradients=gradients, signals=signals)
        return observation, values[len(losses) :]

    def decide(self, observation: Observation, numbers: Sequence[float], sensed: Sensed) -> Verdict:
        """Return what is to be done about a step, given the numbers that the guardian asked for."""
        risen = (*self._unanswered, *sensed.risen)
        if self.guardian is None:
            return _unjudged(risen)
        steps = self.ledger.steps
        verdict = self.guardian.decide(observation, numbers, steps, risen, suspect=sensed.broken)
        self._unanswered = risen if verdict.action is Action.SKIP else ()
        return verdict

    # act

    def _take(
        self, closure: Callable[[], Any] | None, loss: Any, observation: Observation
    ) -> tuple[Any, tuple[Finding, ...]]:
        """Take the step; return its result, and what was found only while it was taken."""
        around: AbstractContextManager[None] = nullcontext()
        if self.guardian is not None:
            around = self.guardian.step(self.ledger.steps)
        self.adopt_group_transforms()
        self.transforming.before_step(observation, self.ledger.steps)
        with around:
            result, late = self._step(closure, loss)
        if not late:
            self.transforming.after_step(observation, self.lr_scale)
        return result, late

    def _step(
        self, closure: Callable[[], Any] | None, loss: Any
    ) -> tuple[Any, tuple[Finding, ...]]:
        if closure is None or not self.takes_closure:
            return self.update(), ()
        replay = Replay(self.optimizer, loss, partial(self._evaluate_again, closure))
        if self.guardian is None:
            return self.update(replay), ()
        self._may_undo = self._evaluates_again or self._first_closure
        if self._may_undo:
            self._before.take(self.optimizer)
        try:
            return self.update(replay), ()
        except _BadEvaluationError as bad:
            self._before.restore(self.optimizer)
            return None, bad.findings
        finally:
            self._evaluates_again |= replay.evaluated
            self._first_closure = False
            if not self._evaluates_again:
                self._before = StateCopy()  # it was for the case that it does

    def update(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the inner optimizer, compiled if that was asked for.

        Args:
            closure: For an optimizer that is given one; such a step is not compiled.
        """
        if self.compiled is None or closure is not None:
            if self.compiled is not None:
                self.compiled.give_up("its step is given a closure, which it may evaluate again")
            return call_step(self.optimizer, closure)
        result = self.compiled()
        if self.traced.called:
            self.traced.forget()  # what became of it is known otherwise
        return result

    def _evaluate_again(self, closure: Callable[[], Any]) -> Any:
        """Evaluate the closure at another point, as a line search does, and judge it."""
        loss = self.evaluate(closure)
        losses, signals = self.signals.take()
        observation, _ = self._measure(losses or loss_of(loss), signals, ())
        if self.guardian is not None and (findings := self.guardian.nonfinite(observation)):
            if self._may_undo:
                raise _BadEvaluationError(findings)
            self.guardian.suspect()  # there is no way back from here but a snapshot
        self.transforming.change_gradients(observation)
        return loss

    def _settle(
        self,
        verdict: Verdict,
        observation: Observation,
        buffers: bool,
    ) -> Verdict:
        """Carry out what is not a step; return what was done in the end."""
        step = self.ledger.steps
        if self.guardian is not None:
            verdict = self.guardian.go_back(verdict, step)
            if buffers:
                self.guardian.keep_buffers(verdict)
            self.guardian.settle(verdict, observation, step)
        self.verdict = verdict
        self.ledger.calls += 1
        self.ledger.steps += verdict.action is Action.TAKE
        if verdict.rollback is not None:
            self.ledger.steps = verdict.rollback.to_step
        return verdict

    # record

    def _record(
        self,
        verdict: Verdict,
        observation: Observation,
        sensed: Sensed,
        lr: tuple[float, ...] | None,
    ) -> None:
        if verdict.action is Action.TAKE:
            self.ledger.note_loss(observation.loss)
        always = bool(sensed.readings) or (self.sensing is not None and self.sensing.bursts)
        acts = self.transforming.tell(self.ledger.calls)
        self.stability.note(healthy=self._is_healthy(verdict, observation, acts))
        news = [act.tell() for act in acts if not act.again]
        routine = verdict.action is Action.TAKE and not verdict.findings and not news
        if routine and not (self.telemetry and (always or self.telemetry.wants(self.ledger.steps))):
            return
        event = Event(
            call=self.ledger.calls,
            step=self.ledger.steps,
            action=verdict.action,
            reason="; ".join([verdict.reason, *news] if verdict.reason else news),
            findings=verdict.findings,
            rollback=verdict.rollback,
            backs_off=verdict.backs_off,
            tames=verdict.tames,
            baseline_reset=verdict.baseline_reset,
            lr_scale=self.lr_scale,
            loss=observation.loss,
            grad_norm=_norm(observation),
            lr=learning_rates(self.optimizer) if lr is None else lr,
            signals=summarize_signals(observation.signals),
            readings=sensed.readings,
            risk=self.risk,
            acts=acts,
            time=time.time(),
        )
        if not routine:
            self.ledger.add(event)
            level = logging.WARNING if verdict.findings or verdict.reason else logging.INFO
            logger.log(level, "call %d: %s: %s", event.call, event.action.value, event.reason)
        if self.telemetry is not None:
            self.telemetry.send(event, always=always)
            if not routine:
                self.telemetry.send_summary(self.summary())
        if verdict.action is Action.STOP:
            self._stop(event)

    def _is_healthy(self, verdict: Verdict, observation: Observation, acts: Sequence[Act]) -> bool:
        """Tell whether there was nothing about a call that stability is lost by."""
        told = all(finding.scope is Scope.NOTICE for finding in verdict.findings)
        taken = verdict.action is Action.TAKE and told
        finite = observation.loss is None or math.isfinite(observation.loss)
        risky = self.risk is not None and self.risk.rank >= RiskLevel.WARNING.rank
        calm = self.guardian is None or self.guardian.calm
        return taken and finite and calm and not risky and all(act.routine for act in acts)

    def _stop(self, event: Event) -> None:
        if self.telemetry is not None:
            self.telemetry.flush()
        weights = "those after the last update that was taken"
        if event.rollback is not None:
            weights = f"those of step {event.rollback.to_step}, the newest verified snapshot"
        raise DivergenceError(
            f"stopped at call {event.call}: {event.reason}. The weights are {weights}. Look at "
            "the data and the layers that this error's .ledger names, at the learning rate, and "
            "whether the gradients are reset after a step that was skipped",
            event,
            self.ledger.entries,
        )

    # checkpoints and summaries

    @property
    def risk(self) -> RiskLevel | None:
        """The level that the sensors say the run is at; ``None`` while nothing is known."""
        assessment = None if self.sensing is None else self.sensing.assessment
        return None if assessment is None else assessment.level

    @property
    def lr_scale(self) -> float:
        """Our factor on the learning rates."""
        return 1.0 if self.guardian is None else self.guardian.lr_scale

    def wait(self) -> None:
        """Return once nothing reads the weights any more."""
        if self.sensing is not None:
            self.sensing.wait()

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs, as plain data."""
        guardian = {} if self.guardian is None else self.guardian.state_dict()
        sensing = {} if self.sensing is None else {"sensing": self.sensing.to_checkpoint()}
        transforms = {"transforms": self.transforming.state_dict()} if self.transforming else {}
        known = {**self.ledger.state_dict(), "calm": self.stability.calm}
        return {**known, **guardian, **sensing, **transforms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint was written; what it lacks starts anew."""
        self.ledger.load_state_dict(state)
        self.stability.calm = int(state.get("calm", 0))
        if self.sensing is not None:
            self.sensing.from_checkpoint(state.get("sensing", {}))
        self.transforming.load_state_dict(state.get("transforms", {}))
        if self.guardian is not None:
            self.guardian.load_state_dict(state)
            self.guardian.accept()

    def summary(self, status: str | None = None, ended_by: str | None = None) -> dict[str, Any]:
        """Return what :meth:`stableopt.StableOptimizer.summary` promises."""
        groups = self.optimizer.param_groups
        guardian = self.guardian
        setup = {
            "optimizer": type(self.optimizer).__name__,
            "hyperparameters": self._hyperparameters,
            "parameters": sum(p.numel() for g in groups for p in g["params"] if has_data(p)),
            "guard": False if guardian is None else guardian.options.as_config(),
            "transforms": self.transforming.summary(),
            "sensors": False if self.sensing is None else self.sensing.summary(),
            "compiled": self.compiled is not None and (self.compiled.reason or True),
            **({} if guardian is None else guardian.summary()),
        }
        return summarize(self.ledger, setup, self.telemetry, status, ended_by)

    def close(self) -> None:
        """Write the last summary, let the writers and the model go; a second call does nothing."""
        # The collector may call this while somebody's graph is traced, or runs: torch would
        # compile this, too. (It is loaded then; at exit it is too late for that.)
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", lambda close: close)
        disable(self._close)()

    def _close(self) -> None:
        if self.guardian is not None:
            self.guardian.close()
        if self.telemetry is not None and not self.telemetry.closed:
            with suppress(DivergenceError), _disable_current_modes():
                self.settle()
            self.telemetry.close(self.summary(*self.telemetry.ending.tell()))


class _BadEvaluationError(Exception):
    """Leaves an inner step in the middle of its line search."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__()
        self.findings = findings


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return ``method`` for those who must not keep its object alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        bound = ref()
        if bound is not None:
            bound()

    return call


def _unjudged(risen: tuple[Finding, ...]) -> Verdict:
    reason = "; ".join(finding.message for finding in risen)
    return Verdict(action=Action.TAKE, reason=reason, findings=risen)


def _norm(observation: Observation) -> float | None:
    return None if observation.gradients is None else observation.gradients.total_value


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
