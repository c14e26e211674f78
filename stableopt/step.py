"""The order of a step: observe, judge, decide, act, record."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from stableopt.errors import DivergenceError
from stableopt.guard.policy import Policy
from stableopt.health.gradients import measure_gradients
from stableopt.health.nonfinite import find_nonfinite, find_nonfinite_weights
from stableopt.health.signals import Signals, loss_of, summarize_signals
from stableopt.inner import Replay, is_priming, learning_rates, requires_closure
from stableopt.runtime.buffers import BufferShadow
from stableopt.runtime.names import parameter_names
from stableopt.runtime.scalars import read_scalars
from stableopt.runtime.state_copy import StateCopy
from stableopt.telemetry.ledger import Ledger
from stableopt.telemetry.summary import summarize
from stableopt.types import Action, Event, Finding, GradientNorms, Observation, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from stableopt.guard import Guard
    from stableopt.telemetry.dispatch import Dispatcher
    from stableopt.transforms import GradientTransform

logger = logging.getLogger("stableopt")

_HEALTHY = Verdict(action=Action.TAKE)


class StepLoop:
    """One call is one step of the inner optimizer, or the decision not to take it.

    Args:
        optimizer: The inner optimizer.
        model: Gives names, and buffers to protect.
        guard: Its options; ``None`` takes every step unjudged.
        transforms: Applied in order to the gradients of a step that is taken.
        telemetry: Where events go.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None,
        guard: Guard | None,
        transforms: Sequence[GradientTransform],
        telemetry: Dispatcher | None,
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.guard = guard
        self.transforms = tuple(transforms)
        self.telemetry = telemetry
        self.ledger = Ledger()
        self.signals = Signals()
        self.verdict: Verdict | None = None
        self.called = False
        self._policy = Policy(guard) if guard is not None else None
        self._buffers = BufferShadow(model) if guard is not None and model is not None else None
        self._before = StateCopy()
        self._requires_closure = requires_closure(optimizer)
        if telemetry is not None:
            telemetry.send_summary(self.summary)

    def __call__(self, closure: Callable[[], Any] | None) -> Any:
        """Run one step; see the module for its order."""
        self.called = True
        loss = self._evaluate(closure)
        observation = self._observe(loss)
        told = closure is not None or observation.loss is not None
        if not told and is_priming(self.optimizer, _norm(observation)):
            return self.optimizer.step()
        findings = self._judge(observation)
        if findings:
            findings += self._judge_weights()
        verdict = self._decide(findings)
        result = None
        if verdict.action is Action.TAKE:
            result, late = self._take(closure, loss, observation)
            if late:
                verdict = self._decide(late)
        self._settle(verdict)
        self._record(verdict, observation)
        return result if closure is None else loss

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles everything but the writers and scratch memory."""
        return {**self.__dict__, "telemetry": None, "_before": StateCopy()}

    def accept_buffers(self) -> None:
        """Take the model's buffers as they are now for healthy: a checkpoint was loaded."""
        if self._buffers is not None:
            self._buffers.refresh()

    # observe

    def _evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        try:
            with torch.enable_grad():
                return closure()
        except BaseException:
            self.signals.take()  # they belong to a step that will not be
            raise

    def _observe(self, closure_loss: Any) -> Observation:
        losses, others = self.signals.take()
        if not losses:
            losses = loss_of(closure_loss)
        if self.guard is None and self.telemetry is None:
            losses = []  # nobody looks at it: do not wait for the device
        if self.guard is None and not self.transforms:
            return Observation(loss=_mean(read_scalars(losses)), signals=others)
        gradients, values = measure_gradients(self.optimizer.param_groups, beside=losses)
        return Observation(loss=_mean(values), gradients=gradients, signals=others)

    # judge and decide

    def _judge(self, observation: Observation) -> tuple[Finding, ...]:
        if self.guard is None or _is_finite(observation):
            return ()
        return find_nonfinite(observation, parameter_names(self.optimizer, self.model))

    def _judge_weights(self) -> tuple[Finding, ...]:
        names = parameter_names(self.optimizer, self.model)
        with torch.no_grad():
            return find_nonfinite_weights(self.optimizer.param_groups, names)

    def _decide(self, findings: tuple[Finding, ...]) -> Verdict:
        return _HEALTHY if self._policy is None else self._policy.decide(findings)

    # act

    def _take(
        self, closure: Callable[[], Any] | None, loss: Any, observation: Observation
    ) -> tuple[Any, tuple[Finding, ...]]:
        """Take the step; return its result, and what was found only while it was taken."""
        self._transform(observation.gradients)
        if closure is None or not self._requires_closure:
            return self.optimizer.step(), ()
        if self.guard is None:
            return self.optimizer.step(self._replay(closure, loss)), ()
        self._before.take(self.optimizer)
        try:
            return self.optimizer.step(self._replay(closure, loss)), ()
        except _BadEvaluationError as bad:
            self._before.restore(self.optimizer)
            return None, bad.findings

    def _replay(self, closure: Callable[[], Any], loss: Any) -> Replay:
        return Replay(self.optimizer, loss, partial(self._evaluate_again, closure))

    def _evaluate_again(self, closure: Callable[[], Any]) -> Any:
        """Evaluate the closure at another point, as a line search does, and judge it."""
        loss = self._evaluate(closure)
        observation = self._observe(loss)
        findings = self._judge(observation)
        if findings:
            raise _BadEvaluationError(findings)
        self._transform(observation.gradients)
        return loss

    def _transform(self, gradients: GradientNorms | None) -> None:
        if not self.transforms or gradients is None:
            return
        groups = self.optimizer.param_groups
        parameters = [groups[g]["params"][i] for g, i in gradients.owners]
        for transform in self.transforms:
            transform.transform_gradients(parameters, gradients)

    def _settle(self, verdict: Verdict) -> None:
        """Make what is beside the optimizer agree with the verdict."""
        self.verdict = verdict
        self.ledger.calls += 1
        if self._policy is not None:
            self._policy.note(verdict)
        taken = verdict.action is Action.TAKE
        self.ledger.steps += taken
        if self._buffers is not None:
            if taken:
                self._buffers.refresh()
            else:
                self._buffers.restore()

    # record

    def _record(self, verdict: Verdict, observation: Observation) -> None:
        taken = verdict.action is Action.TAKE
        if taken:
            self.ledger.last_loss = observation.loss
            if self.telemetry is None or not self.telemetry.wants(self.ledger.steps):
                return
        event = Event(
            call=self.ledger.calls,
            step=self.ledger.steps,
            action=verdict.action,
            reason=verdict.reason,
            findings=verdict.findings,
            loss=observation.loss,
            grad_norm=_norm(observation),
            lr=learning_rates(self.optimizer),
            signals=summarize_signals(observation.signals),
            time=time.time(),
        )
        if not taken:
            self.ledger.add(event)
            logger.warning("call %d: %s: %s", event.call, event.action.value, event.reason)
        if self.telemetry is not None:
            self.telemetry.send(event)
            if not taken:
                self.telemetry.send_summary(self.summary)
        if verdict.action is Action.STOP:
            self._stop(event)

    def _stop(self, event: Event) -> None:
        if self.telemetry is not None:
            self.telemetry.flush()
        raise DivergenceError(
            f"stopped at call {event.call}, after {event.step} updates: {event.reason}. The "
            "weights are those after the last update that was taken. Look at the data and the "
            "layers that this error's .ledger names, at the learning rate, and whether the "
            "gradients are reset after a step that was skipped",
            event,
            self.ledger.interventions,
        )

    def summary(self, status: str | None = None) -> dict[str, Any]:
        """Return what :meth:`stableopt.StableOptimizer.summary` promises."""
        groups = self.optimizer.param_groups
        setup = {
            "optimizer": type(self.optimizer).__name__,
            "parameters": sum(p.numel() for g in groups for p in g["params"] if not is_lazy(p)),
            "guard": False if self.guard is None else asdict(self.guard),
            "transforms": [repr(transform) for transform in self.transforms],
        }
        return summarize(self.ledger, setup, self.telemetry, status)

    def close(self) -> None:
        """Write the last summary and let the writers go; a second call does nothing."""
        if self.telemetry is not None:
            self.telemetry.close(partial(self.summary, "closed"))


class _BadEvaluationError(Exception):
    """Leaves an inner step in the middle of its line search."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__()
        self.findings = findings


def _norm(observation: Observation) -> float | None:
    return None if observation.gradients is None else observation.gradients.total_value


def _is_finite(observation: Observation) -> bool:
    loss, gradients = observation.loss, observation.gradients
    return (loss is None or math.isfinite(loss)) and not (gradients and gradients.nonfinite)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
