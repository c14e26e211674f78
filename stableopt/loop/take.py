"""ACT: take the step of the inner optimizer, with its closure where it wants one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from stableopt.sensors.gradients import measure_gradients
from stableopt.sensors.signals import loss_of, mean_of
from stableopt.snapshots.state_copy import StateCopy
from stableopt.types import Observation
from stableopt.update.closures import Replay, requires_closure, takes_closure

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from stableopt.loop.attempt import Attempt
    from stableopt.loop.decide import Decider
    from stableopt.sensors.signals import Signals
    from stableopt.transforms.chain import Transforming
    from stableopt.types import Finding
    from stableopt.update.eager import Update


class Take:
    """Takes the inner step.

    An optimizer that evaluates its closure again (LBFGS, SAM) finds out about a loss or a gradient
    that is not finite in the middle of its step: a copy from before it is restored then.

    Args:
        optimizer: The inner optimizer.
        update: Takes its step.
        signals: What the closure observes.
        transforms: Change gradients.
    """

    def __init__(
        self, optimizer: Optimizer, update: Update, signals: Signals, transforms: Transforming
    ) -> None:
        self._optimizer = optimizer
        self._update = update
        self._signals = signals
        self._transforms = transforms
        self._first = True
        self._may_undo = False
        self._before = StateCopy()
        self._hands_closure = takes_closure(optimizer)
        self.evaluates_again = requires_closure(optimizer)

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Return what the closure returns, its gradients computed; ``None`` without one."""
        if closure is None:
            return None
        try:
            with torch.enable_grad():
                return closure()
        except BaseException:
            self._signals.take()  # they belong to a step that will not be
            raise

    def closure_of(self, attempt: Attempt, again: Callable[[], Any]) -> Replay | None:
        """Return the closure for an optimizer that is given one; ``None`` for all others.

        Args:
            attempt: Whose closure was evaluated once.
            again: Evaluates it once more.
        """
        if attempt.closure is None or not self._hands_closure:
            return None
        return Replay(self._optimizer, attempt.loss, again)

    def __call__(self, attempt: Attempt, decider: Decider | None) -> tuple[Finding, ...]:
        """Take the step, keep its result; return what was found only while it was taken."""
        closure = self.closure_of(attempt, partial(self._evaluate_again, attempt, decider))
        if closure is None or decider is None:
            attempt.result = self._update.take(closure)
            return ()
        self._may_undo = self.evaluates_again or self._first
        if self._may_undo:
            self._before.take(self._optimizer)
        try:
            attempt.result = self._update.take(closure)
        except _BadEvaluationError as bad:
            self._before.restore(self._optimizer)
            return bad.findings
        finally:
            self.evaluates_again |= closure.evaluated
            self._first = False
            if not self.evaluates_again:
                self._before = StateCopy()  # the memory is needed no more
        return ()

    def _evaluate_again(self, attempt: Attempt, decider: Decider | None) -> Any:
        """Evaluate the closure at another point, as a line search does, and judge it."""
        loss = self.evaluate(attempt.closure)
        losses, signals = self._signals.take()
        losses = losses or loss_of(loss)
        with torch.no_grad():
            gradients, values = measure_gradients(self._optimizer.param_groups, beside=losses)
        observation = Observation(loss=mean_of(values), gradients=gradients, signals=signals)
        if decider is not None and (findings := decider.spoils(observation)):
            if self._may_undo:
                raise _BadEvaluationError(findings)
            decider.suspicious = True  # only a snapshot leads back from here
        self._transforms.change_gradients(observation)
        return loss

    def __getstate__(self) -> dict[str, object]:
        """Give copies and pickles everything but scratch memory."""
        return {**self.__dict__, "_before": StateCopy()}


class _BadEvaluationError(Exception):
    """Leaves an inner step in the middle of its line search."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__()
        self.findings = findings
